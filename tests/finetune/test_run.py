"""The command: frozen backbone, honest selection, resume bit for bit, strategies, options that cannot be misspelt."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import ase.io
import jax
import numpy as np
import phonopy
import pytest
from phonopy.structure.atoms import PhonopyAtoms

import equijax
from equijax import data, potential, pytrees, testing
from equijax.adapters import files
from equijax.finetune import loader, setup, strategies
from equijax.finetune import run as run_module
from equijax.finetune.defaults import resolve
from equijax.finetune.report import Log, summary
from equijax.finetune.run import RUN
from equijax.phonons import force_constants
from equijax.programs import finetune

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lora_run(folder, arguments, tmp_path_factory):
    """A LoRA run with weight decay, tested on the rest; retained are silicon, a metal of the salt, and the salt."""
    out = tmp_path_factory.mktemp("lora") / "run"
    metal = testing.rattled("Na", "bcc", a=4.2, seed=0)
    salt, silicon = (ase.io.read(folder / f"{name}.extxyz", ":") for name in ("test", "other"))
    (found,) = equijax.load(folder / "model").evaluate([metal])
    metal = data.to_atoms(data.Labelled(metal, found.energy, found.forces, found.stress))
    ase.io.write(out.parent / "retained.extxyz", [*silicon, metal, *salt])
    finetune.main(
        arguments(
            out,
            "--test",
            folder / "test.extxyz",
            "--retain",
            out.parent / "retained.extxyz",
            "--weight-decay",
            0.1,
            "--epochs",
            3,
        )
    )
    return out, json.loads((out / "report.json").read_text())


def variables_of(path):
    return pytrees.paths_of(equijax.load(path).variables)


def test_backbone_is_bit_identical_with_weight_decay_on(lora_run, folder):
    out, _ = lora_run
    before, after = variables_of(folder / "model"), variables_of(out / "best")
    adapted = {f"params/{p}" for p in json.loads((out / "adapter" / "adapter.json").read_text())["ranks"]}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed and changed <= adapted
    silicon = 1  # row of an element that is not in the training data
    for name in changed:
        axis = 1 if "skip_tp" in name else 0
        old, new = (np.take(x[name], silicon, axis) for x in (before, after))
        np.testing.assert_array_equal(new, old, err_msg=name)


def test_adapter_and_backbone_make_the_best_model(lora_run, folder):
    out, report = lora_run
    start = equijax.load(folder / "model")
    saved = files.load(out / "adapter", start)
    merged = pytrees.paths_of(files.merge(start.variables, saved.adapters, energies=saved.energies))
    for name, x in variables_of(out / "best").items():
        np.testing.assert_array_equal(merged[name], x)
    assert saved.document["dataset_sha256"] == report["dataset_sha256"]


def test_report_tells_what_happened(lora_run, folder):
    out, report = lora_run
    before, after = report["before"]["errors"], report["after"]["errors"]
    assert_trained(out, equijax.load(folder / "model").variables["params"])
    assert after["unrelated"] == before["unrelated"]  # silicon shares no adapted weight with the salt
    assert before["related"]["forces_mae"] < 1e-5 < after["related"]["forces_mae"]  # labels of the starting model
    assert report["structures"] == {"train": 5, "valid": 1, "test": 2, "related": 1, "unrelated": 2}
    assert any("1 related" in text and "2 of NaCl itself" in text for text in report["messages"])
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [h["epoch"] for h in history] == [1, 2, 3]
    assert min(h["loss"] for h in history) == pytest.approx(after["valid"]["loss"], rel=1e-5)
    assert {"parity.png", "learning_curve.png", "config.json"} <= {p.name for p in out.iterdir()}
    assert RUN.owns(out)  # every name in it is known, so that a demo may replace its own
    assert any("better: valid force MAE" in line for line in report["verdict"])


def test_a_run_that_only_harms_returns_the_starting_model(folder, arguments, tmp_path):
    finetune.main(arguments(tmp_path / "run", "--lr", 1.0, "--ema", 0.0, "--epochs", 1))
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert found["best_epoch"] == 0 and "never improved" in found["verdict"][0]
    before, after = variables_of(folder / "model"), variables_of(tmp_path / "run" / "best")
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])
    assert found["after"]["errors"] == found["before"]["errors"]


def test_interrupted_and_resumed_is_uninterrupted(arguments, tmp_path, monkeypatch, capsys):
    """Weights, averages, schedule, data order, patience and log, after a signal in the middle of an epoch."""
    options = ("--epochs", 4, "--schedule", "plateau", "--ema", 0.9, "--optimizer", "adamw")
    finetune.main(arguments(tmp_path / "whole", *options))
    original = Log.__call__

    def cut(self, record):
        original(self, record)
        if record["epoch"] == 3 and record.get("batch") == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Log, "__call__", cut)
    finetune.main(arguments(tmp_path / "cut", *options))
    assert not (tmp_path / "cut" / "report.json").exists()
    monkeypatch.undo()
    finetune.main([*arguments(tmp_path / "cut", *options), "--resume"])
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    cut, whole = (dict(np.load(tmp_path / run / "checkpoint.npz")) for run in ("cut", "whole"))
    jax.tree.map(np.testing.assert_array_equal, cut, whole)
    whole, resumed = (variables_of(tmp_path / run / "best") for run in ("whole", "cut"))
    for name in whole:
        np.testing.assert_array_equal(resumed[name], whole[name])
    assert finetune.main([*arguments(tmp_path / "cut", *options, "--lr", 0.5), "--resume"]) == 2
    assert finetune.main(arguments(tmp_path / "cut", *options)) == 2
    assert re.search("--resume with other options.*: lr\n.*holds a run already", capsys.readouterr().err)


LEAST_MOVE = 1e-5  # of the parameter that training moves most


def moved(start, after) -> float:
    """The largest change of a parameter."""
    before, after = pytrees.paths_of(start), pytrees.paths_of(after)
    return max(np.abs(after[name] - x).max() for name, x in before.items() if x.size)


def assert_trained(out, start) -> None:
    """A run improved on the starting model and moved what it trains; of random weights the latter alone is asked.

    Args:
      out: folder of the run.
      start: parameters of the model before the first step.
    """
    found = json.loads((out / "report.json").read_text())
    assert found["best_epoch"] > 0
    assert moved(start, equijax.load(out / "best").variables["params"]) > LEAST_MOVE
    if found["strategy"] != "scratch":
        assert found["after"]["errors"]["valid"]["loss"] < found["before"]["errors"]["valid"]["loss"]


def before_training(made) -> dict:
    """Parameters that the strategy starts from, in the dtype of the stored model."""
    params = potential.cast(made.ff.variables["params"], made.options.dtype)
    return jax.tree.map(np.asarray, made.trained.combine(params, made.trained.start))


@pytest.mark.parametrize(
    "strategy, more",
    [
        ("freeze", ("--freeze", "interactions_0")),
        ("multihead", ("--replay-self", "other")),
        ("delta", ("--l2sp", 0.1, "--lr", 3e-4)),  # at its usual rate a few steps overshoot on random weights
        ("scratch", ()),
    ],
)
def test_other_strategies_run(strategy, more, folder, arguments, tmp_path):
    more = [folder / "other.extxyz" if x == "other" else x for x in more]
    argv = arguments(
        tmp_path / "run", "--strategy", strategy, "--epochs", 1, "--retain", folder / "other.extxyz", *more
    )
    finetune.main(argv)
    assert_trained(tmp_path / "run", before_training(setup.begin(resolve(finetune.parse(argv)))))
    before, after = variables_of(folder / "model"), variables_of(tmp_path / "run" / "best")
    if strategy == "freeze":
        for name in (n for n in before if "interactions_0" in n):
            np.testing.assert_array_equal(after[name], before[name])
    if strategy == "delta":
        saved = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
        assert set(saved["ranks"].values()) == {None} and len(saved["ranks"]) == found_parameters(before)
    if strategy == "multihead":
        assert equijax.load(tmp_path / "run" / "best").config.heads == ("Default", "finetuned")


@pytest.mark.parametrize("strategy", ["freeze", "scratch"])
def test_an_optimizer_that_does_nothing_is_noticed(strategy, arguments, tmp_path):
    """A mutation: with a vanishing learning rate nothing moves as far as the tests of strategies ask."""
    more = ("--freeze", "interactions_0") if strategy == "freeze" else ()
    argv = arguments(tmp_path / "run", "--strategy", strategy, "--epochs", 1, "--lr", 1e-30, *more)
    made = setup.begin(resolve(finetune.parse(argv)))
    best, progress, _ = run_module.optimise(made, np.inf, out=tmp_path)
    after = strategies.merged(made.ff.variables, made.trained, best=best, energies=made.energies)["params"]
    assert progress.best_epoch == 1 and moved(before_training(made), after) < LEAST_MOVE


# Process 1 alone gets a signal in the middle of the second epoch.
CUT = """
import os, signal, sys
from equijax.finetune import report
from equijax.programs import finetune
original = report.Log.__call__
def cut(self, record):
    original(self, record)
    if record["epoch"] == 2 and record.get("batch") == 1 and sys.argv[-1] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
