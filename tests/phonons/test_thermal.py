"""Harmonic thermal properties: classical and low-temperature limits, S = -dF/dT."""

import numpy as np
import pytest

from equijax.phonons import thermal
from equijax.units import KB_EV_PER_K, KJ_PER_MOL_PER_EV, THZ_EV

GAS = 1e3 * KB_EV_PER_K * KJ_PER_MOL_PER_EV  # J/K/mol
Q = np.array([[0.25, 0.0, 0.0], [0.5, 0.5, 0.0]])
V = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]])


def test_classical_limit_and_zero_point():
    found = thermal.harmonic(Q, V, temperatures=[0.0, 1e5])
    np.testing.assert_allclose(found.heat_capacity, [0.0, 6 * GAS], rtol=1e-6)
    np.testing.assert_allclose(found.free_energy[0], 0.5 * V.sum(1).mean() * THZ_EV * KJ_PER_MOL_PER_EV)
    assert found.entropy[0] == 0.0


def test_entropy_and_heat_capacity_are_derivatives_of_the_free_energy():
    T = np.linspace(50.0, 400.0, 3501)
    found = thermal.harmonic(Q, V, temperatures=T)
    np.testing.assert_allclose(-1e3 * np.gradient(found.free_energy, T)[1:-1], found.entropy[1:-1], rtol=1e-6)
    np.testing.assert_allclose((T * np.gradient(found.entropy, T))[1:-1], found.heat_capacity[1:-1], rtol=1e-5)


def test_weights_repeat_a_q_vector():
    weighted = thermal.harmonic(Q, V, weights=[1.0, 3.0], temperatures=[150.0])
    repeated = thermal.harmonic(Q[[0, 1, 1, 1]], V[[0, 1, 1, 1]], temperatures=[150.0])
    np.testing.assert_allclose(weighted.free_energy, repeated.free_energy)


def test_acoustic_modes_at_gamma_and_imaginary_ones_are_left_out_and_counted():
    q = np.array([[0.0, 0.0, 1.0], [0.5, 0.0, 0.0]])
    v = np.array([[-1e-4, 2e-5, 1e-5, 4.0, 5.0, 6.0], [-0.5, 1.0, 2.0, 3.0, 4.0, 5.0]])
    found = thermal.harmonic(q, v, temperatures=[300.0])
    assert found.gamma_acoustic_excluded == 3
    assert found.imaginary_excluded == pytest.approx(1 / 9)
    assert thermal.gamma_acoustic(q, v).sum(1).tolist() == [3, 0]


def test_csv_and_errors(tmp_path):
    thermal.harmonic(Q, V).write_csv(tmp_path / "t.csv")
    rows = (tmp_path / "t.csv").read_text().splitlines()
    assert len(rows) == 102 and rows[0].startswith("temperature_K,free_energy_kJ/mol") and rows[-1].startswith("1000,")
    with pytest.raises(ValueError, match="-5"):
        thermal.harmonic(Q, V, temperatures=[-5.0])
    with pytest.raises(ValueError, match="1 weights"):
        thermal.harmonic(Q, V, weights=[1.0])
