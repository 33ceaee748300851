"""Molecular dynamics: the neighbour list against the host's, forces against the calculator, ensembles, restarts."""

import csv
import re
from importlib import resources
from pathlib import Path

import ase.io
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian

from convert.__main__ import main as convert
from equijax import graph, units
from equijax.constraints import free_components
from equijax.forcefield import ForceField
from equijax.md import FS, Stepper, energy_neighbor, neighbours, potential, run_blocks, thermal_momenta
from equijax.md import blocks as block_module
from equijax.md import run as md
from equijax.programs.md import main
from equijax.testing import TOLERANCE, random_config, random_forcefield, rattled

jax_md = pytest.importorskip("jax_md", reason="needs the md extra")
space, simulate = jax_md.space, jax_md.simulate

# the cheapest model with every kind of layer: programs of it compile in seconds
TINY = {"channels": 2, "lmax": 1, "species": (11, 14, 17), "max_ell": 1, "correlation": (2, 2), "num_radial": 3,
        "radial_mlp": (8, 8), "readout_mlp": 4}  # fmt: skip


MINI = resources.files("equijax") / "assets" / "mini.model"


class Morse(ForceField):
    """A pair potential of aluminium with the interface of a force field: statistics need steps, not networks."""

    def node_energies(self, variables, vectors, inputs):
        """Half of D ((1 - exp(-a (r - r0)))^2 - 1) per pair, taken smoothly to zero at the cutoff."""
        r = jnp.sqrt((vectors**2).sum(-1))
        smooth = jnp.clip(1 - (r / self.config.r_max) ** 2, 0.0) ** 3
        return 0.5 * (0.6 * ((1 - jnp.exp(-1.2 * (r - 3.1))) ** 2 - 1) * smooth).sum(1)


@pytest.fixture(scope="module")
def tiny():
    ff = random_forcefield(random_config(**TINY))
    ff.variables["constants"]["scale"] = np.array([100.0])  # forces of about 1 eV/A
    return ff


@pytest.fixture(scope="module")
def morse():
    config = random_config(species=(13,), r_max=5.0)
    return Morse(config, {"constants": {"atomic_energies": np.full((1, 1), -2.0)}}, {})


@pytest.fixture
def loaded(monkeypatch, morse):
    """The command line loads the pair potential, whatever model it is given."""
    monkeypatch.setattr(md, "load", lambda path, head: morse)


@pytest.fixture(scope="module")
def metal(tmp_path_factory):
    path = tmp_path_factory.mktemp("structure") / "metal.extxyz"
    ase.io.write(path, bulk("Al", a=4.3, cubic=True) * (2, 2, 2))
    return path


def triclinic(repeat=(1, 1, 1)):
    atoms = rattled(repeat=repeat)
    atoms.set_cell(
        atoms.cell.array @ np.array([[1.0, 0.2, -0.1], [0.15, 0.9, 0.3], [0.0, -0.1, 1.1]]), scale_atoms=True
    )
    return atoms


def open_slab():
    atoms = rattled()
    atoms.pbc = (True, True, False)
    return atoms


def droplets():
    """Three crystallites in a cell that is almost all vacuum."""
    atoms = rattled()
    for shift in ([1300.0, 0, 0], [2990.0, 700.0, 2998.0]):
        other = rattled(seed=2)
        other.positions += shift
        atoms += other
    atoms.set_cell([[3000.0, 0, 0], [500.0, 2900.0, 0], [0, 300.0, 3000.0]])
    return atoms


CELLS = {
    "vacuum": droplets(),
    "small": rattled(),
    "triclinic": triclinic(),
    "bins": triclinic((4, 4, 5)),
    "slab": open_slab(),
}


