"""The update rule: clipping, optimizer, decay, schedule and the moving average, in optax."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from equijax.errors import InputError

EMA_RAMP = 10.0  # the average decays by at most (1 + t) / (10 + t) at step t, so that it forgets the start quickly


@dataclass(frozen=True)
class TrainConfig:
    """How to optimise; the learning rate is warmed up, scheduled and lowered inside the state, never at trace time."""

    optimizer: Literal["adamw", "amsgrad", "sgd", "schedule_free"] = "amsgrad"
    lr: float = 1e-3
    weight_decay: float = 0.0  # decoupled
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    warmup: int = 10  # steps
    clip: float = 10.0  # global gradient norm
    ema: float = 0.99  # decay; 0 evaluates the last weights
    epochs: int = 100
    patience: int = 50  # evaluations without improvement before the run stops
    plateau_factor: float = 0.5
    plateau_patience: int = 10  # evaluations
    evaluate_every: int = 1  # epochs

    def __post_init__(self):
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} = {getattr(self, name)} must be positive")
        for name in ("epochs", "patience", "evaluate_every", "plateau_patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)} must be at least 1")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema = {self.ema} must be in [0, 1)")
        if self.optimizer == "schedule_free" and self.schedule != "constant":
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
    after = max(1, total_steps - options.warmup)
    main = {
        "cosine": optax.cosine_decay_schedule(options.lr, after),
        "constant": optax.constant_schedule(options.lr),
        "plateau": optax.constant_schedule(options.lr),
    }[options.schedule]
    ramp = optax.linear_schedule(options.lr / (options.warmup + 1), options.lr, options.warmup)
    return optax.join_schedules([ramp, main], [options.warmup])


def plateau(options: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """The rule that lowers `plateau.scale` when the validation loss stalls."""
    return optax.contrib.reduce_on_plateau(factor=options.plateau_factor, patience=options.plateau_patience)


def moving_average(ema, new, step, decay):
    if not decay:
        return new
    t = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1.0 + t) / (EMA_RAMP + t))
    return jax.tree.map(lambda a, b: a + (1.0 - d).astype(a.dtype) * (b - a), ema, new)
