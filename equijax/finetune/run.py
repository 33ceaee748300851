"""A fine-tuning run from options to report: train, assess before and after, write everything."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from equijax import checkpoint, executables, outputs, parallel, plots, potential
from equijax.adapters import files
from equijax.adapters.lora import Adapters
from equijax.data import errors
from equijax.data.items import predictions
from equijax.errors import needed
from equijax.finetune import checkpoints, committee, loader, metrics, report, retained, setup, strategies, trainer
from equijax.finetune.metrics import LabelErrors
from equijax.finetune.options import UNRESOLVED, FinetuneOptions
from equijax.finetune.report import Assessment, Result
from equijax.finetune.setup import Graphs, Setup
from equijax.phonons import certificate, compare

RUN = outputs.Kind(
    "a fine-tuning run",
    "config.json",
    frozenset({"model", "train", "strategy", "out"}),
    frozenset({"config.json"}),
    frozenset(
        {".lock", "inputs.json", "metrics.jsonl", "checkpoint.npz", "report.json", "best", "adapter"}
        | {"learning_curve.png", "parity.png", "committee"}
    ),
)


def say(text: str) -> None:
    """Print, in the first process."""
    if parallel.is_first():
        print(text)


@outputs.locked
def run(options: FinetuneOptions) -> Result | None:
    """Fine-tune in `options.dtype` and write everything to `options.out`.

    Args:
      options: from `equijax.finetune.defaults.resolve`.

    Returns:
      what report.json holds, or None if a signal stopped the run.

    Raises:
      FileExistsError: the output folder is in use, or holds a run and --resume is not given.
      ValueError: bad data or options; see the modules they belong to.
      TrainingDiverged: see `trainer.fit`.
    """
    with jax.enable_x64(options.dtype == "float64"), executables.carefully():  # resumed, it is the same to the last bit
        return _run(options)


def _run(options: FinetuneOptions) -> Result | None:
    started, out = time.perf_counter(), options.out.absolute()
    begun = checkpoints.inputs(options)
    checkpoints.check_free(out, options, begun=begun)
    made = setup.begin(options)
    parallel.wait("the folder is free for all processes")
    if parallel.is_first():
        checkpoints.begin(out, options, begun=begun)
    say("\n".join(made.messages))
    before, shifted = assess(made, made.ff.variables, graphs=made.untouched_graphs), None
    at_start = {"zero-shot": before.errors}
    if made.e0 != "model":
        shifted = set_errors(made, strategies.with_energies(made.ff.variables, made.energies), graphs=made.graphs)
        at_start[report.shifted_name(made.e0)] = shifted
    say(report.errors_table(at_start))
    best, progress, reason = made.trained.start, trainer.Progress(), "zero-shot"
    start = (shifted or before.errors)["valid"].loss if options.strategy != "zero-shot" else np.inf
    if options.strategy != "zero-shot":
        say(strategies.describe(made.ff.variables["params"], made.trained))
        best, progress, reason = optimise(made, start, out=out)
    if reason == "interrupted":
        say(f"stopped by a signal after epoch {progress.epoch}, saved; continue with --resume")
        return None
    together = committee.train(made, start) if options.committee else None
    if options.committee and together is None:
        say("stopped by a signal while the committee was trained, which --resume begins anew; the rest is saved")
        return None
    final = strategies.merged(made.ff.variables, made.trained, best=best, energies=made.energies)
    after = assess(made, final, graphs=made.graphs)
    result = Result(
        strategy=options.strategy,
        trainable=strategies.count(made.trained.start),
        reason=reason,
        best_epoch=progress.best_epoch,
        epochs=progress.epoch,
        seconds=time.perf_counter() - started,
        messages=made.messages,
        structures={name: len(items) for name, items in made.items.items() if items},
        split=made.split,
        dataset_sha256=made.dataset_sha256,
        versions=certificate.versions(),
        e0=made.e0,
        before=before,
        before_with_new_e0=shifted,
        after=after,
    )
    result = result._replace(verdict=report.verdict(result))
    if parallel.is_first():
        write(made, out, best=best, final=final, result=result)
        if together is not None:
            say(committee.write(made, out / "committee", trained=together))
    return result


def optimise(made: Setup, start: float, *, out: Path) -> tuple[Any, trainer.Progress, str]:
    """Train; returns the best weights (the starting ones if nothing was better), progress and reason.

    Args:
      made: from `setup.begin`.
      start: validation loss of the starting model, which training must beat.
      out: folder for the log and the checkpoint.
    """
    options, trained, config, mesh = made.options, made.trained, made.ff.config, made.training.mesh
    plan, losses = options.training, options.loss
    batches = partial(loader.epoch, made.training)
    steps = needed(plan.epochs, UNRESOLVED) * len(batches(0))
    state = trainer.init(trained.start, plan, total_steps=steps)
    step = trainer.make_step(config, trained, losses=losses, options=plan, total_steps=steps, mesh=mesh)
    if mesh is None:
        acts = f"{trained.combine.__module__}.{trained.combine.__qualname__}"  # a function of a module
        step = executables.keep(step, ("training_step", config, acts, trained.pull, losses, plan, steps))
    variables = potential.cast(made.ff.variables, options.dtype)
    here = jax.device_put(variables)
    everywhere = here if mesh is None else parallel.replicate(variables, mesh)
    combine = jax.jit(trained.combine)

    def evaluate(weights: Any) -> dict[str, float | None]:
        model = {**here, "params": combine(here["params"], jax.device_get(weights))}
        found = metrics.label_errors(config, model, graphs=made.graphs["valid"], losses=losses)
        return parallel.from_first(found._asdict() | watched(made, model))

    def suspects(state: trainer.TrainState, batch: loader.Batch) -> list[str]:
        finite = trainer.make_probe(config, trained, losses=losses)
        weights = jax.device_get(state.trainable)
        alone = {m.labelled.source: loader.labelled_graph(made.training, [m]) for m in batch.members}
        return [source for source, graph in alone.items() if not finite(weights, here, graph)]

    # from scratch, the random start is epoch 0; everything else starts from the model it must beat
    start = np.inf if options.strategy == "scratch" else start
    shared = needed(parallel.from_first({"loss": start})["loss"], "the starting model has no validation loss")
    progress, best = trainer.Progress(best=shared), trained.start
    path = out / "checkpoint.npz"
    if options.resume and path.exists():
        state, best, progress = checkpoints.restore(path, state, best=best)

    def save(state: trainer.TrainState, progress: trainer.Progress, is_best: bool) -> None:
        nonlocal best
        if is_best:
            best = jax.device_get(trainer.evaluated(state, plan))
        if parallel.is_first():
            checkpoints.save(path, checkpoints.Stored(state, best, progress))

    with report.Log(out / "metrics.jsonl", progress, steps=steps, done=int(state.step)) as log:
        hooks = trainer.Hooks(lambda s, g: step(s, everywhere, g), batches, evaluate, save, log, suspects)
        fitted = trainer.fit(parallel.replicate(state, mesh), progress, hooks=hooks, options=plan)
    return best, fitted.progress, fitted.reason


def assess(made: Setup, variables: dict, *, graphs: Graphs) -> Assessment:
    """Errors on every set, phonons and dimers of a model.

    Args:
      made: the run.
      variables: numpy arrays, the model's own E0s among them.
      graphs: labelled batches by set, whose energies count from those E0s.
    """
    ff = made.model(variables)
    phonons = [compare.phonon_errors(ff, path).document() for path in made.options.phonons]
    return Assessment(set_errors(made, variables, graphs=graphs), phonons, metrics.dimer_scan(ff, made.numbers))


def set_errors(made: Setup, variables: dict, *, graphs: Graphs) -> dict[str, LabelErrors]:
    """Errors of a model (numpy variables) on every set that has structures."""
    on_device = jax.device_put(potential.cast(variables, made.options.dtype))
    losses = made.options.loss
    return {
        name: metrics.label_errors(made.ff.config, on_device, graphs=some, losses=losses)
        for name, some in graphs.items()
        if some
    }


def watched(made: Setup, variables: dict) -> dict[str, float | None]:
    """Errors on the other sets and crystals that `--watch` names, by prefixed name."""
    out: dict[str, float | None] = {}
    for name in made.options.watch:
        if name == "phonons":
            ff = made.model(jax.device_get(variables))
            for path in made.options.phonons:
                found = compare.phonon_errors(ff, path).document()
                out |= {f"{found['crystal']}_{k}": found[k] for k in ("frequency_mae", "omega_max", "heat_capacity")}
            continue
        for one in (n for n in (retained.KINDS if name == "retain" else (name,)) if made.items[n]):
            graphs, losses = made.graphs[one], made.options.loss
            errors = metrics.label_errors(made.ff.config, variables, graphs=graphs, losses=losses)
            out |= {f"{one}_{k}": v for k, v in errors._asdict().items()}
    return out


def write(made: Setup, out: Path, *, best: Any, final: dict, result: Result) -> None:
    """The adapter, the merged model, the report and the parity plot of the test set, or else of the validation set."""
    if isinstance(best, Adapters):
        files.save(
            out / "adapter",
            best,
            base=made.ff,
            energies=made.energies,
            dataset_sha256=made.dataset_sha256,
            metadata={"strategy": made.options.strategy, "base": made.ff.metadata},
        )
    checkpoint.save(
        out / "best", made.ff.config, variables=final, metadata=made.provenance | {"best_epoch": result.best_epoch}
    )
    report.write(out, result)
    structures = [i.labelled for i in made.items["test"] or made.items["valid"]]
    if structures:
        found = predictions(made.model(final), structures, dtype=made.options.dtype)
        plots.draw_parity(out / "parity.png", errors.parity(structures, found))