def pairs_on_device(atoms, cutoff):
    """Sorted (receiver, sender, distance) and whether reverse is the opposite of every slot."""
    where = neighbours.Space(True, tuple(bool(p) for p in atoms.pbc), cutoff, 0.4)
    with jax.enable_x64(True):
        fns = neighbours.neighbor_list(atoms.cell.array.T, where)
        s, T = jnp.asarray(atoms.get_scaled_positions(wrap=False) + 2.0 * atoms.pbc), jnp.asarray(atoms.cell.array.T)
        neighbors = fns.allocate(s)
        edges = jax.jit(lambda s, T, neighbors: neighbours.within(s, T, neighbors=neighbors, space=where))(
            s, T, neighbors
        )
        assert bool(edges.complete) and not bool(neighbors.did_buffer_overflow)
        senders, reverse, mask = (
            np.asarray(getattr(edges, k)).reshape(len(atoms), -1) for k in ("senders", "reverse", "mask")
        )
        v = np.asarray(s)[:, None] - np.asarray(s)[senders] - np.asarray(edges.shifts)
    v = v @ atoms.cell.array
    slots = v.shape[1]
    np.testing.assert_allclose(v.reshape(-1, 3)[reverse][mask], -v[mask], atol=1e-12)
    np.testing.assert_array_equal(reverse.reshape(-1)[reverse], np.arange(len(atoms) * slots).reshape(reverse.shape))
    n, k = np.nonzero(mask)
    rows = np.stack([n, senders[n, k], np.linalg.norm(v[n, k], axis=1).round(9)], 1)
    return rows[np.lexsort(rows.T[::-1])]


@pytest.mark.parametrize("name", CELLS)
def test_list_equals_the_host_list(name):
    atoms = CELLS[name]
    edges = graph.neighbour_list(atoms, 5.0)
    v = atoms.positions[edges.receivers] - atoms.positions[edges.senders] - edges.shifts @ atoms.cell.array
    rows = np.stack([edges.receivers, edges.senders, np.linalg.norm(v, axis=1).round(9)], 1)
    np.testing.assert_allclose(pairs_on_device(atoms, 5.0), rows[np.lexsort(rows.T[::-1])], atol=1e-8)


def test_memory_does_not_grow_with_the_volume():
    """The largest array of the program that builds the list, for one cell and for a million times its volume."""
    small = rattled(repeat=(2, 2, 2))
    large = small.copy()
    large.set_cell(small.cell * 100)
    space = neighbours.Space(False, (True,) * 3, 4.0, 0.5)

    def program(atoms):
        R, T = np.asarray(atoms.positions, np.float32), np.asarray(atoms.cell.array.T, np.float32)
        grid = neighbours.lay_out(R, T, space=space)
        return jax.make_jaxpr(lambda R, T: neighbours._build(R, T, grid, space, 40))(R, T)

    sizes = [max(v.aval.size for e in program(atoms).eqns for v in e.outvars) for atoms in (small, large)]
    assert sizes[1] <= 2 * sizes[0]


@pytest.mark.parametrize("fractional", [True, False])
def test_forces_and_stress_equal_the_calculator(tiny, fractional):
    atoms = triclinic()
    atoms.calc = tiny.calculator("float64")
    with jax.enable_x64(True):
        T = jnp.asarray(atoms.cell.array.T)
        displacement, shift = space.periodic_general(T, fractional_coordinates=fractional)
        neighbor_fn, energy_fn = energy_neighbor(displacement, T, ff=tiny, numbers=atoms.numbers)
        R = jnp.asarray(atoms.get_scaled_positions() if fractional else atoms.positions)
        neighbors = neighbor_fn.allocate(R)
        moved = shift(R, jnp.full(R.shape, -0.1))  # some atoms are wrapped: the old list must still serve

        def energy(R, strain):
            return energy_fn(R, neighbor=neighbors, perturbation=jnp.eye(3) + strain)

        derivatives = jax.jit(jax.value_and_grad(energy, argnums=(0, 1)))
        for positions in (R, moved):
            e, (gradient, virial) = derivatives(positions, jnp.zeros((3, 3)))
            np.testing.assert_allclose(-gradient, atoms.get_forces(), rtol=0, atol=TOLERANCE["float64"]["forces"])
        virial = np.asarray(virial + virial.T) / 2
    np.testing.assert_allclose(virial / atoms.get_volume(), atoms.get_stress(voigt=False), rtol=0, atol=1e-10)
    rows = [tiny.config.species.index(z) for z in atoms.numbers]
    e0 = tiny.variables["constants"]["atomic_energies"][0, rows].sum()
    assert float(e) + e0 == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def test_probe_reads_the_space():
    T = triclinic().cell.array.T
    assert potential.probe(space.periodic_general(T)[0], T) == (True, (True,) * 3)
    assert potential.probe(space.periodic_general(T, fractional_coordinates=False)[0], T) == (False, (True,) * 3)
    assert potential.probe(space.periodic(9.0)[0], 9.0 * np.eye(3)) == (False, (True,) * 3)
    assert potential.probe(space.free()[0], np.eye(3)) == (False, (False,) * 3)
    with pytest.raises(ValueError, match="pass the box the displacement was made with"):
        potential.probe(space.periodic_general(T)[0], 2 * T)


