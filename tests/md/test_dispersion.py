"""Dynamics of a model with dispersion: its lists reach farther than its network reads."""

import ase.io
import h5py
import numpy as np
import pytest
from ase.build import bulk

from equijax import units
from equijax.md import run as md
from equijax.testing import TOLERANCE
from tests.md.samples import run

pytest.importorskip("torch_dftd", reason="needs the d3 extra")
CUTOFF_A = 8.2  # between two shells of the crystal, at 7.98 and 8.46 A: no pair crosses it in the run


def test_it_is_the_calculator_s_and_conserves_energy(tiny, monkeypatch, tmp_path):
    """Three lattice images of each atom on either side."""
    ff = tiny.with_dispersion("pbe", cutoff=CUTOFF_A)
    monkeypatch.setattr(md, "load", lambda path, head: ff)
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    ase.io.write(tmp_path / "salt.extxyz", atoms)
    options = ("--dtype", "float64", "--temperature", 100, "--trajectory", "h5")
    log = run(tmp_path / "out", tmp_path / "salt.extxyz", "nve", 20, 1, *options)
    assert np.ptp(log["kinetic_eV"]) > 100 * np.ptp(log["total_eV"])

    atoms.calc, exact = ff.calculator("float64"), TOLERANCE["float64"]
    with h5py.File(tmp_path / "out" / "trajectory.h5") as file:
        frames = {name: file[f"particles/all/{name}/value"][:] for name in ("position", "velocity", "force")}
    for step, (positions, velocities, forces) in zip((0, 20), zip(*frames.values(), strict=True), strict=True):
        atoms.positions = positions
        assert log["potential_eV"][step] == pytest.approx(atoms.get_potential_energy(), abs=exact["energy"])
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=exact["forces"])
        virial = log["pressure_GPa"][step] / units.GPA_PER_EV_A3 - log["kinetic_eV"][step] / atoms.get_volume() / 1.5
        assert virial == pytest.approx(-atoms.get_stress()[:3].mean(), abs=exact["stress"])
