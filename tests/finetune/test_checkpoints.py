"""Runs that are killed, run out of disk or are continued from other inputs: the same result, or a refusal."""

import dataclasses
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ase.io
import jax
import numpy as np
import pytest

import equijax
from equijax import checkpoint, pytrees
from equijax.finetune import report
from equijax.programs import finetune

ROOT = Path(__file__).resolve().parents[2]
# Too fast to get better at every epoch: weights of another epoch than the best one would be found out.
OPTIONS = ("--epochs", 8, "--schedule", "plateau", "--ema", 0.0, "--lr", 0.2)
BEST = 7
# Renames of the best weights, and of files, take a while; the process is killed some time after an epoch.
KILLED = """
import os, random, signal, sys, threading, time
from equijax.finetune import report
from equijax.programs import finetune
epoch = int(sys.argv.pop(1))
draw = random.Random(epoch)
def slowly(function):
    def slow(old, new, **options):
        time.sleep(draw.uniform(0.2, 0.6) if "best" in str(new) or str(new).endswith(".npz") else 0.0)
        return function(old, new, **options)
    return slow
os.rename, os.replace, original = slowly(os.rename), slowly(os.replace), report.Log.__call__
def log(self, record):
    original(self, record)
    if "batch" not in record and record["epoch"] == epoch:
        threading.Timer(draw.uniform(0.0, 0.6), os.kill, (os.getpid(), signal.SIGKILL)).start()
report.Log.__call__ = log
finetune.main()
"""


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finetune.main(arguments(out, *OPTIONS))
    return out


def same(found: Path, expected: Path) -> None:
    """Weights and log are those of the other run, bit for bit, and its report but for the time it took."""
    weights = [pytrees.paths_of(equijax.load(run / "best").variables) for run in (found, expected)]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    assert (found / "metrics.jsonl").read_text() == (expected / "metrics.jsonl").read_text()
    reports = [json.loads((run / "report.json").read_text()) | {"seconds": None} for run in (found, expected)]
    assert reports[0] == reports[1] and reports[0]["best_epoch"] == BEST
    assert {p.name for p in found.iterdir()} == {p.name for p in expected.iterdir()}


def test_killed_at_random_moments_and_resumed(arguments, whole, tmp_path, child_environment):
    """Best weights and progress stay together, whatever was on its way to the disk; no lock is left behind."""
    argv = [*arguments(tmp_path / "run", *OPTIONS), "--resume"]
    for epoch in (2, BEST, 8):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(epoch), *argv],
            env=child_environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    finetune.main(argv)
    same(tmp_path / "run", whole)


def at_epoch(monkeypatch, number: int, action) -> None:
    """Call `action` when a run has logged that epoch."""
    original = report.Log.__call__

    def log(self, record):
        original(self, record)
        if "batch" not in record and record["epoch"] == number:
            action()

    monkeypatch.setattr(report.Log, "__call__", log)


def test_a_full_disk_ends_the_run_and_it_resumes(arguments, whole, tmp_path, monkeypatch, capsys):
    """Output is captured in memory, so that the limit on files leaves it alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_epoch(monkeypatch, 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard)))
    try:
        assert "too large" in refusal(arguments(tmp_path / "run", *OPTIONS), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    finetune.main([*arguments(tmp_path / "run", *OPTIONS), "--resume"])
    same(tmp_path / "run", whole)


def refusal(argv, capsys) -> str:
    """The one line in which a run that cannot go on says so."""
    assert finetune.main(argv) == 2
    return capsys.readouterr().err.splitlines()[-1]


class Stop(Exception):
    """Ends a run at once."""


def stop():
    raise Stop


@pytest.fixture(scope="module")
def cut(folder, arguments, tmp_path_factory):
    """A run that ended at epoch 3, on files of its own, and its command line."""
    path = tmp_path_factory.mktemp("cut")
    shutil.copytree(folder / "model", path / "model")
    shutil.copy(folder / "train.extxyz", path)
    argv = arguments(path / "run", *OPTIONS, "--model", path / "model", "--train", path / "train.extxyz")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        at_epoch(patch, 3, stop)
        finetune.main(argv)
    return path, [*argv, "--resume"]


def test_other_data_are_refused(cut, capsys):
    path, argv = cut
    file = path / "train.extxyz"
    before = file.read_bytes()
    ase.io.write(file, ase.io.read(file, ":")[::-1])
    assert re.search(r"changed since it began: --train \S*train.extxyz$", refusal(argv, capsys))
    file.write_bytes(before)


def test_another_model_is_refused(cut, student, capsys):
    path, argv = cut
    other = dataclasses.replace(student.config, r_max=student.config.r_max + 0.1)
    for config, weights in ((student.config, jax.tree.map(lambda x: x + x, student.variables)), (other, None)):
        checkpoint.save(path / "model", config, variables=weights or student.variables, metadata={"source": "random"})
        assert re.search(r"changed since it began: --model \S*model$", refusal(argv, capsys))
    checkpoint.save(
        path / "model", student.config, variables=student.variables, metadata={"source": "elsewhere"}
    )  # is the same model


def test_a_run_that_kept_no_record_is_refused(cut, capsys):
    path, argv = cut
    (path / "run" / "inputs.json").rename(path / "kept")
    assert "without inputs.json: choose another --out" in refusal(argv, capsys)
    (path / "kept").rename(path / "run" / "inputs.json")