def test_unknown_element_and_thin_box(tiny):
    with pytest.raises(ValueError, match=r"atomic numbers \[26\]"):
        energy_neighbor(space.free()[0], None, ff=tiny, numbers=[26])
    T = np.diag([20.0, 20.0, 0.001])
    neighbor_fn, _ = energy_neighbor(space.periodic_general(T)[0], T, ff=tiny, numbers=[11])
    with pytest.raises(ValueError, match="box smaller than allowed"):
        neighbor_fn.allocate(jnp.zeros((1, 3)))


def test_stale_list_is_never_silently_wrong(morse, metal):
    atoms = ase.io.read(metal)
    T = atoms.cell.array.T
    neighbor_fn, energy_fn = energy_neighbor(space.periodic_general(T)[0], T, ff=morse, numbers=atoms.numbers)
    R = jnp.asarray(atoms.get_scaled_positions(), jnp.float32)
    neighbors = neighbor_fn.allocate(R)
    energy = jax.jit(energy_fn)
    assert np.isfinite(energy(R, neighbors))
    far = R.at[0].add(0.03)
    assert np.isnan(energy(far, neighbors))
    updated = jax.jit(neighbor_fn.update)(far, neighbors)
    assert bool(updated.outran) and np.isfinite(energy(far, updated))


def two_replicas(morse, metal, **changes):
    """Two NVE replicas after 40 steps in blocks of 20, from a list altered by `changes`."""
    atoms = ase.io.read(metal)
    T = atoms.cell.array.T
    displacement, shift = space.periodic_general(T)
    neighbor_fn, energy_fn = energy_neighbor(displacement, T, ff=morse, numbers=atoms.numbers)
    init, apply = simulate.nve(energy_fn, shift, 2.0 * FS)
    R = jnp.stack([jnp.asarray(atoms.get_scaled_positions(), jnp.float32)] * 2)
    mass = jnp.asarray(atoms.get_masses(), jnp.float32)
    neighbors = neighbor_fn.allocate(R)
    keys = jax.random.split(jax.random.PRNGKey(0))
    state = jax.vmap(lambda k, r, n: init(k, r, 0.05, mass=mass, neighbor=n))(keys, R, neighbors)
    if changes:
        neighbors = neighbors.replace(**changes)
    *_, (step, state, neighbors) = run_blocks(
        Stepper(apply, neighbor_fn), state, neighbors=neighbors, steps=40, block=20
    )
    assert step == 40
    return state, neighbors


