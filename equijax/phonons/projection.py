"""symfc's projection of force constants onto what symmetry demands, for crystals symmetric to a tolerance."""

from typing import NamedTuple

import numpy as np
from phonopy.harmonic.displacement import DisplacementDataset
from phonopy.interface.fc_calculator import get_fc2
from phonopy.interface.symfc import symmetrize_by_projector
from phonopy.structure.atoms import PhonopyAtoms
from phonopy.structure.cells import Primitive
from phonopy.structure.symmetry import Symmetry


class Cells(NamedTuple):
    """What force constants belong to: the cells and symmetry of a Phonopy or Phono3py object."""

    supercell: PhonopyAtoms
    primitive: Primitive
    symmetry: Symmetry


def exact(cell: PhonopyAtoms, symmetry: Symmetry) -> PhonopyAtoms:
    """The cell with lattice vectors that obey its symmetry to rounding.

    symfc drops force constants, without a word, where operations change lengths by parts in 10^7: less than a file with
    six digits does.
    """
    vectors = cell.cell
    metric = vectors @ vectors.T
    mean = np.mean([W.T @ metric @ W for W in symmetry.symmetry_operations["rotations"]], axis=0)
    inverse = np.linalg.inv(vectors)
    squares, axes = np.linalg.eigh(inverse @ mean @ inverse.T)  # of the symmetric stretch that takes one to the other
    refined = cell.copy()
    refined.cell = vectors @ (axes * np.sqrt(squares)) @ axes.T
    return refined


def project(values: np.ndarray, cells: Cells) -> np.ndarray:
    """Force constants with sum rules, permutations and space group imposed at once.

    Args:
      values: [n_p or n_s, n_s, 3, 3] or [n_p or n_s, n_s, n_s, 3, 3, 3].
      cells: see `Cells`.
    """
    order = values.ndim // 2
    cell = exact(cells.supercell, cells.symmetry)
    return symmetrize_by_projector(cell, values, order, primitive=cells.primitive, symmetry=cells.symmetry)


def fit(dataset: DisplacementDataset, cells: Cells) -> np.ndarray:
    """Force constants [n_p, n_s, 3, 3] that explain forces of random displacements best."""
    cell = exact(cells.supercell, cells.symmetry)
    return get_fc2(cell, dataset, cells.primitive, fc_calculator="symfc", is_compact_fc=True, symmetry=cells.symmetry)
