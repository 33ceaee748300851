"""Phonons over a series of volumes: mode Grueneisen parameters and quasi-harmonic thermal expansion."""

from collections.abc import Sequence
from typing import NamedTuple

import ase
import numpy as np
import numpy.typing as npt
import phonopy
from phonopy import Phonopy, PhonopyGruneisen
from phonopy.qha.qha import QHAResult

from equijax.config import Compute
from equijax.errors import InputError
from equijax.phonons import force_constants, thermal
from equijax.potential import Potential
from equijax.relax import symmetric

MIN_VOLUMES = 5  # of an equation of state


class Gruneisen(NamedTuple):
    """Mode Grueneisen parameters on a mesh."""

    qpoints: np.ndarray  # [q, 3] in reciprocal lattice vectors
    weights: np.ndarray  # [q]
    frequencies: np.ndarray  # [q, B] THz
    parameters: np.ndarray  # [q, B], NaN for the acoustic modes at Gamma


def series(
    ff: Potential,
    atoms: ase.Atoms,
    *,
    supercell: npt.ArrayLike,
    strains: Sequence[float] | np.ndarray,
    fmax: float | None = 1e-5,
    compute: Compute = Compute(),
) -> tuple[list[Phonopy], np.ndarray]:
    """Force constants of uniformly strained cells; all of them share compiled programs where the padded shape agrees.

    Args:
      ff: a ForceField.
      atoms: relaxed unit cell.
      supercell: see `force_constants.make_phonon`.
      strains: [S] volume strains dV / V.
      fmax: eV/A, to which the ions that symmetry leaves free are relaxed in each cell; None leaves them.
      compute: see `hessian.hvp`.

    Returns:
      (phonons [S], energies [S] in eV per primitive cell).

    Raises:
      InputError: a strain of -1 or less; see also `force_constants.make_phonon`.
    """
    if min(strains) <= -1:
        raise InputError(f"volume strain {min(strains)}: expected above -1")
    found, energies = [], []
    for strain in strains:
        cell = atoms.copy()
        cell.set_cell(atoms.cell.array * (1 + strain) ** (1 / 3), scale_atoms=True)
        if fmax is not None:
            cell, _ = symmetric.relax(ff, cell, fmax=fmax, cell=False)
        phonon = force_constants.make_phonon(cell, supercell)
        force_constants.force_constants(ff, phonon, compute=compute)
        energy = ff.evaluate([cell], compute=Compute())[0].energy
        energies.append(energy * len(phonon.primitive) / len(cell))
        found.append(phonon)
    return found, np.array(energies)


def gruneisen(
    ff: Potential,
    atoms: ase.Atoms,
    *,
    supercell: npt.ArrayLike,
    mesh: Sequence[int] = (8, 8, 8),
    strain: float = 0.01,
    compute: Compute = Compute(),
) -> Gruneisen:
    """Mode Grueneisen parameters -d ln v / d ln V on a mesh, by phonopy from three volumes.

    Args:
      ff, atoms, supercell, compute: see `series`.
      mesh: Gamma-centred q mesh.
      strain: dV / V to either side.
    """
    (centre, larger, smaller), _ = series(
        ff, atoms, supercell=supercell, strains=(0.0, strain, -strain), compute=compute
    )
    found = PhonopyGruneisen(centre, larger, smaller)
    found.set_mesh(mesh, is_gamma_center=True)
    qpoints, weights, frequencies, _, parameters = found.get_mesh()  # pyright: ignore[reportGeneralTypeIssues] (annotated as returning None)
    parameters = np.where(thermal.gamma_acoustic(qpoints, frequencies), np.nan, parameters)
    return Gruneisen(qpoints, weights, frequencies, parameters)


def check_strains(strains: Sequence[float] | np.ndarray) -> None:
    """Refuse volume strains that an equation of state cannot use.

    Raises:
      InputError: fewer than 5, or one of -1 or less.
    """
    if len(strains) < MIN_VOLUMES or min(strains) <= -1:
        raise InputError(
            f"volume strains {list(strains)}: expected at least {MIN_VOLUMES}, all above -1, for an equation of state"
        )


def quasi_harmonic(
    phonons: list[Phonopy],
    energies: np.ndarray,
    *,
    temperatures: npt.ArrayLike | None = None,
    mesh: Sequence[int] = (21, 21, 21),
) -> QHAResult:
    """Thermal expansion, bulk modulus and C_P by phonopy's quasi-harmonic approximation.

    Args:
      phonons, energies: of a `series` of at least 5 volumes.
      temperatures: K, ascending; default 0, 10, ..., 1000.
      mesh: q mesh, odd numbers (phonopy shifts even ones off Gamma); Gamma acoustic modes are left out.

    Raises:
      InputError: fewer than 5 volumes.
    """
    if len(phonons) < MIN_VOLUMES:
        raise InputError(f"{len(phonons)} volumes: expected at least {MIN_VOLUMES} for an equation of state")
    kelvin = np.arange(0.0, 1011.0, 10.0) if temperatures is None else np.asarray(temperatures, float)
    return phonopy.run_qha(phonons, kelvin, internal_energies=energies, mesh=mesh, exclude_gamma_acoustic=True)
