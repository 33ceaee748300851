"""Distortions: commensurate cells, order parameters, the energy of small ones."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from equijax import testing
from equijax.config import Compute
from equijax.phonons import dynamical, order_parameters
from equijax.phonons import dynamical as bloch
from equijax.phonons.order_parameters import OrderParameter

CONFIG = testing.random_config(
    channels=2, r_max=3.5, correlation=(2, 2), max_ell=1, num_radial=4, radial_mlp=(8,), readout_mlp=4
)


@pytest.mark.parametrize(
    ("qpoints", "multiple"),
    [
        ([[0, 0, 0]], 1),
        ([[0.5, 0.5, 0.5]], 2),
        ([[0.5, 0, 0], [0, 0.5, 0]], 4),
        ([[0.5, 0.5, 0], [0, 0.5, 0.5]], 4),
        ([[1 / 3, 1 / 3, 0]], 3),
        ([[0.25, 0.5, 0], [0, 0, 1 / 3]], 12),
    ],
)
def test_commensurate_cell_is_the_smallest(qpoints, multiple):
    cell = np.array([[0, 2.0, 2.1], [2.0, 0, 2.1], [2.0, 2.0, 0]])
    matrix = order_parameters.commensurate_cell(np.array(qpoints, float), cell)
    assert round(np.linalg.det(matrix)) == multiple
    phases = np.array(qpoints) @ matrix.T
    np.testing.assert_allclose(phases, np.rint(phases), atol=1e-9)


def test_commensurate_cell_refuses_irrational_q():
    with pytest.raises(ValueError, match="common cell"):
        order_parameters.commensurate_cell(np.array([[0.1234567, 0, 0]]), np.eye(3), limit=8)


def test_energy_of_a_small_distortion_is_half_omega_squared_amplitude_squared():
    """E = w^2 Q^2 / 2 per primitive cell in the smallest commensurate cell, at q without and with 2q = G."""
    ff, atoms = testing.random_forcefield(CONFIG), bulk("NaCl", "rocksalt", a=5.0)
    for q in ([1 / 3, 0, 0], [0.5, 0.5, 0.0]):
        D = dynamical.dynamical_matrices(ff, atoms, qpoints=[q])[0]
        values, vectors = np.linalg.eigh(D)
        order = OrderParameter(np.array([q]), vectors[:, -1].reshape(1, 2, 3), 0.0)
        matrix = order_parameters.commensurate_cell(np.array([q]), atoms.cell.array)
        cell, u = order_parameters.displaced(atoms, order, direction=[1.0], matrix=matrix)
        images = [cell.copy() for _ in range(3)]
        h = 0.05
        for image, Q in zip(images, (-h, 0.0, h), strict=True):
            image.positions += Q * u
        e = [found.energy for found in ff.evaluate(images, compute=Compute())]
        second = (e[0] - 2 * e[1] + e[2]) / h**2 * len(atoms) / len(cell)
        np.testing.assert_allclose(second, values[-1], rtol=1e-3)


def test_order_parameters_of_a_star(monkeypatch):
    """A simple cubic crystal soft at X: three arms, transverse modes two-fold, one pattern each as 2q = G."""
    atoms = Atoms("Na", cell=[4.0] * 3, pbc=True)

    def matrices(ff, atoms, *, qpoints, symprec, compute):
        along = np.isclose(np.asarray(qpoints), 0.5)
        stiff = np.where(along.sum(1, keepdims=True) == 1, np.where(along, 1.0, -0.1), 1.0)
        return np.array([np.diag(row).astype(complex) for row in stiff])

    monkeypatch.setattr(bloch, "symmetric_matrices", matrices)
    _, frequencies, orders = order_parameters.order_parameters(None, atoms, mesh=(2, 2, 2), threshold=0.2, symprec=1e-5)
    assert len(orders) == 1 and orders[0].modes.shape == (6, 1, 3)
    assert orders[0].frequency == pytest.approx(frequencies.min())
    # single displacements of planes along one axis, doubling the cell
    kept = order_parameters.distinct(atoms, orders[0], max_atoms=2, num_random=0, seed=0)
    assert {len(cell) for _, cell, *_ in kept} == {2} and len(kept) == 2  # along [100] and [110]
    np.testing.assert_allclose([np.sqrt((22.99 * u**2).sum() / 2) for *_, u, _ in kept], 1.0, rtol=1e-3)
