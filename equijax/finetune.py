"""`python -m equijax.finetune --model CKPT --train a.extxyz --out DIR`: fine-tune a model and prove what it did."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import equijax
from equijax import adapters, checkpoint, data, feed, lora, metrics, predict, recipe, report, store, train
from equijax.config import ModelConfig
from equijax.recipe import FinetuneConfig

SETS = ("train", "valid", "test", "retain")


@dataclass(frozen=True)
class Setup:
    """A run ready to train."""

    options: FinetuneConfig  # resolved
    config: ModelConfig
    variables: dict  # of the starting model, as loaded
    metadata: dict
    energies: np.ndarray  # [H, Z] eV, isolated atoms of the result
    messages: tuple[str, ...]
    items: dict[str, list[data.Item]]  # by set
    graphs: dict[str, list]  # labelled evaluation batches, by set
    feed: feed.Feed
    split: dict | None

    @property
    def head(self) -> str | None:
        return self.config.heads[self.feed.head] if len(self.config.heads) > 1 else None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; prints the final table.

    Raises:
      SystemExit: bad options.
    """
    options = recipe.resolve(recipe.read(sys.argv[1:] if argv is None else argv))
    with jax.enable_x64(options.dtype == "float64"):
        result = run(options)
    if result is not None:
        print(report.summary(result))
    return 0


def run(options: FinetuneConfig) -> dict | None:
    """Fine-tune and write everything to `options.out`.

    Args:
      options: from `recipe.resolve`.

    Returns:
      what report.json holds, or None if a signal stopped the run.

    Raises:
      FileExistsError: the output folder is in use and --resume is not given.
      ValueError: bad data or options; see the modules they belong to.
      TrainingDiverged: see `train.fit`.
    """
    started = time.perf_counter()
    out = claim(options)
    setup = prepare(options)
    print("\n".join(setup.messages))
    before = assess(setup, setup.variables, setup.items)
    print(report.errors_table({"zero-shot": before["errors"]}))
    trained = recipe.Trainable(None, recipe.fill)
    progress, reason = train.Progress(), "zero-shot"
    final = with_energies(setup.variables, setup.energies)
    if options.strategy != "zero-shot":
        numbers = data.elements(i.labelled for i in setup.items["train"])
        trained = recipe.trainable(options, setup.config, setup.variables, numbers)
        print(describe(setup, trained))
        best, progress, reason = optimise(setup, trained, before["errors"]["valid"]["loss"], out)
        if reason == "interrupted":
            print(f"stopped by a signal after epoch {progress.epoch}, saved; continue with --resume")
            return None
        final = finished(setup, trained, best)
        if isinstance(trained.start, lora.Adapters):
            save_adapter(setup, best, out)
    after = assess(setup, final, setup.items)
    provenance = {"base": setup.metadata, "finetune": recipe.document(options), "best_epoch": progress.best_epoch}
    checkpoint.save(out / "best", setup.config, final, provenance)
    result = {
        "strategy": options.strategy,
        "trainable": recipe.count(trained.start),
        "reason": reason,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "seconds": time.perf_counter() - started,
        "messages": setup.messages,
        "split": setup.split,
        "dataset_sha256": data.sha256(i.labelled for i in setup.items["train"]),
        "versions": {m.__name__: m.__version__ for m in (equijax, jax, np)},
        "before": before,
        "after": after,
    }
    result["verdict"] = report.verdict(result)
    report.write(out, result)
    return result


def claim(options: FinetuneConfig) -> Path:
    """Make the output folder and store the options in it."""
    out = options.out.absolute()
    if (out / "config.json").exists() and not options.resume:
        raise FileExistsError(f"{out} holds a run already: choose another --out, or continue it with --resume")
    document = recipe.document(options)
    if options.resume and (out / "config.json").exists():
        stored = json.loads((out / "config.json").read_text())
        changed = sorted(k for k in document if stored.get(k) != document[k] and k not in ("resume", "config", "out"))
        if changed:
            raise ValueError(f"--resume with other options than the run in {out} had: {', '.join(changed)}")
        return out
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(document, indent=1))
    return out


def prepare(options: FinetuneConfig) -> Setup:
    """Load the model and the data, settle E0s and validation set, list neighbours, build the evaluation batches."""
    config, variables, metadata = checkpoint.load(options.model)
    ff = equijax.ForceField(config, variables, metadata)
    head = ff.head_index(options.head)
    keys = data.Keys(energy=options.energy_key, forces=options.forces_key, stress=options.stress_key)
    sets = {name: [s for path in getattr(options, name) for s in data.load(path, keys)] for name in SETS}
    split = None
    if sets["train"] and not sets["valid"]:
        chosen = data.split(len(sets["train"]), options.valid_fraction, options.seed)
        split = {**chosen._asdict(), "sources": [sets["train"][i].source for i in chosen.valid]}
        sets["valid"] = [sets["train"][i] for i in chosen.valid]
        sets["train"] = [sets["train"][i] for i in chosen.train]
    found = ff.evaluate([s.atoms for s in sets["train"]], head=options.head)
    data.check_stress(sets["train"], [f["stress"] for f in found])
    energies = np.asarray(variables["constants"]["atomic_energies"], np.float64)
    messages: tuple[str, ...] = ()
    if options.e0 == "refit":
        refit = data.refit(config, variables, sets["train"], [f["energy"] for f in found], head)
        energies, messages = refit.values, (refit.message,)
    items = {name: data.prepare(structures, config) for name, structures in sets.items()}
    eats = feed.Feed(
        config,
        energies,
        items["train"],
        batch_size=options.batch_size,
        tangents=options.tangents,
        head=head,
        dtype=options.dtype,
        seed=options.seed,
        mesh=train.data_mesh(options.devices),
    )
    feed.warm(eats, options.epochs)
    graphs = {name: feed.evaluation_graphs(eats, chosen) for name, chosen in items.items()}
    return Setup(options, config, variables, metadata, energies, messages, items, graphs, eats, split)


