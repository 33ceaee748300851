"""Phonons of a committee: force constants are the mean of the members', frequencies spread as theirs do."""

import jax
import numpy as np
from ase.build import bulk

from equijax import plots
from equijax.adapters import committee
from equijax.config import Compute
from equijax.phonons import force_constants, uncertainty
from equijax.phonons.thermal import harmonic
from tests.adapters.samples import trained

FACTOR = 3.0


def test_force_constants_are_the_mean_of_the_members(student, tmp_path):
    stacked = jax.tree.map(lambda *x: np.stack(x), *(trained(student, seed=m) for m in range(2)))
    document = {"calibration": {"forces": {"factor": FACTOR}}}
    committee.save(tmp_path / "committee", stacked, base=student, document=document)
    together = committee.load_committee(tmp_path / "committee")
    phonon, direct = (force_constants.make_phonon(bulk("NaCl", "rocksalt", a=5.6), (2, 2, 2)) for _ in range(2))
    found = uncertainty.apart(together, phonon, copy=phonon.replicate, full=False, compute=Compute())
    expected = force_constants.force_constants(together, direct)  # derivatives of the mean energy
    np.testing.assert_allclose(phonon.force_constants, expected, rtol=0, atol=1e-10)
    assert found.factor == FACTOR and len(found.phonons) == 2
    meshes = [p.run_mesh((2, 2, 2), is_gamma_center=True) for p in found.phonons]
    frequencies, weights = [m.frequencies for m in meshes], meshes[0].weights
    temperatures = np.array([100.0, 300.0])
    thermal = [harmonic(m.qpoints, m.frequencies, weights=weights, temperatures=temperatures) for m in meshes]
    spread = uncertainty.write(tmp_path, found, mesh=(2, 2, 2), temperatures=temperatures)
    half = 0.5 * np.abs(frequencies[0] - frequencies[1])  # the standard deviation of two
    assert np.isclose(spread.largest_THz, FACTOR * half.max()) and spread.largest_THz > 0
    assert np.isclose(spread.mean_THz, FACTOR * np.average(half.mean(1), weights=weights))
    heat = [FACTOR * 0.5 * abs(thermal[0].heat_capacity[i] - thermal[1].heat_capacity[i]) for i in range(2)]
    assert np.isclose(spread.heat_capacity_300K, heat[1])
    rows = np.loadtxt(tmp_path / "thermal_std.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(rows[:, 3], heat, rtol=1e-8)
    assert "2 members disagree" in uncertainty.text(spread)
    plots.draw_bands(tmp_path / "plain.png", phonon)
    plots.draw_bands(tmp_path / "bands.png", phonon, apart=found)
    assert (tmp_path / "bands.png").read_bytes() != (tmp_path / "plain.png").read_bytes()
