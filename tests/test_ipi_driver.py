"""The driver as i-PI calls it, without i-PI: units, columns of the cell, one structure and lists."""

import ase.io
import numpy as np
import pytest
from ase.units import Bohr, Hartree

from equijax.ipi_driver import EquijaxDriver
from tests.samples import attached


def test_answers_in_atomic_units(student, folder):
    file = folder / "train.extxyz"
    driver = EquijaxDriver(str(folder / "model"), str(file), verbosity="high")
    images = ase.io.read(file, ":2")
    cells, positions = [a.cell.array.T / Bohr for a in images], [a.positions / Bohr for a in images]
    answers = driver(cells, positions)
    for atoms, (energy, forces, virial, extras) in zip(images, answers, strict=True):
        expected = attached(student, atoms)
        assert energy * Hartree == pytest.approx(expected.get_potential_energy(), rel=1e-12)
        np.testing.assert_allclose(forces * Hartree / Bohr, expected.get_forces(), rtol=0, atol=1e-12)
        stress = -virial * Hartree / atoms.cell.volume
        np.testing.assert_allclose(stress, expected.get_stress(voigt=False), rtol=0, atol=1e-12)
        assert extras == ""
    np.testing.assert_array_equal(driver(cells[0], positions[0])[1], answers[0][1])