def test_replicas_and_rerun_after_overflow(morse, metal):
    state, neighbors = two_replicas(morse, metal)
    assert state.position.shape == (2, 32, 3)
    assert not np.allclose(state.position[0], state.position[1], atol=1e-3)
    again, larger = two_replicas(morse, metal, slots=neighbors.slots // 2)
    assert larger.slots > neighbors.slots // 2
    np.testing.assert_allclose(again.position, state.position, atol=1e-5)


def read_log(folder):
    """The thermo log, columns by name."""
    with open(Path(folder) / "thermo.csv") as file:
        rows = list(csv.DictReader(file))
    return {k: np.array([float(r[k]) for r in rows]) for k in rows[0]}


def command(folder, structure, ensemble, steps, every, *options):
    """Arguments of the program."""
    argv = [structure, "--model", "any", "--out", folder, "--ensemble", ensemble, "--steps", steps,
            "--log-every", every, "--trajectory-every", 20 * every, "--checkpoint-every", 20 * every]  # fmt: skip
    if "--model" in options:
        del argv[1:3]
    return [str(a) for a in (*argv, *options)]


def run(folder, *arguments):
    """The thermo log of a run; of each replica where there are several."""
    assert main(command(folder, *arguments)) == 0
    replicas = sorted(Path(folder).glob("replica*"))
    return [read_log(f) for f in replicas] if replicas else read_log(folder)


@pytest.fixture
def refused(capsys):
    """Check that a run ends before it begins, in one line that says why."""

    def check(message, folder, *arguments):
        assert main(command(folder, *arguments)) == 2
        (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("equijax md:"))
        assert re.search(message, line)

    return check


@pytest.mark.parametrize("ensemble, file", [("nvt", "trajectory.extxyz"), ("npt", "trajectory.h5")])
def test_restart_is_exact(loaded, tmp_path, metal, ensemble, file):
    options = (metal, ensemble, 60, 1, "--trajectory", Path(file).suffix[1:])
    once, twice = tmp_path / "once", tmp_path / "twice"
    run(once, *options)
    run(twice, metal, ensemble, 40, 1, *options[4:])
    at_40 = (twice / "checkpoint.npz").read_bytes()
    run(twice, *options, "--restart")
    (twice / "checkpoint.npz").write_bytes(at_40)  # killed before the next one: whole frames and half of one after it
    for name in ("thermo.csv", "trajectory.extxyz") if ensemble == "nvt" else ("thermo.csv",):
        with open(twice / name, "a") as dirty:
            dirty.write((twice / name).read_text()[:1000])
    run(twice, *options, "--restart")
    a, b = (dict(np.load(folder / "checkpoint.npz")) for folder in (once, twice))
    for name in a.keys() - {"document"}:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (once / "thermo.csv").read_bytes() == (twice / "thermo.csv").read_bytes()
    if file.endswith("xyz"):
        assert [f.info["step"] for f in ase.io.read(twice / file, ":")] == [0, 20, 40, 60]
        assert (once / file).read_bytes() == (twice / file).read_bytes()
    else:
        with h5py.File(twice / file) as data, h5py.File(once / file) as whole:
            assert data["particles/all/position/step"][:].tolist() == [0, 20, 40, 60]
            values = [f["particles/all/velocity/value"][:] for f in (data, whole)]
            np.testing.assert_array_equal(*values)


def test_replicas_are_runs_of_their_own(loaded, tmp_path, metal):
    """Restarted exactly, and one of them continued alone goes the same way."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    options = (metal, "npt", 60, 1, "--replicas", 2, "--temperature", 400)
    logs = run(once, *options)
    run(twice, metal, "npt", 40, 1, *options[4:])
    run(twice, *options, "--restart")
    for name in ("thermo.csv", "trajectory.extxyz"):
        for replica in ("replica000", "replica001"):
            assert (once / replica / name).read_bytes() == (twice / replica / name).read_bytes()
    assert np.abs(logs[0]["temperature_K"] - logs[1]["temperature_K"])[-20:].mean() > 1.0
    start = tmp_path / "start.extxyz"
    ase.io.write(start, ase.io.read(once / "replica001" / "trajectory.extxyz", 0))
    alone = run(tmp_path / "alone", start, "npt", 20, 1, "--temperature", 400)
    for name in ("temperature_K", "potential_eV", "volume_A3"):
        np.testing.assert_allclose(alone[name], logs[1][name][:21], rtol=1e-4)


def test_refusals(loaded, tmp_path, metal, refused):
    structure = tmp_path / "structure.extxyz"
    structure.write_bytes(metal.read_bytes())
    run(tmp_path, structure, "nve", 20, 1)
    refused("continue that run with --restart", tmp_path, structure, "nve", 40, 1)
    refused(r"timestep = 1.0, not 2.0", tmp_path, structure, "nve", 40, 1, "--restart", "--timestep", 2.0)
    atoms = ase.io.read(structure)
    atoms.set_masses(atoms.get_masses() + 1)
    atoms.positions += 0.1
    ase.io.write(structure, atoms)
    refused(
        "structure.extxyz: masses, positions changed since it began", tmp_path, structure, "nve", 40, 1, "--restart"
    )
    refused("there is no run to continue", tmp_path / "new", structure, "nve", 40, 1, "--restart")


class Hole(Morse):
    """A potential without an answer for pairs closer than 2.2 A."""

    def node_energies(self, variables, vectors, inputs):
        """NaN where it has none."""
        closest = (vectors**2).sum(-1).min(1)
        return jnp.where(closest < 2.2**2, jnp.nan, super().node_energies(variables, vectors, inputs))


BREAKDOWNS = {
    "fast atoms": (Morse, {"ensemble": "nve", "timestep": 200, "temperature": 3000}, "moved further than the skin"),
    "collapse": (
        Morse,
        {"ensemble": "npt", "pressure": 2000, "barostat-time": 20},
        "neighbour list overflowed 2 times",
    ),
    "no answer": (Hole, {"ensemble": "nve", "timestep": 2, "temperature": 9000}, "not finite"),
}


@pytest.mark.parametrize("name", BREAKDOWNS)
def test_breakdown_keeps_the_last_good_checkpoint(monkeypatch, morse, tmp_path, metal, capsys, name):
    kind, options, message = BREAKDOWNS[name]
    monkeypatch.setattr(md, "load", lambda path, head: kind(morse.config, morse.variables, {}))
    monkeypatch.setattr(block_module, "MAX_RERUNS", 1)
    argv = [metal, "--model", "any", "--out", tmp_path, "--log-every", 1, "--trajectory-every", 1,
            "--checkpoint-every", 1, "--steps", 3000]  # fmt: skip
    argv += [x for k, v in options.items() for x in (f"--{k}", v)]
    assert main([str(a) for a in argv]) == 1
    error = capsys.readouterr().err
    assert message in error and "last good checkpoint is" in error
    saved = dict(np.load(tmp_path / "checkpoint.npz"))
    last = int(read_log(tmp_path)["step"][-1])
    assert f"after step {last}:" in error and f'"step": {last}' in str(saved.pop("document"))
    assert all(np.isfinite(x).all() for x in saved.values() if x.dtype.kind == "f")


def test_box_smaller_than_allowed(loaded, tmp_path, refused):
    thin = ase.Atoms("Al", cell=[20.0, 20.0, 0.001], pbc=True)
    ase.io.write(tmp_path / "thin.extxyz", thin)
    refused("box smaller than allowed", tmp_path / "out", tmp_path / "thin.extxyz", "nve", 20, 1)
    assert not (tmp_path / "out" / "checkpoint.npz").exists()


def test_energy_drift(loaded, tmp_path, metal):
    """NVE in float64 at 1 fs: less than 1e-5 eV/atom/ps."""
    log = run(tmp_path, metal, "nve", 4000, 10, "--dtype", "float64")
    drift = np.polyfit(log["time_ps"], log["total_eV"], 1)[0] / 32
    assert abs(drift) < 1e-5, f"{drift} eV/atom/ps"
    assert np.ptp(log["kinetic_eV"]) > 100 * np.ptp(log["total_eV"])


@pytest.mark.parametrize("energies", ["float64", "float32"])
def test_energy_drift_of_a_mace(tmp_path, energies):
    """The bundled model, 1 ps of NVE at 1 fs: less than 1e-5 eV/atom/ps in float64, and in float32 too."""
    convert([str(MINI), str(tmp_path / "model")])
    ase.io.write(tmp_path / "salt.extxyz", bulk("NaCl", "rocksalt", a=5.69, cubic=True))
    log = run(tmp_path / energies, tmp_path / "salt.extxyz", "nve", 1000, 10, "--dtype", energies, "--temperature", 600,
              "--model", tmp_path / "model")  # fmt: skip
    drift = np.polyfit(log["time_ps"], log["total_eV"], 1)[0] / 8
    assert abs(drift) < 1e-5, f"{drift} eV/atom/ps"
    assert np.ptp(log["kinetic_eV"]) > 100 * np.ptp(log["total_eV"])


def test_specialised_dynamics_equals_the_plain_one(tmp_path):
    convert([str(MINI), str(tmp_path / "model")])
    ase.io.write(tmp_path / "salt.extxyz", bulk("NaCl", "rocksalt", a=5.69, cubic=True))
    options = ("nve", 40, 10, "--dtype", "float64", "--model", tmp_path / "model")
    plain = run(tmp_path / "plain", tmp_path / "salt.extxyz", *options)
    fast = run(tmp_path / "fast", tmp_path / "salt.extxyz", *options, "--fast")
    np.testing.assert_allclose(fast["potential_eV"], plain["potential_eV"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(fast["temperature_K"], plain["temperature_K"], rtol=0, atol=0.05)


@pytest.mark.parametrize("thermostat, dof", [("nose-hoover", 93), ("langevin", 96)])
def test_temperature_distribution(loaded, tmp_path, metal, thermostat, dof):
    """Canonical: <T> as asked, and T is distributed as chi^2 / dof: var(T)/<T>^2 = 2/dof, skewness sqrt(8/dof).

    Statistical errors, from the spread between replicas: about 0.2 % of the mean, 2 % of the variance.
    """
    logs = run(tmp_path, metal, "nvt", 12000, 20, "--thermostat", thermostat, "--thermostat-time", 30, "--timestep", 2,
               "--replicas", 16)  # fmt: skip
    T = np.concatenate([log["temperature_K"][100:] for log in logs])
    assert T.mean() == pytest.approx(300.0, rel=0.01)
    assert T.var() / T.mean() ** 2 == pytest.approx(2 / dof, rel=0.08)
    assert ((T - T.mean()) ** 3).mean() / T.std() ** 3 == pytest.approx(np.sqrt(8 / dof), rel=0.3)


def test_volume_under_pressure(loaded, tmp_path, morse):
    """NPT of a cool crystal has the volume of the cell relaxed under the same pressure."""
    pressure = 2.0  # GPa
    crystal = tmp_path / "crystal.extxyz"
    ase.io.write(crystal, bulk("Al", a=4.04, cubic=True) * (2, 2, 2))
    log = run(tmp_path, crystal, "npt", 5000, 10, "--temperature", 100, "--pressure", pressure, "--barostat-time", 500,
              "--thermostat-time", 50, "--timestep", 2)  # fmt: skip
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


def test_isolated_cluster(loaded, tmp_path, metal, refused):
    atoms = ase.io.read(metal)[:4]
    atoms.pbc, atoms.cell = False, np.zeros((3, 3))
    ase.io.write(tmp_path / "cluster.xyz", atoms)
    log = run(tmp_path / "out", tmp_path / "cluster.xyz", "nve", 20, 1)
    assert np.isnan(log["pressure_GPa"]).all() and np.ptp(log["total_eV"]) < 1e-3
    refused("npt needs all three directions", tmp_path / "npt", tmp_path / "cluster.xyz", "npt", 20, 1)


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


def test_what_cannot_hold_atoms_is_refused(loaded, tmp_path, metal, refused):
    atoms = ase.io.read(metal)
    cases = {
        "npt scales all positions": (FixAtoms([0]), "npt"),
        "all atoms are fixed": (FixAtoms(range(32)), "nvt"),
        "FixBondLengths": (FixBondLengths([[0, 1]]), "nvt"),
    }
    for number, (message, (constraint, ensemble)) in enumerate(cases.items()):
        atoms.set_constraint(constraint)
        ase.io.write(tmp_path / "held.traj", atoms)
        refused(message, tmp_path / f"out{number}", tmp_path / "held.traj", ensemble, 20, 1)
        assert not (tmp_path / f"out{number}").exists()
    atoms.set_constraint()
    wide = atoms.copy()
    wide.set_cell([3000.0, 20, 20])
    wide.positions[0, 0] = 1500.0
    ase.io.write(tmp_path / "wide.extxyz", wide)
    refused(
        "1500 A, expected at most 1000 A in float32: use --dtype float64",
        tmp_path / "wide",
        tmp_path / "wide.extxyz",
        "nve",
        20,
        1,
    )
    atoms.pbc = (True, True, False)
    ase.io.write(tmp_path / "slab.extxyz", atoms)
    refused(
        r"periodic along \[True, True, False\]: npt needs all three directions",
        tmp_path / "slab",
        tmp_path / "slab.extxyz",
        "npt",
        20,
        1,
    )


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
