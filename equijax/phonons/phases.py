"""Phases that soft modes lead to: what is known of one, and when two are the same."""

from typing import NamedTuple

import ase
import numpy as np
import spglib

from equijax import structures
from equijax.config import Compute
from equijax.potential import Potential
from equijax.relax import symmetric
from equijax.relax.symmetric import Relaxation

TOLERANCES_A = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)  # at which space groups are named
NAMED_AT_A = 1e-2  # the one in the table, and at which a phase is reduced to its primitive cell
SAME_ENERGY_EV = 2e-5  # per atom: phases of one space group closer than this are one


class Scan(NamedTuple):
    """E(Q) of a distortion, per atom of its supercell, and its lowest minimum; Q_min = 0 where nothing is lower."""

    Q: list[float]  # A sqrt(amu) per primitive cell, ascending
    energy_meV_atom: list[float]  # against the undistorted cell
    Q_min: float  # A sqrt(amu)
    well_meV_atom: float  # how deep, positive
    cells: int  # primitive cells in the supercell


class Led(NamedTuple):
    """The mode that was followed to a phase; all None for the first one."""

    parent: int | None = None  # index of the phase whose mode it is
    from_space_group: str | None = None  # of that phase
    q: list[tuple[float, float, float]] | None = None  # wave vectors of the distortion
    frequency_THz: float | None = None
    Q_min: float | None = None  # A sqrt(amu), of the scan
    well_meV_atom: float | None = None  # of the scan


class Phase(NamedTuple):
    """A relaxed structure, and what its own spectrum says of it: None where that was not looked at."""

    atoms: ase.Atoms
    round: int
    led: Led
    space_group: str | None  # at `NAMED_AT_A`
    space_groups: dict[str, str | None]  # by tolerance
    num_atoms: int
    energy_eV_atom: float
    energy_meV_atom: float  # against the first phase
    converged: bool
    max_force_eV_A: float
    mesh: list[int] | None = None  # of the spectrum
    lowest_THz: float | None = None
    stable: bool | None = None

    def document(self) -> dict[str, object]:
        """All but the structure by name, for reports."""
        values = self._asdict()
        del values["atoms"]
        return values.pop("led")._asdict() | values


class Followed(NamedTuple):
    """A distortion that was scanned."""

    scan: Scan
    led: Led
    distorted_space_group: int  # of the cell once it is distorted

    def document(self) -> dict[str, object]:
        """By name, for reports and figures."""
        return {**self.scan._asdict(), **self.led._asdict(), "distorted_space_group": self.distorted_space_group}


def describe(
    ff: Potential, atoms: ase.Atoms, *, report: Relaxation, led: Led, before: tuple[Phase, Phase] | None
) -> Phase:
    """A relaxed structure, before its spectrum is known; `before` are the first phase and the one it came from."""
    energy = ff.evaluate([atoms], compute=Compute())[0].energy / len(atoms)
    named = {str(t): symmetric.space_group(atoms, t) for t in TOLERANCES_A}
    zero, number = (energy, 0) if before is None else (before[0].energy_eV_atom, before[1].round + 1)
    return Phase(
        atoms,
        number,
        led,
        space_group=named[str(NAMED_AT_A)],
        space_groups=named,
        num_atoms=len(atoms),
        energy_eV_atom=energy,
        energy_meV_atom=1e3 * (energy - zero),
        converged=report.converged,
        max_force_eV_A=report.residuals.max_force_eV_A,
    )


def same(a: Phase, b: Phase) -> bool:
    """The same energy and the same space group at one of the tolerances from that of the table upwards."""
    names = (str(t) for t in TOLERANCES_A if t >= NAMED_AT_A)
    return abs(a.energy_eV_atom - b.energy_eV_atom) < SAME_ENERGY_EV and any(
        a.space_groups[t] == b.space_groups[t] for t in names
    )


def primitive(atoms: ase.Atoms) -> ase.Atoms:
    """The primitive cell at `NAMED_AT_A`, isotopes apart, without moving atoms onto symmetry; relaxation does that."""
    kinds = structures.isotopes(atoms.numbers, atoms.get_masses())
    found = spglib.standardize_cell(
        structures.for_spglib(atoms, kinds), to_primitive=True, no_idealize=True, symprec=NAMED_AT_A
    )
    if found is None:
        raise RuntimeError(f"spglib found no primitive cell of {atoms.get_chemical_formula()} at {NAMED_AT_A} A")
    lattice, positions, kept = found
    like = [int(np.flatnonzero(kinds == kind)[0]) for kind in kept]  # an atom of the same element and mass
    masses = atoms.get_masses()[like] if atoms.has("masses") else None
    return ase.Atoms(atoms.numbers[like], cell=lattice, scaled_positions=positions, pbc=True, masses=masses)


def heights(atoms: ase.Atoms) -> np.ndarray:
    """Distances between parallel faces of the cell, A."""
    return 1.0 / np.linalg.norm(atoms.cell.reciprocal().array, axis=1)
