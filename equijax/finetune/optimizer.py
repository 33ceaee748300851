"""The update rule: clipping, optimizer, decay, schedule and the moving average, in optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from equijax.errors import needed
from equijax.finetune.options import UNRESOLVED, TrainConfig

EMA_RAMP = 10.0  # the average decays by at most (1 + t) / (10 + t) at step t, so that it forgets the start quickly


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
        rules[needed(options.optimizer, UNRESOLVED)],
        optax.add_decayed_weights(needed(options.weight_decay, UNRESOLVED)),
        optax.scale_by_learning_rate(rate),
    )
    if options.optimizer == "schedule_free":
        chain = optax.contrib.schedule_free(chain, rate, b1=0.9)
    return optax.chain(optax.clip_by_global_norm(needed(options.clip, UNRESOLVED)), chain)


def learning_rate(options: TrainConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine to zero or constant (plateau scales the constant from inside the state)."""
    rate = needed(options.lr, UNRESOLVED)
    after = max(1, total_steps - options.warmup)
    main = {
        "cosine": optax.cosine_decay_schedule(rate, after),
        "constant": optax.constant_schedule(rate),
        "plateau": optax.constant_schedule(rate),
    }[needed(options.schedule, UNRESOLVED)]
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
