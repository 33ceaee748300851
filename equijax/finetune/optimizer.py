"""The update rule: clipping, optimizer, decay, schedule and the moving average, in optax."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from equijax.errors import InputError

EMA_RAMP = 10.0  # the average decays by at most (1 + t) / (10 + t) at step t, so that it forgets the start quickly


@dataclass(frozen=True)
class TrainConfig:
    """How to optimise; the learning rate is warmed up, scheduled and lowered inside the state, never at trace time.

    What is None takes the strategy's default, see `equijax.finetune.options.resolve`.
    """

    optimizer: Literal["adamw", "amsgrad", "sgd", "schedule_free"] | None = None
    """Update rule."""
    lr: float | None = None
    """Learning rate."""
    weight_decay: float | None = None
    """Decoupled; of what is trained only."""
    schedule: Literal["constant", "cosine", "plateau"] | None = None
    """Learning rate after warm-up."""
    warmup: int = 10
    """Steps of warm-up."""
    clip: float | None = None
    """Global gradient norm."""
    ema: float | None = None
    """Decay of the averaged weights; 0 evaluates the last ones."""
    epochs: int | None = None
    """Passes over the training set."""
    patience: int = 50
    """Evaluations without improvement before the run stops."""
    plateau_factor: float = 0.5
    """What the plateau schedule multiplies the learning rate by,"""
    plateau_patience: int = 10
    """after so many evaluations without improvement."""
    evaluate_every: int = 1
    """Epochs."""

    def __post_init__(self) -> None:
        for name in ("lr", "clip"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"{name} = {value} must be positive")
        for name in ("epochs", "patience", "evaluate_every", "plateau_patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} = {value} must be at least 1")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"ema = {self.ema} must be in [0, 1)")
        if self.optimizer == "schedule_free" and self.schedule not in (None, "constant"):
            raise InputError(
                f"schedule_free needs schedule='constant', not {self.schedule!r}: it replaces the schedule"
            )


def optimizer(options: TrainConfig, total_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, the optimizer, decoupled weight decay and the learning rate schedule, in one."""
    rate = learning_rate(options, total_steps)
    rules = {
        "adamw": optax.scale_by_adam(),
        "amsgrad": optax.scale_by_amsgrad(),
        "sgd": optax.trace(0.9),
        "schedule_free": optax.scale_by_adam(b1=0.0),  # the average of the iterates is the momentum
    }
    chain = optax.chain(
        rules[options.optimizer], optax.add_decayed_weights(options.weight_decay), optax.scale_by_learning_rate(rate)
    )
    if options.optimizer == "schedule_free":
        chain = optax.contrib.schedule_free(chain, rate, b1=0.9)
    return optax.chain(optax.clip_by_global_norm(options.clip), chain)


def learning_rate(options: TrainConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine to zero or constant (plateau scales the constant from inside the state)."""
    rate = float(options.lr)
    after = max(1, total_steps - options.warmup)
    main = {
        "cosine": optax.cosine_decay_schedule(rate, after),
        "constant": optax.constant_schedule(rate),
        "plateau": optax.constant_schedule(rate),
    }[options.schedule]
    ramp = optax.linear_schedule(rate / (options.warmup + 1), rate, options.warmup)
    return optax.join_schedules([ramp, main], [options.warmup])


def plateau(options: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """The rule that lowers `plateau.scale` when the validation loss stalls."""
    return optax.contrib.reduce_on_plateau(factor=options.plateau_factor, patience=options.plateau_patience)


def moving_average(ema: Any, new: Any, *, step: jax.Array, decay: float) -> Any:
    """The average after step number `step`: ema + (1 - d) (new - ema), d = min(decay, (1 + t) / (10 + t))."""
    if not decay:
        return new
    t = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1.0 + t) / (EMA_RAMP + t))
    return jax.tree.map(lambda a, b: a + (1.0 - d).astype(a.dtype) * (b - a), ema, new)
