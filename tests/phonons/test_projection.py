"""Cells made exactly symmetric before force constants are projected."""

import numpy as np
from ase.build import bulk

from equijax.phonons import force_constants, projection


def test_exact_cell():
    """Orthogonal rotations, and a cell that has them already is left alone."""
    cell = bulk("Mg", "hcp", a=3.2, c=5.2)
    phonon = force_constants.make_phonon(cell, (1, 1, 1))
    np.testing.assert_allclose(projection.exact(phonon.supercell, phonon.symmetry).cell, cell.cell.array, atol=1e-12)
    cell.set_cell(cell.cell.array + 1e-4 * np.random.default_rng(0).normal(size=(3, 3)), scale_atoms=True)
    phonon = force_constants.make_phonon(cell, (1, 1, 1), symprec=1e-2)
    vectors = projection.exact(phonon.supercell, phonon.symmetry).cell.T
    assert len(phonon.symmetry.symmetry_operations["rotations"]) == 24
    for W in phonon.symmetry.symmetry_operations["rotations"]:
        R = vectors @ W @ np.linalg.inv(vectors)
        np.testing.assert_allclose(R @ R.T, np.eye(3), rtol=0, atol=1e-12)
