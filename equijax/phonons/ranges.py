"""How far force constants reach, and what supercell would hold them."""

from typing import NamedTuple

import ase
import numpy as np
from phonopy import Phonopy

from equijax.phonons.dynamical import primitive
from equijax.phonons.force_constants import compact
from equijax.potential import Potential


class Range(NamedTuple):
    """How far force constants reach, and the supercell that the finite route would have needed to hold them."""

    reach_A: float
    supercell: tuple[int, int, int]  # multiples of the primitive cell
    atoms: int  # in it


def interaction_range(ff: Potential, atoms: ase.Atoms) -> Range:
    """How far force constants of a model can reach at all.

    Messages travel T r_max in T interactions and two atoms couple through a third: no force constant reaches beyond
    2 T r_max. Dispersion couples the neighbours of two atoms that attract each other, within three of its cutoffs,
    though it decays as r^-6. In a cell whose parallel faces are twice the reach apart, an atom couples to one image of
    every other.

    Args:
      ff: a ForceField.
      atoms: the primitive cell.
    """
    config = ff.config
    far = 0.0 if config.dispersion is None else 3 * config.dispersion.cutoff
    return _holding(atoms, max(2 * config.num_interactions * config.r_max, far))


def measured_range(phonon: Phonopy, tolerance: float = 1e-3) -> Range:
    """How far the force constants of an object above `tolerance` (eV/A^2) reach.

    To be trusted only as far as half of its supercell.
    """
    distance, size = decay(phonon)
    return _holding(primitive(phonon), float(distance[size > tolerance].max(initial=0.0)))


def _holding(atoms: ase.Atoms, reach: float) -> Range:
    heights = 1.0 / np.linalg.norm(atoms.cell.reciprocal().array, axis=1)  # between parallel faces, A
    multiples = np.maximum(1, np.ceil(2 * reach / heights - 1e-9)).astype(int)
    return Range(reach, tuple(multiples.tolist()), int(len(atoms) * multiples.prod()))


def decay(phonon: Phonopy) -> tuple[np.ndarray, np.ndarray]:
    """Distance (A) and largest entry (eV/A^2) of the force constants of every pair, sorted by distance."""
    fc, cell = compact(phonon), phonon.primitive
    vectors, multiplicity = cell.get_smallest_vectors()  # [.., 3] fractional; [n_s, n_p, 2] (number, first)
    first = multiplicity[..., 1].T
    distance = np.linalg.norm(vectors[first] @ cell.cell, axis=-1).ravel()
    size = np.abs(fc).max(axis=(2, 3)).ravel()
    order = np.argsort(distance)
    return distance[order], size[order]
