"""Train a committee: adapters of several seeds and bootstraps of the training set, all in one compiled program.

Member m starts from adapters of seed + m and counts structure i as n_mi structures, n_m drawn with replacement as many
times as there are structures. Data order, learning rate and all else are shared, so that whatever does not depend on a
member is computed once a step; a member is what it would be if it were trained alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from tqdm import tqdm

from equijax import executables, plots, potential
from equijax.adapters import committee
from equijax.adapters.lora import Adapters
from equijax.config import Compute, ModelConfig
from equijax.errors import needed
from equijax.finetune import calibration, loader, loss, strategies, trainer
from equijax.finetune.options import UNRESOLVED, FinetuneOptions
from equijax.finetune.setup import Setup

WEIGHTS = ("weight", "energy_weight", "forces_weight", "stress_weight")  # labels that a member's draws multiply


class Trained(NamedTuple):
    """A trained committee of M members."""

    adapters: Adapters  # arrays [M, ...], each member's of the epoch with its lowest validation loss
    losses: np.ndarray  # [M] that loss
    best_epochs: np.ndarray  # [M]; 0: the start was never beaten
    draws: np.ndarray  # [M, structures] how often each member drew each training structure


def draws(members: int, structures: int, *, seed: int) -> np.ndarray:
    """[M, structures] how often each member draws each structure: a function of the seed and the member alone."""
    even = np.full(structures, 1 / structures)
    return np.stack([np.random.default_rng([seed, m]).multinomial(structures, even) for m in range(members)])


def starts(options: FinetuneOptions, config: ModelConfig, *, variables: dict, numbers: Sequence[int]) -> list[Any]:
    """What each member begins with; arguments as for `strategies.trainable`."""
    seeds = range(options.seed, options.seed + options.committee)
    every = (dataclasses.replace(options, seed=seed) for seed in seeds)
    return [strategies.trainable(o, config, variables=variables, numbers=numbers).start for o in every]


def weighted(graph: jraph.GraphsTuple, factors: Any) -> jraph.GraphsTuple:
    """A labelled graph whose structures count `factors` [G] times."""
    labels = graph.globals.labels
    labels = labels._replace(**{name: getattr(labels, name) * factors for name in WEIGHTS})
    return graph._replace(globals=graph.globals._replace(labels=labels))


def factors(training: loader.TrainingSet, batch: loader.Batch, *, draws: np.ndarray) -> np.ndarray:
    """[M, G] of a batch: how often each member drew its structures; 1 for replay, force constants and padding."""
    place = {id(item): i for i, item in enumerate(training.items)}
    out = np.ones((len(draws), len(batch.graph.n_node)), training.dtype)
    for g, item in enumerate(batch.members):
        if id(item) in place:
            out[:, g] = draws[:, place[id(item)]]
    return out


def make_step(one: Callable) -> Callable[..., tuple[trainer.TrainState, dict]]:
    """(states, variables, graph, factors) -> (states, metrics), all but variables and graph with an axis [M].

    Args:
      one: the step of a single model, from `trainer.make_step`.
    """

    def step(
        states: trainer.TrainState, variables: dict, graph: jraph.GraphsTuple, factors: jax.Array
    ) -> tuple[trainer.TrainState, dict]:
        return jax.vmap(lambda state, own: one(state, variables, weighted(graph, own)))(states, factors)

    return jax.jit(step, donate_argnums=0)


def validation(made: Setup, key: tuple) -> Callable[[Any, dict], np.ndarray]:
    """(what is trained [M, ...], variables) -> [M] validation losses.

    Args:
      made: the run.
      key: all that its programs depend on beside their arguments.
    """
    config, combine, losses = made.ff.config, made.trained.combine, made.options.loss

    def sums(several: Any, variables: dict, graph: jraph.GraphsTuple) -> dict:
        def one(own: Any) -> dict:
            model = {**variables, "params": combine(variables["params"], own)}
            terms = loss.sums(config, model, graph=graph, options=losses)
            return {name: (term.numerators.sum(), term.count) for name, term in terms.items()}

        return jax.vmap(one)(several)

    compiled = executables.keep(jax.jit(sums), ("committee_losses", *key))

    def values(several: Any, variables: dict) -> np.ndarray:
        total: dict[str, np.ndarray] = {}
        for graph in made.graphs["valid"]:
            for name, found in jax.device_get(compiled(several, variables, graph)).items():
                total[name] = total.get(name, 0.0) + np.asarray(found, float)  # [2, M]
        return np.sum([losses.weight(name) * n / np.maximum(c, 1.0) for name, (n, c) in total.items()], axis=0)

    return values


def stack(trees: Sequence[Any]) -> Any:
    """Pytrees of one kind as one whose leaves have a leading axis."""
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(leaf) for leaf in x]), *trees)


def train(made: Setup, start: float) -> Trained | None:
    """Train all members; None if a signal stopped it.

    Args:
      made: from `setup.begin`.
      start: validation loss of the starting model, which each member must beat.

    Raises:
      TrainingDiverged: a loss or gradient of a member is not finite.
    """
    options, trained, config = made.options, made.trained, made.ff.config
    plan, losses, training = options.training, options.loss, made.training
    epochs = needed(plan.epochs, UNRESOLVED)
    steps = epochs * len(loader.epoch(training, 0))
    counts = draws(options.committee, len(training.items), seed=options.seed)
    begun = starts(options, config, variables=made.ff.variables, numbers=made.numbers)
    states = stack([trainer.init(own, plan, total_steps=steps) for own in begun])
    acts = f"{trained.combine.__module__}.{trained.combine.__qualname__}"
    key = (config, acts, trained.pull, losses, plan, steps)
    step = make_step(trainer.make_step(config, trained, losses=losses, options=plan, total_steps=steps))
    step = executables.keep(step, ("committee_step", *key))
    losses_of = validation(made, key)
    variables = jax.device_put(potential.cast(made.ff.variables, options.dtype))
    evaluated = jax.jit(jax.vmap(lambda state: trainer.evaluated(state, plan)))
    found = Trained(stack(begun), np.full(options.committee, start), np.zeros(options.committee, int), counts)
    with (
        trainer.stop_signal() as stopped,
        tqdm(total=steps, desc=f"committee of {options.committee}", unit="step", dynamic_ncols=True) as bar,
    ):
        for epoch in range(epochs):
            for batch in loader.epoch(training, epoch):
                own = factors(training, batch, draws=counts)
                states, metrics = step(states, variables, batch.graph, own)
                _check_finite(jax.device_get(metrics), batch, epoch=epoch)
                bar.update()
                if stopped():
                    return None
            if (epoch + 1) % plan.evaluate_every and epoch + 1 < epochs:
                continue
            now = evaluated(states)
            found = better(found, now, losses=losses_of(now, variables), epoch=epoch + 1)
            bar.set_postfix({"valid": f"{found.losses.mean():.3g}"}, refresh=False)
    return found._replace(adapters=jax.device_get(found.adapters))


def better(found: Trained, now: Any, *, losses: np.ndarray, epoch: int) -> Trained:
    """The best of each member, after an evaluation of weights `now` [M, ...]; NaN is never best."""
    is_best = losses < found.losses
    adapters = jax.tree.map(
        lambda new, old: jnp.where(is_best.reshape(-1, *(1,) * (new.ndim - 1)), new, old), now, found.adapters
    )
    kept, best = np.where(is_best, losses, found.losses), np.where(is_best, epoch, found.best_epochs)
    return Trained(adapters, kept, best, found.draws)


def _check_finite(metrics: dict, batch: loader.Batch, *, epoch: int) -> None:
    if not metrics["finite"].all():
        members = np.flatnonzero(~metrics["finite"]).tolist()
        raise trainer.TrainingDiverged(
            f"committee, epoch {epoch + 1}: loss or gradient of members {members} is not finite on "
            f"{', '.join(batch.names)}; lower the learning rate"
        )


def write(made: Setup, out: Path, *, trained: Trained) -> str:
    """Write the committee directory `out`, with a calibration on the test set or else the validation set; its table."""
    head = made.ff.config.heads[made.ff.head_index]
    which = "test" if made.items["test"] else "valid"
    structures = [i.labelled for i in made.items[which] if i.labelled.head in (None, head)]
    together = committee.gather(made.ff, trained.adapters, energies=made.energies)
    found = together.evaluate_members([s.atoms for s in structures], compute=Compute(made.options.dtype))
    pairs = calibration.pairs(structures, found)
    told = calibration.summarise(pairs)
    document = {
        "best_epochs": trained.best_epochs.tolist(),
        "validation_losses": trained.losses.tolist(),
        "draws": trained.draws.tolist(),
        "calibration": {"set": which, "structures": len(structures)} | {k: c._asdict() for k, c in told.items()},
    }
    committee.save(out, trained.adapters, base=made.ff, energies=made.energies, document=document | made.provenance)
    titles = {"energy": "energy (eV/atom)", "forces": "force (eV/A)", "stress": "stress (eV/A$^3$)"}
    if pairs:
        plots.draw_calibration(out / "calibration.png", {titles[name]: pair for name, pair in pairs.items()})
    return calibration.text(told, which)
