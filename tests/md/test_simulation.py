"""Dynamics: what is conserved, distributions of the ensembles, fixed atoms, where atoms and cells stand."""

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms, FixCartesian

from convert.__main__ import main as convert
from equijax import units
from equijax.constraints import free_components
from equijax.forcefield import ForceField
from equijax.md import FS, MDConfig, energy_neighbor, simulation, thermal_momenta
from equijax.md import run as md
from equijax.testing import TOLERANCE, random_config, random_forcefield
from tests.md.samples import MINI, run
from tests.samples import SMALL, folded

jax_md = pytest.importorskip("jax_md", reason="needs the md extra")
space = jax_md.space


def test_energy_drift(optimised, loaded, tmp_path, metal):
    """NVE in float64 at 1 fs: less than 1e-5 eV/atom/ps."""
    log = run(tmp_path, metal, "nve", 4000, 10, "--dtype", "float64")
    drift = np.polyfit(log["time_ps"], log["total_eV"], 1)[0] / 32
    assert abs(drift) < 1e-5, f"{drift} eV/atom/ps"
    assert np.ptp(log["kinetic_eV"]) > 100 * np.ptp(log["total_eV"])


def test_energy_drift_of_a_mace(optimised, tmp_path):
    """The bundled model, 1 ps of NVE at 1 fs: less than 1e-5 eV/atom/ps in float32, too."""
    convert([str(MINI), str(tmp_path / "model")])
    ase.io.write(tmp_path / "salt.extxyz", bulk("NaCl", "rocksalt", a=5.69, cubic=True))
    log = run(
        tmp_path / "out",
        tmp_path / "salt.extxyz",
        "nve",
        1000,
        10,
        "--dtype",
        "float32",
        "--temperature",
        600,
        "--model",
        tmp_path / "model",
    )
    drift = np.polyfit(log["time_ps"], log["total_eV"], 1)[0] / 8
    assert abs(drift) < 1e-5, f"{drift} eV/atom/ps"
    assert np.ptp(log["kinetic_eV"]) > 100 * np.ptp(log["total_eV"])