report.Log.__call__ = cut
sys.exit(finetune.main())
"""


def test_two_processes_interrupted_and_resumed_give_what_one_gives(folder, arguments, tmp_path, child_environment):
    """Each process builds half of every batch, the first writes the files, a signal to the other stops both."""
    options = (
        "--epochs",
        2,
        "--optimizer",
        "sgd",
        "--schedule",
        "plateau",
        "--lr",
        1.0,
    )

    def start(program, *more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        argv = [
            *arguments(
                tmp_path / "two", *options, "--batch-size", 1, "--coordinator", f"127.0.0.1:{port}", "--processes", 2
            ),
            "--distributed",
            *more,
        ]
        command = [sys.executable, *program, *argv]
        return [
            subprocess.Popen(
                [*command, "--process", str(i)],
                env=child_environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i in range(2)
        ]

    both = start(("-c", CUT))
    finetune.main(arguments(tmp_path / "one", *options))
    for again in (("-m", "equijax.finetune"), None):
        said = [process.communicate(timeout=300)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert "zero-shot" in said[0] and "zero-shot" not in said[1]
        assert (tmp_path / "two" / "report.json").exists() == (again is None)
        if again:
            assert "stopped by a signal after epoch 1" in said[0]
            both = start(again, "--resume")
    one, two = (variables_of(tmp_path / run / "best") for run in ("one", "two"))
    assert any(np.abs(one[name] - x).max() > 1e-3 for name, x in variables_of(folder / "model").items())
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=2e-5, err_msg=name)
    history = [json.loads((tmp_path / run / "report.json").read_text()) for run in ("one", "two")]
    assert history[0]["best_epoch"] == history[1]["best_epoch"] > 0


def test_a_run_that_diverges_names_the_structure(folder, arguments, tmp_path, capsys):
    images = ase.io.read(folder / "train.extxyz", ":")
    images[3].calc.results["forces"] = images[3].calc.results["forces"] + 1e25
    ase.io.write(tmp_path / "broken.extxyz", images)
    argv = arguments(
        tmp_path / "run", "--train", tmp_path / "broken.extxyz", "--valid", folder / "test.extxyz", "--loss", "mse"
    )
    assert finetune.main(argv) == 2
    found = capsys.readouterr().err
    assert re.search(r"not finite for frame 3 of [^ ,]*broken\.extxyz alone: check labels", found)


def held(g) -> list[str]:
    """Which of these labels a batch has."""
    labels = {"forces": g.nodes.labels.forces, "hvp": g.nodes.labels.hvp, "q": g.globals.labels.q}
    return [name for name, value in labels.items() if value is not None]


def found_parameters(variables):
    return sum(name.startswith("params/") and x.size > 0 for name, x in variables.items())


def test_zero_shot_reports_and_changes_nothing(folder, arguments, tmp_path):
    finetune.main(arguments(tmp_path / "run", "--strategy", "zero-shot", "--test", folder / "test.extxyz"))
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert found["before"] == found["after"] and found["trainable"] == 0
    before, after = variables_of(folder / "model"), variables_of(tmp_path / "run" / "best")
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


def test_force_constants_and_replay_train_beside_forces(student, folder, arguments, tmp_path):
    """Waves of the primitive cell, and replayed structures with forces and Hessian-vector products of the model."""
    cell = PhonopyAtoms(numbers=[11, 17], cell=2.8 * (1 - np.eye(3)), scaled_positions=[[0, 0, 0], [0.47, 0.52, 0.55]])
    phonon = phonopy.Phonopy(cell, np.diag([2, 2, 1]), np.eye(3))
    force_constants.force_constants(student, phonon, full=True)
    phonon.force_constants = 1.1 * phonon.force_constants
    phonon.save(tmp_path / "phonopy_params.yaml", settings={"force_constants": True})
    argv = arguments(
        tmp_path / "run",
        "--hessian-weight",
        1.0,
        "--loss",
        "mse",
        "--replay-self",
        folder / "other.extxyz",
        "--hessian-cell",
        "primitive",
        "--tangents",
        2,
        "--phonons",
        tmp_path / "phonopy_params.yaml",
    )
    argv.insert(argv.index("--train") + 2, str(tmp_path / "phonopy_params.yaml"))
    options = resolve(finetune.parse([*argv, "--replay-hessian", "--watch", "train", "phonons"]))
    made = setup.begin(options)
    batches = loader.epoch(made.training, 0)
    kinds = [held(b.graph) for b in batches]
    assert sorted(kinds) == [["forces", "hvp"]] * 3 + [["hvp", "q"]]
    assert {n.split(" of ")[1] for n in batches[kinds.index(["forces", "hvp"])].names} > {str(folder / "other.extxyz")}
    same = loader.epoch(made.training, 0)
    jax.tree.map(np.testing.assert_array_equal, [b.graph for b in batches], [b.graph for b in same])
    whole = loader.epoch(dataclasses.replace(made.training, primitive=False), 0)
    (batch,) = (b for b in whole if b.graph.nodes.labels.forces is None)
    assert batch.graph.globals.labels.q is None and batch.graph.nodes.labels.hvp_mask.sum() == 8
    result = run_module.run(options)
    (phonon,) = result.after.phonons
    assert phonon["crystal"] == f"{tmp_path.name} NaCl"  # folder and formula: phonopy gives all files this name
    assert result.best_epoch > 0 and np.isfinite(phonon["frequency_mae"])
    told = summary(result)
    assert f"{phonon['heat_capacity_reference']:.4g}" in told and "below minus 0.05, 0.1, 0.5 THz" in told
    assert set(phonon["imaginary_agreement"].values()) <= {i / 216 for i in range(217)}
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = history[result.best_epoch - 1]
    assert best[f"{phonon['crystal']}_frequency_mae"] == pytest.approx(phonon["frequency_mae"], abs=1e-4)
    assert best["train_forces_mae"] == pytest.approx(result.after.errors["train"].forces_mae, rel=1e-4)
