"""Dynamics of a model with dispersion: its lists reach farther than its network reads."""

import ase.io
import jax
import numpy as np
import pytest
from ase.build import bulk

from equijax import units
from equijax.md import FS, MDConfig, simulation
from equijax.testing import TOLERANCE

pytest.importorskip("torch_dftd", reason="needs the d3 extra")
pytest.importorskip("jax_md", reason="needs the md extra")
CUTOFF_A = 8.2  # between two shells of the crystal, at 7.98 and 8.46 A: no pair crosses it in the run


def test_it_is_the_calculator_s_and_conserves_energy(tiny, tmp_path):
    """Velocity Verlet over 20 fs of two atoms, three lattice images of each on either side."""
    ff, exact = tiny.with_dispersion("pbe", cutoff=CUTOFF_A), TOLERANCE["float64"]
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    ase.io.write(tmp_path / "salt.extxyz", atoms)
    atoms.calc = ff.calculator("float64")
    with jax.enable_x64(True):
        config = MDConfig(tmp_path / "salt.extxyz", tmp_path, ensemble="nve", dtype="float64", temperature=100)
        system = simulation.prepare(config, ff)
        state, neighbors = system.init(*system.start), system.neighbor_fn.allocate(system.start[0])
        observed, update = simulation.observe_all(system), jax.jit(system.neighbor_fn.update)

        def observe(state, neighbors):
            return simulation.Observed(*map(np.asarray, observed(state, neighbors, system.variables)))

        seen = [observe(state, neighbors)]
        for _ in range(20):
            momenta = state.momentum + 0.5 * FS * seen[-1].forces
            state = state.set(position=state.position + FS * momenta / state.mass)
            neighbors = update(state.position, neighbors)
            state = state.set(momentum=momenta + 0.5 * FS * observe(state, neighbors).forces)
            seen.append(observe(state, neighbors))
    kinetic, total = (np.ptp([getattr(s, name) for s in seen]) for name in ("kinetic_eV", "total_eV"))
    assert kinetic > 100 * total
    for s in (seen[0], seen[-1]):
        atoms.positions = s.positions + system.home @ atoms.cell.array
        assert s.potential_eV + system.e0 == pytest.approx(atoms.get_potential_energy(), rel=0, abs=exact["energy"])
        np.testing.assert_allclose(s.forces, atoms.get_forces(), rtol=0, atol=exact["forces"])
        pressure = s.pressure_GPa / units.GPA_PER_EV_A3 - s.kinetic_eV / s.volume_A3 / 1.5
        assert pressure == pytest.approx(-atoms.get_stress()[:3].mean(), rel=0, abs=exact["stress"])
