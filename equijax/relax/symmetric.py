"""Symmetry-preserving relaxation of cell and ions in float64, tight enough to differentiate the energy twice."""

import time
import warnings
from typing import NamedTuple

import ase
import numpy as np
import spglib
from ase.constraints import FixCartesian, FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.spacegroup.symmetrize import refine_symmetry
from tqdm import tqdm

from equijax.constraints import free_components, refuse_fixed
from equijax.errors import InputError
from equijax.potential import Potential
from equijax.structures import for_spglib
from equijax.units import GPA_PER_EV_A3

SYMPREC_A = 1e-4  # symmetry is found and kept to this
# Above these a second derivative describes a slope, not a minimum: phonons warn.
MAX_FORCE = 1e-3  # eV/A
MAX_STRESS = 1e-3  # eV/A^3, 0.16 GPa
REFUSED_FORCE = 0.05  # eV/A: programs that need a minimum refuse to start above this
MAX_STEP_A = 0.1
FREE_CELL = "a cell is relaxed with all atoms free; relax with the cell fixed, or remove the constraints"


class Residuals(NamedTuple):
    """Largest force on an atom and largest stress component; None where there is none."""

    max_force_eV_A: float  # fixed atoms count
    max_free_force_eV_A: float | None = None  # of what is free, where some atoms are fixed
    max_stress_eV_A3: float | None = None  # where periodic in three directions
    max_stress_GPa: float | None = None

    def document(self) -> dict[str, float]:
        """What there is, by name, for reports."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Relaxation(NamedTuple):
    """How a relaxation went."""

    residuals: Residuals  # at its end
    converged: bool
    fmax_eV_A: float  # as asked
    steps: int
    seconds: float
    energy_change_eV_atom: float
    volume_change_percent: float
    space_group_before: str | None  # None where not periodic in three directions
    space_group_after: str | None

    def document(self) -> dict[str, object]:
        """By name, the residuals among the rest, for reports."""
        values = self._asdict()
        return values.pop("residuals").document() | values


class Relaxed(NamedTuple):
    """What `relax` returns."""

    atoms: ase.Atoms  # with the constraints of the structure given, no calculator
    report: Relaxation


def relax(
    ff: Potential,
    atoms: ase.Atoms,
    *,
    fmax: float = 1e-4,
    cell: bool = True,
    steps: int = 500,
    symprec: float | None = SYMPREC_A,
) -> Relaxed:
    """Relax ions, and the cell if asked, with ASE's BFGS, in float64; on a terminal, step and largest force are shown.

    Args:
      ff: a ForceField.
      atoms: a structure; it is not changed. Its fixed atoms stay where they are, and no symmetry is imposed then.
      fmax: eV/A, largest force on an atom; for the cell, largest row of the virial per atom.
      cell: relax the cell (three periodic directions needed).
      steps: at most.
      symprec: A; the structure is refined to its space group at this, then keeps that group. None: as it is.

    Raises:
      InputError: a structure the model cannot describe, a cell relaxation without three periodic directions or with
        fixed atoms, a constraint other than fixed atoms and components.
    """
    fixed = _fixed(atoms)
    if cell:
        refuse_fixed(atoms, atoms.get_chemical_formula(), why=FREE_CELL)
    relaxed = atoms.copy()
    relaxed.set_constraint(fixed)
    if cell and not relaxed.pbc.all():
        raise InputError(
            f"cell relaxation of a structure with pbc {relaxed.pbc.tolist()}: expected three periodic directions; "
            "use cell=False"
        )
    named_at = SYMPREC_A if symprec is None else symprec
    before, start = space_group(relaxed, named_at), time.perf_counter()
    if symprec is not None and relaxed.pbc.all() and not fixed:
        refine_symmetry(relaxed, symprec=symprec)
        relaxed.set_constraint(FixSymmetry(relaxed, symprec=symprec, adjust_positions=True, adjust_cell=cell))
    relaxed.calc = ff.calculator(dtype="float64")
    energy, volume = relaxed.get_potential_energy(), relaxed.cell.volume
    moving = FrechetCellFilter(relaxed) if cell else relaxed
    # ASE's annotations know no filters
    optimiser = BFGS(moving, logfile=None, maxstep=MAX_STEP_A)  # pyright: ignore[reportArgumentType]
    with tqdm(total=steps, desc="relax", unit="step", disable=None, leave=False) as bar:
        converged = False
        for converged in optimiser.irun(fmax=fmax, steps=steps):  # noqa: B007
            bar.update(optimiser.nsteps - bar.n)
            bar.set_postfix(fmax=f"{np.linalg.norm(relaxed.get_forces(), axis=1).max():.1e} eV/A")
    report = Relaxation(
        residuals(relaxed),
        bool(converged),
        fmax_eV_A=fmax,
        steps=int(optimiser.nsteps),
        seconds=time.perf_counter() - start,
        energy_change_eV_atom=(relaxed.get_potential_energy() - energy) / len(relaxed),
        volume_change_percent=100.0 * (relaxed.cell.volume / volume - 1.0) if volume else 0.0,
        space_group_before=before,
        space_group_after=space_group(relaxed, named_at),
    )
    relaxed.set_constraint(atoms.constraints)
    relaxed.calc = None
    return Relaxed(relaxed, report)


def _fixed(atoms: ase.Atoms) -> list[FixCartesian]:
    """The constraints as Cartesian ones; none where everything is free."""
    free = free_components(atoms, atoms.get_chemical_formula())
    patterns = np.unique(free[~free.all(1)], axis=0)
    return [FixCartesian(np.flatnonzero((free == row).all(1)), ~row) for row in patterns]


def residuals(atoms: ase.Atoms) -> Residuals:
    """Forces and stress of atoms with a calculator, as it finds them."""
    forces = atoms.get_forces(apply_constraint=False)
    out = Residuals(float(np.linalg.norm(forces, axis=1).max()))
    if any(not isinstance(c, FixSymmetry) for c in atoms.constraints):
        free = float(np.linalg.norm(forces * free_components(atoms), axis=1).max())
        out = out._replace(max_free_force_eV_A=free)
    if atoms.pbc.all():
        stress = float(np.abs(atoms.get_stress(apply_constraint=False)).max())
        out = out._replace(max_stress_eV_A3=stress, max_stress_GPa=stress * GPA_PER_EV_A3)
    return out


def static_residuals(ff: Potential, atoms: ase.Atoms) -> Residuals:
    """`residuals` of a structure as it is, in float64."""
    atoms = atoms.copy()
    atoms.calc = ff.calculator(dtype="float64")
    return residuals(atoms)


def warn_unrelaxed(found: Residuals, stacklevel: int = 2) -> list[str]:
    """Warn about residual forces or stress (from `residuals`) too large for a harmonic analysis; return the texts."""
    texts = []
    if found.max_force_eV_A > MAX_FORCE:
        texts.append(
            f"the largest force is {found.max_force_eV_A:.2e} eV/A, expected below {MAX_FORCE:g}: "
            "frequencies are not those of a minimum; relax first (--relax)"
        )
    if (found.max_stress_eV_A3 or 0.0) > MAX_STRESS:
        texts.append(
            f"the largest stress is {found.max_stress_GPa:.3g} GPa, expected below {MAX_STRESS * GPA_PER_EV_A3:.2g}: "
            "these are phonons of a strained cell; relax first (--relax)"
        )
    for text in texts:
        warnings.warn(text, stacklevel=stacklevel + 1)
    return texts


def warn_fixed(atoms: ase.Atoms, stacklevel: int = 2) -> list[str]:
    """Warn, and return the text, where a structure has fixed atoms: derivatives are taken with all atoms free."""
    if not atoms.constraints:
        return []
    fixed = int((~free_components(atoms, atoms.get_chemical_formula())).any(1).sum())
    text = f"{fixed} of {len(atoms)} atoms are fixed: force constants ignore that, every atom vibrates"
    warnings.warn(text, stacklevel=stacklevel + 1)
    return [text]


def refuse_unrelaxed(found: Residuals, name: str) -> None:
    """Stop before work starts where forces (from `residuals`) are so large that there is no harmonic analysis.

    Raises:
      InputError: the largest force is above `REFUSED_FORCE`.
    """
    free = found.max_force_eV_A if found.max_free_force_eV_A is None else found.max_free_force_eV_A
    if free <= REFUSED_FORCE < found.max_force_eV_A:
        raise InputError(
            f"{name}: the largest force, {found.max_force_eV_A:.3g} eV/A, is on a fixed atom; expected below "
            f"{REFUSED_FORCE:g}, because force constants ignore constraints: remove them and relax again, or go on "
            "as it is with --allow-unrelaxed"
        )
    if found.max_force_eV_A > REFUSED_FORCE:
        raise InputError(
            f"{name}: the largest force is {found.max_force_eV_A:.3g} eV/A, expected below {REFUSED_FORCE:g}: this "
            "is not a relaxed structure; relax it first (--relax), or go on as it is with --allow-unrelaxed"
        )


def space_group(atoms: ase.Atoms, symprec: float = SYMPREC_A) -> str | None:
    """International symbol and number, such as "Fm-3m (225)"; None where not periodic in three directions."""
    if not atoms.pbc.all():
        return None
    found = spglib.get_symmetry_dataset(for_spglib(atoms), symprec)
    return None if found is None else f"{found.international} ({found.number})"