def test_specialised_dynamics_equals_the_plain_one(tmp_path, monkeypatch):
    ff = random_forcefield(random_config(**SMALL))
    ff.variables["constants"]["scale"] = np.array([10.0])  # forces of about 0.1 eV/A
    monkeypatch.setattr(md, "load", lambda path, head: ff)
    # without the measurement of its errors, which takes longer than the dynamics
    monkeypatch.setattr(
        ForceField, "specialise", lambda self, numbers: folded(self, tuple(sorted(set(numbers.tolist()))))
    )
    ase.io.write(tmp_path / "salt.extxyz", bulk("NaCl", "rocksalt", a=5.69, cubic=True))
    options = ("nve", 40, 10, "--dtype", "float64")
    plain = run(tmp_path / "plain", tmp_path / "salt.extxyz", *options)
    fast = run(tmp_path / "fast", tmp_path / "salt.extxyz", *options, "--fast")
    np.testing.assert_allclose(fast["potential_eV"], plain["potential_eV"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(fast["temperature_K"], plain["temperature_K"], rtol=0, atol=0.005)


@pytest.mark.parametrize("thermostat, dof", [("nose-hoover", 21), ("langevin", 24)])
def test_temperature_distribution(optimised, loaded, tmp_path, thermostat, dof):
    """Canonical: <T> as asked, and T is distributed as chi^2 / dof: var(T)/<T>^2 = 2/dof, skewness sqrt(8/dof).

    Eight atoms: three degrees of freedom more or less are an eighth of the variance and of the mean. Statistical errors
    of 1,250 independent temperatures: 0.9 % of the mean, 4.4 % of the variance, 18 % of the skewness. Tolerances are
    four of them: trajectories are chaotic, so every compiler draws a sample of its own.
    """
    crystal = tmp_path / "crystal.extxyz"
    ase.io.write(crystal, bulk("Al", a=4.3, cubic=True) * (2, 1, 1))
    logs = run(
        tmp_path,
        crystal,
        "nvt",
        1500,
        20,
        "--thermostat",
        thermostat,
        "--thermostat-time",
        30,
        "--timestep",
        2,
        "--replicas",
        25,
    )
    T = np.concatenate([log["temperature_K"][25:] for log in logs])
    assert T.mean() == pytest.approx(300.0, rel=0.036)
    assert T.var() / T.mean() ** 2 == pytest.approx(2 / dof, rel=0.18)
    assert ((T - T.mean()) ** 3).mean() / T.std() ** 3 == pytest.approx(np.sqrt(8 / dof), rel=0.7)


def test_volume_under_pressure(optimised, loaded, tmp_path, morse):
    """NPT of a cool crystal has the volume of the cell relaxed under the same pressure."""
    pressure = 2.0  # GPa
    crystal = tmp_path / "crystal.extxyz"
    ase.io.write(crystal, bulk("Al", a=4.04, cubic=True) * (2, 2, 2))
    log = run(
        tmp_path,
        crystal,
        "npt",
        5000,
        10,
        "--temperature",
        100,
        "--pressure",
        pressure,
        "--barostat-time",
        500,
        "--thermostat-time",
        50,
        "--timestep",
        2,
    )
    atoms = ase.io.read(crystal)
    T, volume = atoms.cell.array.T, atoms.get_volume()
    neighbor_fn, energy_fn = energy_neighbor(space.periodic_general(T)[0], T, ff=morse, numbers=atoms.numbers, skin=2.0)
    R = jnp.asarray(atoms.get_scaled_positions(), jnp.float32)
    neighbors = neighbor_fn.allocate(R)
    scales = jnp.linspace(0.94, 1.03, 181)
    energies = jax.jit(jax.vmap(lambda x: energy_fn(R, neighbors, box=x * jnp.asarray(T))))(scales)
    enthalpy = np.asarray(energies) + pressure / units.GPA_PER_EV_A3 * volume * np.asarray(scales) ** 3
    relaxed = volume * float(scales[enthalpy.argmin()]) ** 3
    half = len(log["volume_A3"]) // 2
    assert log["volume_A3"][half:].mean() == pytest.approx(relaxed, rel=0.02)
    assert log["pressure_GPa"][half:].mean() == pytest.approx(pressure, abs=0.5)
    assert np.ptp(log["conserved_eV"]) < 0.01 * np.ptp(log["total_eV"])


@pytest.mark.parametrize("ensemble", ["nve", "nvt --thermostat langevin", "nvt --thermostat nose-hoover"])
def test_fixed_atoms_stay_and_are_no_heat(loaded, tmp_path, metal, ensemble):
    """Two layers fixed, one atom held along z: positions to the last bit, momenta zero, dof that of the rest."""
    atoms = ase.io.read(metal)
    fixed = np.flatnonzero(atoms.positions[:, 2] < 3.0)
    atoms.set_constraint([FixAtoms(fixed), FixCartesian([31], (False, False, True))])
    ase.io.write(tmp_path / "fixed.traj", atoms)
    name, *options = ensemble.split()
    log = run(tmp_path / "out", tmp_path / "fixed.traj", name, 60, 2, *options)
    frames = ase.io.read(tmp_path / "out" / "trajectory.extxyz", ":")
    free = free_components(atoms)
    for frame in frames:
        np.testing.assert_allclose(frame.positions[~free], atoms.positions[~free], rtol=0, atol=1e-8)
        assert (frame.get_momenta()[~free] == 0).all() and (frame.get_momenta()[free] != 0).all()
    assert np.abs(frames[-1].positions - atoms.positions)[free].max() > 0.01
    dof = free.sum()
    np.testing.assert_allclose(log["temperature_K"], 2 * log["kinetic_eV"] / (dof * units.KB_EV_PER_K), rtol=1e-5)
    assert log["temperature_K"][0] == pytest.approx(300.0, rel=1e-5)
    if "langevin" not in ensemble:
        assert np.ptp(log["conserved_eV"]) < 0.02 * np.ptp(log["kinetic_eV"])


def test_atoms_far_from_the_origin_move_alike(loaded, tmp_path, metal):
    """Float32 from 1e5 A away, and with atoms many cells away: the same trajectory, given back where it started."""
    atoms = ase.io.read(metal)
    atoms.rattle(0.05, seed=1)
    atoms.set_momenta(thermal_momenta(atoms, 300.0, seed=0))
    cells = np.random.default_rng(0).integers(-9999, 9999, (len(atoms), 3))
    moves = {"near": np.zeros((1, 3)), "far": np.array([[1e5, -1e5, 3e4]]), "unwrapped": cells @ atoms.cell.array}
    frames = {}
    for name, move in moves.items():
        moved = atoms.copy()
        moved.positions += move
        ase.io.write(tmp_path / f"{name}.traj", moved)
        run(tmp_path / name, tmp_path / f"{name}.traj", "nve", 20, 2)
        frames[name] = ase.io.read(tmp_path / name / "trajectory.extxyz", ":")
    for name, move in moves.items():
        for one, other in zip(frames["near"], frames[name], strict=True):
            np.testing.assert_allclose(other.get_forces(), one.get_forces(), rtol=0, atol=1e-4)
            np.testing.assert_allclose(other.positions - move, one.positions, rtol=0, atol=1e-4)


def test_left_handed_cells(loaded, tmp_path, metal):
    """jax_md takes the determinant of the cell for its volume: a left-handed one under pressure would grow."""
    left = ase.io.read(metal)
    left.set_cell(left.cell.array[[1, 0, 2]])
    ase.io.write(tmp_path / "left.extxyz", left)
    logs = [
        run(tmp_path / name, path, "npt", 20, 1, "--pressure", 5, "--temperature", 100)
        for name, path in (("right", metal), ("left", tmp_path / "left.extxyz"))
    ]
    assert logs[0]["volume_A3"][-1] < logs[0]["volume_A3"][0]
    for name in ("volume_A3", "pressure_GPa", "potential_eV"):
        np.testing.assert_allclose(logs[1][name], logs[0][name], rtol=1e-4, atol=1e-3)


def test_dispersion_is_the_calculator_s_and_conserves_energy(tiny, tmp_path):
    """Velocity Verlet over 20 fs of two atoms, three lattice images of each on either side.

    Its cutoff lies between two shells of the crystal, at 7.98 and 8.46 A: no pair crosses it.
    """
    pytest.importorskip("torch_dftd", reason="needs the d3 extra")
    ff, exact = tiny.with_dispersion("pbe", cutoff=8.2), TOLERANCE["float64"]
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
