"""The trainer: every optimizer descends, nothing is frozen at trace time, runs stop when they should."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import equijax
from equijax import data, parallel, potential
from equijax.adapters import lora
from equijax.data.items import prepare
from equijax.finetune import loader, trainer
from equijax.finetune import optimizer as optimizer_module
from equijax.finetune.defaults import LOSS, TRAINING
from equijax.finetune.strategies import Trainable

ROOT = Path(__file__).resolve().parents[2]
TARGET = jnp.array([1.0, -2.0, 3.0])
PLAN = dataclasses.replace(TRAINING, lr=0.05, warmup=2, epochs=3)


def toy_step(plan, steps):
    """The update rules of `make_step` on |x - target|^2."""
    rule = optimizer_module.optimizer(plan, steps)

    @jax.jit
    def step(state, graph):
        value, grads = jax.value_and_grad(lambda x: ((x - TARGET) ** 2).sum() + graph)(state.trainable)
        updates, opt_state = rule.update(grads, state.opt_state, state.trainable)
        moved = optax.apply_updates(state.trainable, jax.tree.map(lambda u: u * state.plateau.scale, updates))
        after = trainer.TrainState(state.step + 1, moved, opt_state, moved, state.plateau)
        return after, {"loss": value, "grad_norm": optax.tree.norm(grads), "finite": jnp.isfinite(value)}

    return step


def run(plan, values=None, graphs=(0.0, 0.0), log=lambda record: None, save=lambda *a: None, start=None):
    """Fit the toy, on from `start` or anew; validation losses are `values` where given."""
    fresh = trainer.init(jnp.zeros(3), plan, total_steps=plan.epochs * len(graphs))
    state, progress = start or (fresh, trainer.Progress())
    losses = iter(values) if values is not None else None

    def evaluate(x):
        return {"loss": next(losses) if losses else float(((x - TARGET) ** 2).sum())}

    batches = [loader.Batch(g, (f"file:{i}",)) for i, g in enumerate(graphs)]
    step = toy_step(plan, plan.epochs * len(graphs))
    hooks = trainer.Hooks(step, lambda epoch: batches, evaluate, save, log)
    return trainer.fit(state, progress, hooks=hooks, options=plan)


@pytest.mark.parametrize("optimizer", ["adamw", "amsgrad", "sgd", "schedule_free"])
def test_every_optimizer_descends(optimizer):
    schedule = "constant" if optimizer == "schedule_free" else "cosine"
    changes = {"optimizer": optimizer, "lr": 0.1, "schedule": schedule, "warmup": 2, "clip": 1.0, "epochs": 60}
    plan = dataclasses.replace(TRAINING, **changes)
    state, progress, reason = run(plan)
    weights = trainer.evaluated(state._replace(ema=state.trainable), plan)
    np.testing.assert_allclose(weights, TARGET, atol=0.3)
    assert reason == "finished" and progress.epoch == 60 and progress.best < 0.3


def test_early_stopping_stops_and_remembers_the_best():
    saved = []
    plan = dataclasses.replace(PLAN, epochs=50, patience=3)
    _, progress, reason = run(plan, [5, 4, 3, 6, 7, 8, 1], save=lambda s, p, best: saved.append((p.epoch, best)))
    assert reason == "early stopping"
    assert progress.epoch == 6 and progress.best_epoch == 3 and progress.best == 3
    assert saved == [(1, True), (2, True), (3, True), (4, False), (5, False), (6, False)]


def test_nan_is_never_the_best():
    progress, is_best = trainer.judge(trainer.Progress(best=np.inf), np.nan)
    assert not is_best and progress.stale == 1


def test_plateau_lowers_the_rate_inside_the_state():
    plan = dataclasses.replace(PLAN, schedule="plateau", epochs=8, plateau_patience=1, plateau_factor=0.5, patience=99)
    scales = []
    run(plan, [1.0] * 8, log=lambda r: scales.append(r["scale"]) if "scale" in r else None)
    assert scales[0] == 1.0 and scales[-1] < 0.3 and sorted(scales, reverse=True) == scales


def test_nan_stops_the_run_and_names_the_structure():
    with pytest.raises(trainer.TrainingDiverged, match=r"epoch 1, batch 2.*loss nan.*each of file:1 alone is finite"):
        run(PLAN, graphs=(0.0, float("nan")))


def test_sigterm_saves_and_stops():
    saved = []

    def log(record):
        if record.get("batch") == 1 and record["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    _, progress, reason = run(PLAN, log=log, save=lambda s, p, best: saved.append(int(s.step)))
    assert reason == "interrupted" and saved == [2, 3] and (progress.epoch, progress.batch) == (1, 1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_ctrl_c_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), trainer.stop_signal() as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_out_of_patience_does_not_go_on_when_it_is_resumed():
    plan = dataclasses.replace(PLAN, epochs=20, patience=3)
    state, progress, _ = run(plan, [5, 4, 3, 6, 7, 8, 1])
    assert run(plan, [1.0], start=(state, progress))[1:] == (progress, "early stopping")


def real_step(folder, student, mesh=None, devices=1):
    """One compiled step on the small model, its state, and the batches of an epoch."""
    plan = dataclasses.replace(TRAINING, optimizer="adamw", lr=0.01, warmup=1, weight_decay=0.1)
    items = prepare(data.read_structures(folder / "train.extxyz"), student.config)[:4]
    e0 = student.variables["constants"]["atomic_energies"]
    training = loader.TrainingSet(student.config, e0, items, batch_size=4 // devices, mesh=mesh)
    params = potential.cast(student.variables["params"], "float32")
    trained = Trainable(lora.init_lora(params, 2, alpha=2.0), lora.apply)
    losses = dataclasses.replace(LOSS, loss="mse", forces_weight=1.0, stress_weight=1.0)
    step = trainer.make_step(student.config, trained, losses=losses, options=plan, total_steps=10, mesh=mesh)
    return step, trainer.init(trained.start, plan, total_steps=10), loader.epoch(training, 0)


def test_a_bad_step_leaves_the_state_alone_and_none_recompiles(folder, student):
    step, state, (batch,) = real_step(folder, student)
    variables = potential.cast(student.variables, "float32")
    state, metrics = step(state, variables, batch.graph)
    assert metrics["finite"] and {"energy", "forces", "stress"} <= set(metrics)
    kept = jax.tree.map(np.array, state)
    nodes = batch.graph.nodes
    labels = nodes.labels._replace(forces=nodes.labels.forces * np.float32("inf"))
    bad = batch.graph._replace(nodes=nodes._replace(labels=labels))
    state, metrics = step(state, variables, bad)
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, state, kept)
    step(state, variables, batch.graph)
    assert step._cache_size() == 1


def test_optimizer_state_belongs_to_adapters_only(folder, student):
    _, state, _ = real_step(folder, student)
    trained = sorted(x.shape for x in jax.tree.leaves(state.trainable))
    moments = sorted(x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == sorted(trained * 2)


def test_two_devices_give_what_one_gives(folder, student, tmp_path):
    """The second device exists in a process of its own, where it is forced."""
    step, state, (batch,) = real_step(folder, student)
    state, _ = step(state, potential.cast(student.variables, "float32"), batch.graph)
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(ROOT),
    }
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_trainer; test_trainer.two_devices()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "x.npz")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "x.npz")
    for i, leaf in enumerate(jax.tree.leaves(state.trainable)):
        np.testing.assert_allclose(found[str(i)], leaf, atol=2e-5)


def two_devices():
    """In the subprocess: the same step on a mesh of two devices, each with half of the batch."""

    folder, out = Path(sys.argv[1]), sys.argv[2]
    student = equijax.load(folder / "model")
    step, state, (batch,) = real_step(folder, student, parallel.data_mesh(2), 2)
    variables = parallel.replicate(potential.cast(student.variables, "float32"), parallel.data_mesh(2))
    state, _ = step(parallel.replicate(state, parallel.data_mesh(2)), variables, batch.graph)
    np.savez(out, **{str(i): x for i, x in enumerate(jax.tree.leaves(state.trainable))})


def test_float64_is_refused_where_jax_would_lower_it():
    with pytest.raises(ValueError, match="float64 needs"):
        trainer.init({"w": np.ones(2)}, TRAINING, total_steps=1)
    with jax.enable_x64(True):
        assert trainer.init({"w": np.ones(2)}, TRAINING, total_steps=1).trainable["w"].dtype == np.float64
    assert potential.cast(np.ones(2), "float64").dtype == np.float64
