"""Train a small pytree over a frozen backbone: state, one jitted step, the loop.

What a strategy trains (adapters, a residual, some layers) is a `strategies.Trainable`, whose `combine` gives the
parameters of the model. Gradients, optimizer state and averages exist for what is trained only.
"""

import dataclasses
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax
from jax.sharding import Mesh

from equijax import parallel, precision
from equijax.config import ModelConfig
from equijax.errors import NotFinite, needed
from equijax.finetune import loss
from equijax.finetune.loader import Batch
from equijax.finetune.optimizer import moving_average, optimizer, plateau
from equijax.finetune.options import UNRESOLVED, LossConfig, TrainConfig
from equijax.finetune.strategies import Trainable

Tree = Any


class TrainState(NamedTuple):
    """Everything a step reads and writes."""

    step: jax.Array  # [] int32, steps done
    trainable: Tree
    opt_state: Tree
    ema: Tree  # average of `trainable`
    plateau: Tree  # optax.contrib.reduce_on_plateau: `scale` multiplies every update


@dataclass(frozen=True)
class Progress:
    """Where a run stands between two steps; with the state and the seed it fixes everything that follows."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches done in the current one
    loss_sum: float = 0.0  # over those batches
    best: float = math.inf  # validation loss
    best_epoch: int = 0
    stale: int = 0  # evaluations since the best


class TrainingDiverged(NotFinite):
    """A loss or gradient that is not finite; the message names the structures."""


def init(start: Tree, options: TrainConfig, *, total_steps: int) -> TrainState:
    """State before the first step; leaves of `start` are copied, the caller's arrays survive donation.

    Raises:
      InputError: float64 leaves where JAX would make them float32.
    """
    for leaf in jax.tree.leaves(start):
        precision.require(leaf.dtype)
    trainable = jax.tree.map(jnp.array, start)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=optimizer(options, total_steps).init(trainable),
        ema=jax.tree.map(jnp.array, trainable),
        plateau=plateau(options).init(trainable),
    )


def make_step(
    config: ModelConfig,
    trained: Trainable,
    *,
    losses: LossConfig,
    options: TrainConfig,
    total_steps: int,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, dict, jraph.GraphsTuple], tuple[TrainState, dict]]:
    """The training step, compiled once per batch shape with the state's buffers donated.

    L = sum_t w_t <rho_t> + pull / 2 |trainable|^2

    Args:
      config: model hyper-parameters.
      trained: how what is trained acts on the backbone, and how hard it is pulled to zero.
      losses: terms of the loss.
      options: optimizer, schedule, clipping, EMA.
      total_steps: length of the schedule.
      mesh: one axis "data" over devices; batches then carry a leading device axis, and the result is that of one
        device given all of the shards.

    Returns:
      (state, variables, graph) -> (state, metrics): loss, grad_norm, one entry per term, and `finite`. A step whose
      loss or gradient is not finite leaves the state as it was.
    """
    rule = optimizer(options, total_steps)
    gradient = _gradient(config, trained, losses=losses, axis=None if mesh is None else "data")
    if mesh is not None:
        gradient = _sharded(gradient, mesh)

    def step(state: TrainState, variables: dict, graph: jraph.GraphsTuple) -> tuple[TrainState, dict]:
        value, parts, grads = gradient(state.trainable, variables, graph)
        if trained.pull:
            value = value + 0.5 * trained.pull * optax.tree.norm(state.trainable, squared=True)
            grads = jax.tree.map(lambda g, x: g + trained.pull * x, grads, state.trainable)
        norm = optax.tree.norm(grads)
        updates, opt_state = rule.update(grads, state.opt_state, state.trainable)
        updates = jax.tree.map(lambda u: u * state.plateau.scale.astype(u.dtype), updates)
        trainable = optax.apply_updates(state.trainable, updates)
        ema = moving_average(state.ema, trainable, step=state.step, decay=needed(options.ema, UNRESOLVED))
        after = TrainState(state.step + 1, trainable, opt_state, ema, state.plateau)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        return state, {"loss": value, "grad_norm": norm, "finite": finite, **parts}

    return jax.jit(step, donate_argnums=0)


Gradient = Callable[[Tree, dict, jraph.GraphsTuple], tuple[jax.Array, dict, Tree]]


def _gradient(config: ModelConfig, trained: Trainable, *, losses: LossConfig, axis: str | None) -> Gradient:
    """(trainable, variables, graph) -> loss, terms, gradient; summed over `axis` where there is one."""

    def gradient(trainable: Tree, variables: dict, graph: jraph.GraphsTuple) -> tuple[jax.Array, dict, Tree]:
        def objective(trainable: Tree) -> tuple[jax.Array, dict]:
            model = {**variables, "params": trained.combine(variables["params"], trainable)}
            terms = loss.sums(config, model, graph=graph, options=losses)
            counts = {t: term.count for t, term in terms.items()}
            if axis is not None:
                counts = jax.lax.psum(counts, axis)
            terms = {t: loss.Term(term.numerators, counts[t]) for t, term in terms.items()}
            return loss.total(terms, losses), {t: loss.mean(term) for t, term in terms.items()}

        (value, parts), grads = jax.value_and_grad(objective, has_aux=True)(trainable)
        out = value, parts, grads
        return out if axis is None else jax.lax.psum(out, axis)

    return gradient


def _sharded(gradient: Gradient, mesh: Mesh) -> Gradient:
    everywhere, split = parallel.EVERYWHERE, parallel.SPLIT

    def one_device(trainable: Tree, variables: dict, graphs: jraph.GraphsTuple) -> tuple[jax.Array, dict, Tree]:
        return gradient(trainable, variables, jax.tree.map(lambda x: x[0], graphs))

    return jax.shard_map(
        one_device, mesh=mesh, in_specs=(everywhere, everywhere, split), out_specs=everywhere, check_vma=False
    )


def evaluated(state: TrainState, options: TrainConfig) -> Tree:
    """The weights that count: the schedule-free average, the EMA, or the last ones."""
    if options.optimizer == "schedule_free":
        return optax.contrib.schedule_free_eval_params(state.opt_state[1], state.trainable)
    return state.ema


def observe(state: TrainState, options: TrainConfig, *, value: float) -> TrainState:
    """Tell the plateau rule a validation loss."""
    if options.schedule != "plateau":
        return state
    return state._replace(
        plateau=_observe(options, state.plateau, value=np.asarray(value, state.plateau.best_value.dtype))
    )


@partial(jax.jit, static_argnums=0)
def _observe(options: TrainConfig, state: Tree, *, value: np.ndarray) -> Tree:
    return plateau(options).update((), state, value=value)[1]


class Hooks(NamedTuple):
    """What `fit` calls."""

    step: Callable[[TrainState, jraph.GraphsTuple], tuple[TrainState, dict]]  # as `make_step` says
    # epoch -> batches, a function of the epoch alone so that a resumed run sees the same ones
    batches: Callable[[int], Sequence[Batch]]
    evaluate: Callable[[Tree], dict]  # trainable -> metrics, of which "loss" decides
    save: Callable[[TrainState, Progress, bool], None]  # with is_best, after each evaluation and on a signal
    log: Callable[[dict], None]  # with one record per evaluation and one per step (key "batch")
    # sources of the structures of a batch that have no finite loss and gradient when they are alone
    suspects: Callable[[TrainState, Batch], Sequence[str]] = lambda state, batch: ()


class Fitted(NamedTuple):
    """Where `fit` ended."""

    state: TrainState
    progress: Progress
    reason: Literal["finished", "early stopping", "interrupted"]


def fit(state: TrainState, progress: Progress, *, hooks: Hooks, options: TrainConfig) -> Fitted:
    """Train until the epochs are over, the patience is exhausted or a signal asks to stop.

    Args:
      state: from `init` or a checkpoint.
      progress: where to start; its `best` is the validation loss of the starting model, epoch 0.
      hooks: what a step, an epoch and an evaluation are.
      options: epochs, patience and how often to evaluate.

    Raises:
      TrainingDiverged: a loss or gradient is not finite; the message names the structures.
    """
    epochs = needed(options.epochs, UNRESOLVED)
    with stop_signal() as stopped:
        while progress.epoch < epochs and progress.stale < options.patience:
            for batch in hooks.batches(progress.epoch)[progress.batch :]:
                state, metrics = hooks.step(state, batch.graph)
                metrics = jax.device_get(metrics)
                if not metrics["finite"]:
                    who = hooks.suspects(state, batch)
                    raise TrainingDiverged(divergence(metrics, batch, progress=progress, suspects=who))
                value = progress.loss_sum + float(metrics["loss"])
                progress = dataclasses.replace(progress, batch=progress.batch + 1, loss_sum=value)
                hooks.log({"epoch": progress.epoch + 1, "batch": progress.batch, **metrics})
                if parallel.any_process(stopped()):
                    hooks.save(state, progress, False)
                    return Fitted(state, progress, "interrupted")
            mean = progress.loss_sum / max(progress.batch, 1)
            progress = dataclasses.replace(progress, epoch=progress.epoch + 1, batch=0, loss_sum=0.0)
            if progress.epoch % options.evaluate_every and progress.epoch < epochs:
                continue
            found = hooks.evaluate(evaluated(state, options))
            state = observe(state, options, value=found["loss"])
            progress, is_best = judge(progress, found["loss"])
            hooks.log({"epoch": progress.epoch, "train_loss": mean, "scale": float(state.plateau.scale), **found})
            hooks.save(state, progress, is_best)
    return Fitted(state, progress, "early stopping" if progress.stale >= options.patience else "finished")


def judge(progress: Progress, value: float) -> tuple[Progress, bool]:
    """Book a validation loss: (progress, whether it is the best so far). NaN is never best."""
    if value < progress.best:
        return dataclasses.replace(progress, best=value, best_epoch=progress.epoch, stale=0), True
    return dataclasses.replace(progress, stale=progress.stale + 1), False


def divergence(metrics: dict, batch: Batch, *, progress: Progress, suspects: Sequence[str]) -> str:
    """What to say of a loss or gradient that is not finite: which structures are to blame."""
    where = f"epoch {progress.epoch + 1}, batch {progress.batch + 1}: loss {metrics['loss']}, gradient norm "
    if suspects:
        who = f"not finite for {', '.join(suspects)} alone: check labels and distances there"
    else:
        who = f"each of {', '.join(batch.names)} alone is finite: lower the learning rate or its weight decay"
    return f"{where}{metrics['grad_norm']}; {who}. The state before this step is kept"


def make_probe(
    config: ModelConfig, trained: Trainable, *, losses: LossConfig
) -> Callable[[Tree, dict, jraph.GraphsTuple], jax.Array]:
    """(trainable, variables, graph) -> whether loss and gradient of a graph are finite, on one device."""
    gradient = _gradient(config, trained, losses=losses, axis=None)

    def probe(trainable: Tree, variables: dict, graph: jraph.GraphsTuple) -> jax.Array:
        value, _, grads = gradient(trainable, variables, graph)
        return jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))

    return jax.jit(probe)


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT set a flag instead of killing the process; previous handlers come back afterwards.

    A second SIGINT does not wait for the end of the step: it is a KeyboardInterrupt.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if received.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