def describe(setup: Setup, trained: recipe.Trainable) -> str:
    """What will be trained, per layer."""
    if isinstance(trained.start, lora.Adapters):
        return lora.table(setup.variables["params"], trained.start)
    total = recipe.count(setup.variables["params"])
    return f"{recipe.count(trained.start):,} of {total:,} parameters are trained"


def assess(setup: Setup, variables: dict, sets: dict) -> dict:
    """Errors on every set, phonons and dimers of a model (numpy variables, its own E0s)."""
    options = setup.options
    on_device = predict.cast(variables, options.dtype)
    loss_config = recipe.losses(options)
    errors = {
        name: metrics.label_errors(setup.config, on_device, setup.graphs[name], loss_config)
        for name in SETS
        if sets[name]
    }
    ff = equijax.ForceField(setup.config, variables, {})
    numbers = data.elements(i.labelled for i in sets["train"])
    return {
        "errors": errors,
        "phonons": [metrics.phonon_errors(ff, path, head=setup.head) for path in options.phonons],
        "dimers": metrics.dimer_scan(ff, numbers, setup.head),
    }


def optimise(setup: Setup, trained: recipe.Trainable, start: float, out: Path) -> tuple[Any, train.Progress, str]:
    """Train; returns the best weights (the starting ones if nothing was better), progress and reason."""
    options = setup.options
    plan, losses = recipe.training(options), recipe.losses(options)
    batches = feed.warm(setup.feed, options.epochs)
    per_epoch = len(batches(0))
    state = train.init(trained.start, plan, options.epochs * per_epoch)
    compiled = train.make_step(
        setup.config, trained.combine, losses, plan, options.epochs * per_epoch, pull=trained.pull, mesh=setup.feed.mesh
    )
    variables = jax.device_put(predict.cast(setup.variables, options.dtype))
    combine = jax.jit(trained.combine)

    def evaluate(weights):
        merged = {**variables, "params": combine(variables["params"], weights)}
        return metrics.label_errors(setup.config, merged, setup.graphs["valid"], losses)

    # from scratch, the random start is epoch 0; everything else starts from the model it must beat
    progress = train.Progress(best=np.inf if options.strategy == "scratch" else start)
    with store.Store(out / "checkpoints") as checkpoints:
        if options.resume and (stored := checkpoints.restore_last(state)) is not None:
            state, progress = stored

        def save(state, progress, is_best):
            if is_best:
                checkpoints.save_best(train.evaluated(state, plan), progress)
            checkpoints.save_last(state, progress)

        with report.Log(out / "metrics.jsonl", progress, options.epochs * per_epoch, int(state.step)) as log:
            state, progress, reason = train.fit(
                state, progress, step=lambda s, g: compiled(s, variables, g), batches=batches, evaluate=evaluate,
                options=plan, save=save, log=log,
            )  # fmt: skip
        best = trained.start
        if progress.best_epoch:
            best = checkpoints.wait().restore_best(trained.start)
    return best, progress, reason


def with_energies(variables: dict, energies: np.ndarray) -> dict:
    """Variables with other isolated-atom energies, in the dtype of the old."""
    old = np.asarray(variables["constants"]["atomic_energies"])
    return {**variables, "constants": {**variables["constants"], "atomic_energies": energies.astype(old.dtype)}}


def finished(setup: Setup, trained: recipe.Trainable, best: Any) -> dict:
    """The merged model: numpy variables in the dtypes of the starting one."""
    if isinstance(best, lora.Adapters):
        return lora.merge(setup.variables, best, setup.energies)
    params = jax.tree.map(
        lambda new, old: np.asarray(new).astype(np.asarray(old).dtype),
        trained.combine(setup.variables["params"], best),
        setup.variables["params"],
    )
    return with_energies({**setup.variables, "params": params}, setup.energies)


def save_adapter(setup: Setup, best: lora.Adapters, out: Path) -> None:
    """`adapter/`: the few numbers that were trained, and which backbone they belong to."""
    adapters.save(
        out / "adapter",
        best,
        setup.config,
        setup.variables,
        energies=setup.energies,
        dataset_sha256=data.sha256(i.labelled for i in setup.items["train"]),
        metadata={"strategy": setup.options.strategy, "base": setup.metadata},
    )


if __name__ == "__main__":
    sys.exit(main())
