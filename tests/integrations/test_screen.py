"""Screening over Dask: a killed worker, a second start, crystals that fail, a scheduler elsewhere."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.io
import dask
import distributed  # noqa: F401  adds its options to dask's
import numpy as np
import pandas
import pytest
from ase.build import bulk

from equijax import checkpoint, phonons
from equijax.errors import InputError
from equijax.phonons import force_constants
from equijax.programs import screen as program
from equijax.screen import crystals, run, store
from equijax.screen.options import ScreenConfig
from tests.samples import tree

LATTICE_CONSTANTS = (5.5, 5.55, 5.6, 5.65, 5.7)  # A


@pytest.fixture
def config(folder, tmp_path) -> ScreenConfig:
    """Phonons of five unrelaxed crystals by a tiny model: their forces vanish by symmetry."""
    (tmp_path / "crystals").mkdir()
    for a in LATTICE_CONSTANTS:
        ase.io.write(tmp_path / "crystals" / f"{a}.vasp", bulk("NaCl", "rocksalt", a=a))
    paths = (tmp_path / "crystals",)
    common = {"supercell": (2, 2, 2), "mesh": (2, 2, 2), "relax": False, "workers": 2}
    return ScreenConfig(paths, folder / "model", out=tmp_path / "out", **common)


@pytest.fixture(scope="module")
def digest(student) -> str:
    return checkpoint.fingerprint(student.config, student.variables)


def names(config: ScreenConfig) -> list[str]:
    return [f"{config.structures[0]}/{a}.vasp:0" for a in LATTICE_CONSTANTS]


@pytest.mark.parametrize("deaths", [3, 0], ids=["computed again", "its error"])
def test_a_killed_worker_loses_nothing(config, digest, deaths):
    """Killed with SIGKILL while it computes: its crystal is computed again, or, where Dask may not try again, is a row
    with the error (as may be the one that waited there), which a second start computes with --retry."""
    killed = []

    def watched(client):
        for row in run.results(client, crystals.read(config.structures), config=config, digest=digest):
            yield row
            if not killed:
                pids = client.run(os.getpid)
                busy = [worker for worker, tasks in client.processing().items() if tasks]
                killed.append(pids[busy[0]])
                os.kill(killed[0], signal.SIGKILL)

    config.out.mkdir()
    with dask.config.set({"distributed.scheduler.allowed-failures": deaths}), run.cluster(config) as client:
        run.keep(watched(client), config.out, total=5)
    rows = store.rows(config.out)
    assert killed and [row.name for row in rows] == names(config)
    failed = [row.error for row in rows if not row.force_constants]
    assert not failed if deaths else 1 <= len(failed) <= 2 and all("KilledWorker" in error for error in failed)
    if failed:
        again = run.run(replace(config, retry=True))
        assert (again.crystals, again.computed, again.failed) == (5, len(failed), [])


def test_a_second_start_skips_what_is_done(config, digest, student):
    """After an interruption, and after crystals were added and changed; other options are refused."""

    def interrupted(client):
        some = run.results(client, crystals.read(config.structures)[:3], config=config, digest=digest)
        yield next(some)
        yield next(some)
        raise KeyboardInterrupt

    config.out.mkdir()
    with run.cluster(config) as client, pytest.raises(KeyboardInterrupt):
        run.keep(interrupted(client), config.out, total=3)
    before = tree(config.out)
    found = run.run(config)
    assert (found.crystals, found.computed, found.failed) == (5, 3, [])
    assert before.items() <= tree(config.out).items()  # no file of the store is written again
    ase.io.write(config.structures[0] / "5.5.vasp", bulk("NaCl", "rocksalt", a=5.52))
    ase.io.write(config.structures[0] / "new.vasp", bulk("Si", "diamond", a=5.4))
    assert run.run(config).computed == 2
    assert run.run(config).computed == 0
    rows = {row.name: row for row in store.rows(config.out)}
    assert len(rows) == 6
    assert rows[names(config)[0]].volume_A3_atom == pytest.approx(5.52**3 / 8)
    for row in rows.values():  # against second derivatives of the supercell
        expected = phonons.make_phonon(store.structure(row), (2, 2, 2))
        force_constants.force_constants(student, expected)
        np.testing.assert_allclose(store.phonon(row).force_constants, expected.force_constants, rtol=0, atol=1e-8)
    with pytest.raises(InputError, match=r"out holds results with mesh = \[2, 2, 2\], not \[3, 3, 3\]: give the same"):
        run.run(replace(config, mesh=(3, 3, 3)))


def test_the_program_at_a_scheduler_elsewhere(mini, silicon, tmp_path, child_environment, capsys):
    """Relaxed silicon by a worker that `dask worker` started; what cannot be computed is a row and stops nothing."""
    checkpoint.save(tmp_path / "model", mini.config, variables=mini.variables, metadata=mini.metadata)
    start = silicon.copy()
    start.set_cell(silicon.cell * 1.01, scale_atoms=True)
    ase.io.write(tmp_path / "a.extxyz", [start, bulk("Xe", "fcc", a=6.0)])
    (tmp_path / "b.cif").write_text("no crystal")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = {
        "dask_scheduler": ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        "dask_worker": [f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--no-dashboard"],
    }
    started = []
    try:
        for name, arguments in commands.items():
            command = [sys.executable, "-m", f"distributed.cli.{name}", *arguments]
            started.append(subprocess.Popen(command, cwd=tmp_path, env=child_environment))
        files = [str(tmp_path / name) for name in ("a.extxyz", "b.cif")]
        argv = [*files, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--fmax", "1e-6"]
        argv += ["--scheduler", f"tcp://127.0.0.1:{port}", "--supercell", "2", "2", "2", "--mesh", "4", "4", "4"]
        assert program.main(argv) == 0
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(20)
    said = capsys.readouterr().out
    assert "3 crystals: 3 computed" in said and "2 failed" in said
    good, xenon, unreadable = store.rows(tmp_path / "out")
    assert "Xe" in xenon.error and "ASE cannot read it" in unreadable.error
    expected = phonons.make_phonon(silicon, (2, 2, 2))
    force_constants.force_constants(mini, expected)
    mesh = expected.run_mesh((4, 4, 4), is_gamma_center=True).frequencies
    assert good.error is None and good.highest_THz == pytest.approx(mesh.max(), abs=1e-3)
    assert pandas.read_parquet(tmp_path / "out" / store.FOLDER)["formula"].dropna().tolist() == ["Si2"]
    (frame,) = ase.io.read(tmp_path / "out" / store.STRUCTURES, ":")
    assert frame.cell.volume == pytest.approx(silicon.cell.volume, rel=1e-5)
    assert Path(frame.info["name"]).name == "a.extxyz:0"
