"""A fine-tuning run from options to report: train, assess before and after, write everything."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from equijax import checkpoint, data, outputs, parallel, plots, potential
from equijax.adapters import files, lora
from equijax.data.errors import parity
from equijax.errors import InputError
from equijax.finetune import checkpoints, loader, loss, metrics, report, strategies, trainer
from equijax.finetune import options as options_module
from equijax.finetune.options import FinetuneConfig, document, training
from equijax.finetune.setup import SETS, Task, inputs, prepare, provenance
from equijax.forcefield import ForceField
from equijax.phonons import certificate, compare

RUN = outputs.Kind(
    "a fine-tuning run",
    "config.json",
    frozenset({"model", "train", "strategy", "out"}),
    frozenset({"config.json"}),
    frozenset(
        {".lock", "inputs.json", "metrics.jsonl", "checkpoints", "report.json", "best", "adapter"}
        | {"learning_curve.png", "parity.png"}
    ),
)
JOB = ("coordinator", "process")  # options that differ between processes, or from one start to the next


def say(text: str) -> None:
    """Print, in the first process."""
    if parallel.is_first():
        print(text)


@outputs.locked
def run(options: FinetuneConfig) -> dict | None:
    """Fine-tune in `options.dtype` and write everything to `options.out`.

    Args:
      options: from `options.resolve`.

    Returns:
      what report.json holds, or None if a signal stopped the run.

    Raises:
      FileExistsError: the output folder is in use, or holds a run and --resume is not given.
      InputError: bad data or options; see the modules they belong to.
      TrainingDiverged: see `trainer.fit`.
    """
    with jax.enable_x64(options.dtype == "float64"):
        return _run(options)


def _run(options: FinetuneConfig) -> dict | None:
    started = time.perf_counter()
    out = options.out.absolute()
    begun = inputs(options)
    check_free(out, options, begun)
    task = prepare(options)
    parallel.wait("the folder is free for all processes")
    if parallel.is_first():
        outputs.write_json(out / "inputs.json", begun)
        outputs.write_json(out / "config.json", document(options))  # the last: with it the folder is in use
    say("\n".join(task.messages))
    before, final = assess(task, task.variables, task.untouched_graphs), with_energies(task.variables, task.energies)
    shifted = None if task.e0 == "model" else label_errors(task, final, task.graphs)
    at_start = {"zero-shot": before["errors"]} | ({} if shifted is None else {report.shifted_name(task.e0): shifted})
    say(report.errors_table(at_start))
    trained = strategies.Trainable(None, strategies.fill)
    progress, reason = trainer.Progress(), "zero-shot"
    if options.strategy != "zero-shot":
        trained = strategies.trainable(options, task.config, task.variables, task.numbers)
        say(describe(task, trained))
        best, progress, reason = optimise(task, trained, (shifted or before["errors"])["valid"]["loss"], out)
        if reason == "interrupted":
            say(f"stopped by a signal after epoch {progress.epoch}, saved; continue with --resume")
            return None
        final = finished(task, trained, best)
        if isinstance(trained.start, lora.Adapters) and parallel.is_first():
            save_adapter(task, best, out)
    after = assess(task, final, task.graphs)
    result = {
        "strategy": options.strategy,
        "trainable": strategies.count(trained.start),
        "reason": reason,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "seconds": time.perf_counter() - started,
        "messages": task.messages,
        "split": task.split,
        "dataset_sha256": task.dataset_sha256,
        "versions": certificate.versions(),
        "e0": task.e0,
        "before": before,
        "before_with_new_e0": shifted,
        "after": after,
    }
    result["verdict"] = report.verdict(result)
    if parallel.is_first():
        checkpoint.save(out / "best", task.config, final, provenance(task, progress.best_epoch))
        report.write(out, result)
        draw_parity(task, final, out)
    return result


def check_free(out: Path, options: FinetuneConfig, begun: dict[str, str]) -> None:
    """Refuse to mix two runs in one folder.

    Args:
      out: folder of the run.
      options: of this start of it.
      begun: what this start begins with, from `setup.inputs`.

    Raises:
      FileExistsError: the folder is in use and --resume is not given.
      InputError: --resume with options, model or data that the run did not have.
    """
    stored_in = out / "config.json"
    if not stored_in.exists():
        return
    if not options.resume:
        raise FileExistsError(f"{out} holds a run already: choose another --out, or continue it with --resume")
    stored, now = json.loads(stored_in.read_text()), document(options)
    changed = sorted(k for k in now if stored.get(k) != now[k] and k not in ("resume", "config", "out", *JOB))
    if changed:
        raise InputError(f"--resume with other options than the run in {out} had: {', '.join(changed)}")
    if not (out / "inputs.json").exists():
        raise InputError(f"{out} holds a run of an earlier version, without inputs.json: choose another --out")
    stored = json.loads((out / "inputs.json").read_text())
    changed = sorted(name for name in stored.keys() | begun.keys() if stored.get(name) != begun.get(name))
    if changed:
        raise InputError(f"--resume of {out} with contents that changed since it began: {', '.join(changed)}")


def describe(task: Task, trained: strategies.Trainable) -> str:
    """What will be trained, per layer."""
    if isinstance(trained.start, lora.Adapters):
        return lora.table(task.variables["params"], trained.start)
    total = strategies.count(task.variables["params"])
    return f"{strategies.count(trained.start):,} of {total:,} parameters are trained"


def assess(task: Task, variables: dict, graphs: dict[str, list]) -> dict:
    """Errors on every set, phonons and dimers of a model (numpy variables, its own E0s).

    Args:
      task: the run.
      variables: numpy arrays.
      graphs: labelled batches by set, whose energies count from the E0s of this model.
    """
    ff = ForceField(task.config, variables, {}, task.head)
    return {
        "errors": label_errors(task, variables, graphs),
        "phonons": [compare.phonon_errors(ff, path) for path in task.options.phonons],
        "dimers": metrics.dimer_scan(ff, task.numbers),
    }


def label_errors(task: Task, variables: dict, graphs: dict[str, list]) -> dict[str, dict]:
    """`metrics.label_errors` on every set that is not empty; arguments as for `assess`."""
    on_device, losses = potential.cast(variables, task.options.dtype), options_module.losses(task.options)
    return {name: metrics.label_errors(task.config, on_device, graphs[name], losses) for name in SETS if graphs[name]}


def optimise(task: Task, trained: strategies.Trainable, start: float, out: Path) -> tuple[Any, trainer.Progress, str]:
    """Train; returns the best weights (the starting ones if nothing was better), progress and reason."""
    options, mesh = task.options, task.feed.mesh
    plan, losses = training(options), options_module.losses(options)
    batches = partial(loader.epoch, task.feed)
    steps = plan.epochs * len(batches(0))
    state = trainer.init(trained.start, plan, steps)
    compiled = trainer.make_step(task.config, trained.combine, losses, plan, steps, pull=trained.pull, mesh=mesh)
    variables = potential.cast(task.variables, options.dtype)
    here = jax.device_put(variables)
    everywhere = here if mesh is None else parallel.replicate(variables, mesh)
    combine = jax.jit(trained.combine)

    def evaluate(weights):
        merged = {**here, "params": combine(here["params"], jax.device_get(weights))}
        errors = metrics.label_errors(task.config, merged, task.graphs["valid"], losses)
        return parallel.from_first(errors | watched(task, merged, losses))

    def suspects(state, batch):
        finite = trainer.make_probe(task.config, trained.combine, losses)
        weights = jax.device_get(state.trainable)
        alone = {m.labelled.source: loader.labelled_graph(task.feed, [m]) for m in batch.members}
        return [source for source, graph in alone.items() if not finite(weights, here, graph)]

    # from scratch, the random start is epoch 0; everything else starts from the model it must beat
    start = np.inf if options.strategy == "scratch" else start
    progress, best = trainer.Progress(best=parallel.from_first({"loss": start})["loss"]), trained.start
    path = out / "checkpoint.npz"
    if options.resume and path.exists():
        state, best, progress = checkpoints.restore(path, state, best)

    def save(state, progress, is_best):
        nonlocal best
        if is_best:
            best = jax.device_get(trainer.evaluated(state, plan))
        if parallel.is_first():
            checkpoints.save(path, checkpoints.Stored(state, best, progress))

    with report.Log(out / "metrics.jsonl", progress, steps, int(state.step)) as log:
        state, progress, reason = trainer.fit(
            parallel.replicate(state, mesh), progress, step=lambda s, g: compiled(s, everywhere, g),
            batches=batches, evaluate=evaluate, options=plan, save=save, log=log, suspects=suspects,
        )  # fmt: skip
    return best, progress, reason


def watched(task: Task, variables: dict, losses: loss.LossConfig) -> dict[str, float | None]:
    """Errors on the other sets and crystals that `--watch` names, by prefixed name."""
    out: dict[str, float | None] = {}
    for name in task.options.watch:
        if name == "phonons":
            ff = ForceField(task.config, jax.device_get(variables), {}, task.head)
            for path in task.options.phonons:
                found = compare.phonon_errors(ff, path)
                out |= {f"{found['crystal']}_{k}": found[k] for k in ("frequency_mae", "omega_max", "heat_capacity")}
        elif task.items[name]:
            found = metrics.label_errors(task.config, variables, task.graphs[name], losses)
            out |= {f"{name}_{k}": v for k, v in found.items()}
    return out


def with_energies(variables: dict, energies: np.ndarray) -> dict:
    """Variables with other isolated-atom energies, in the dtype of the old."""
    old = np.asarray(variables["constants"]["atomic_energies"])
    return {**variables, "constants": {**variables["constants"], "atomic_energies": energies.astype(old.dtype)}}


def finished(task: Task, trained: strategies.Trainable, best: Any) -> dict:
    """The merged model: numpy variables in the dtypes of the starting one."""
    if isinstance(best, lora.Adapters):
        return lora.merge(task.variables, best, task.energies)
    params = jax.tree.map(
        lambda new, old: np.asarray(new).astype(np.asarray(old).dtype),
        trained.combine(task.variables["params"], best),
        task.variables["params"],
    )
    return with_energies({**task.variables, "params": params}, task.energies)


def draw_parity(task: Task, final: dict, out: Path) -> None:
    """Parity plot of the test set, or of the validation set where there is none."""
    items = task.items["test"] or task.items["valid"]
    if items:
        ff = ForceField(task.config, final, {}, task.head)
        structures = [i.labelled for i in items]
        found = data.predictions(ff, structures, dtype=task.options.dtype)
        plots.draw_parity(out / "parity.png", parity(structures, found))


def save_adapter(task: Task, best: lora.Adapters, out: Path) -> None:
    """`adapter/`: the few numbers that were trained, and which backbone they belong to."""
    files.save(
        out / "adapter",
        best,
        task.config,
        task.variables,
        energies=task.energies,
        dataset_sha256=task.dataset_sha256,
        metadata={"strategy": task.options.strategy, "base": task.metadata},
    )
