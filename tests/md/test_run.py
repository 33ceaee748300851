"""Runs of the program: exact restarts, replicas, refusals, breakdowns."""

from pathlib import Path

import ase.io
import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from ase.constraints import FixAtoms, FixBondLengths

from equijax import units
from equijax.md import blocks as block_module
from equijax.md import run as md
from equijax.programs.md import main
from tests.md.samples import Morse, read_log, run

pytest.importorskip("jax_md", reason="needs the md extra")


@pytest.mark.parametrize("ensemble, file", [("nvt", "trajectory.extxyz"), ("npt", "trajectory.h5")])
def test_restart_is_exact(loaded, tmp_path, metal, ensemble, file, programs_made):
    """To the last byte of every file, by the programs of the run itself."""
    options = (metal, ensemble, 60, 1, "--trajectory", Path(file).suffix[1:])
    once, twice = tmp_path / "once", tmp_path / "twice"
    run(once, *options)
    made = len(programs_made)
    run(twice, metal, ensemble, 40, 1, *options[4:])
    at_40 = (twice / "checkpoint.npz").read_bytes()
    run(twice, *options, "--restart")
    (twice / "checkpoint.npz").write_bytes(at_40)  # killed before the next one: whole frames and half of one after it
    for name in ("thermo.csv", "trajectory.extxyz") if ensemble == "nvt" else ("thermo.csv",):
        with open(twice / name, "a") as dirty:
            dirty.write((twice / name).read_text()[:1000])
    run(twice, *options, "--restart")
    assert 2 <= made == len(programs_made)
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
    argv = [
        metal,
        "--model",
        "any",
        "--out",
        tmp_path,
        "--log-every",
        1,
        "--trajectory-every",
        1,
        "--checkpoint-every",
        1,
        "--steps",
        3000,
    ]
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


def test_isolated_cluster(loaded, tmp_path, metal, refused):
    atoms = ase.io.read(metal)[:4]
    atoms.pbc, atoms.cell = False, np.zeros((3, 3))
    ase.io.write(tmp_path / "cluster.xyz", atoms)
    log = run(tmp_path / "out", tmp_path / "cluster.xyz", "nve", 20, 1)
    assert np.isnan(log["pressure_GPa"]).all() and np.ptp(log["total_eV"]) < 1e-3
    refused("npt needs all three directions", tmp_path / "npt", tmp_path / "cluster.xyz", "npt", 20, 1)


def test_programs_know_the_degrees_of_freedom(loaded, tmp_path):
    """Three atoms in a line rotate about two axes, and about three where they are not: the same atoms otherwise."""
    temperatures = []
    for name, x in {"straight": 0.0, "bent": 1.5}.items():
        ase.io.write(tmp_path / f"{name}.xyz", ase.Atoms("Al3", [[0, 0, 0], [x, 0, 2.8], [0, 0, 5.6]]))
        log = run(tmp_path / name, tmp_path / f"{name}.xyz", "nve", 1, 1)
        temperatures.append(2 * log["kinetic_eV"][0] / units.KB_EV_PER_K / log["temperature_K"][0])
    assert temperatures == pytest.approx([4, 3])  # 9 less 3 translations and 2 or 3 rotations


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
