"""What each strategy trains best with, for the options that were left out."""

import dataclasses
from typing import TypeVar

from equijax.errors import InputError
from equijax.finetune.options import FinetuneOptions, LossConfig, Strategy, TrainConfig

# Weights that belong to one element: changing only these leaves compounds of other elements exactly as they were, which
# gives up some accuracy on the target and keeps nearly all of the rest (bench/strategies.py).
LORA_TARGETS = ("node_embedding", r"interactions_\d+/skip_tp", r"products_\d+/contraction_l\d+")
Part = TypeVar("Part", TrainConfig, LossConfig)
# What a strategy trains best with: see bench/tuning.py.
TRAINING = TrainConfig(
    optimizer="amsgrad", lr=1e-3, weight_decay=0.0, schedule="cosine", clip=10.0, ema=0.99, epochs=12
)
LOSS = LossConfig(loss="huber", energy_weight=1.0, forces_weight=10.0, stress_weight=100.0)
GENTLE = dataclasses.replace(TRAINING, ema=0.999, clip=1.0)
DEFAULTS: dict[Strategy, tuple[TrainConfig, LossConfig]] = {
    "zero-shot": (TRAINING, LOSS),
    # 12 passes teach it little, and it has nothing to forget
    "scratch": (dataclasses.replace(TRAINING, lr=1e-2, epochs=120), LOSS),
    "naive": (GENTLE, LOSS),
    "freeze": (GENTLE, LOSS),
    "delta": (TRAINING, LOSS),
    "lora": (dataclasses.replace(TRAINING, lr=2e-2), LOSS),
    "multihead": (
        dataclasses.replace(TRAINING, lr=3e-4, ema=0.999),
        dataclasses.replace(LOSS, loss="universal"),
    ),
}


def resolve(options: FinetuneOptions) -> FinetuneOptions:
    """Fill what was left out with the strategy's defaults, and refuse what cannot work.

    Raises:
      InputError: options that contradict each other.
    """
    if not options.train and options.strategy != "zero-shot":
        raise InputError("--train names no files")
    if not 0 < options.valid_fraction < 1:
        raise InputError(f"valid_fraction = {options.valid_fraction} must be between 0 and 1")
    if options.replay_related < 0:
        raise InputError(f"replay_related = {options.replay_related} must not be negative")
    by_model = options.replay_self or options.replay_related
    if options.strategy == "multihead" and not (options.replay or by_model):
        raise InputError("multihead keeps the old head by replay: give --replay, --replay-self or --replay-related")
    if options.replay_hessian and not (by_model and options.loss.hessian_weight > 0):
        raise InputError("replay_hessian needs --replay-self or --replay-related, and a --hessian-weight")
    if options.batch_size < 1 or options.devices < 1:
        raise InputError(f"batch_size {options.batch_size} and devices {options.devices} must be at least 1")
    _check_committee(options)
    training, loss = DEFAULTS[options.strategy]
    if options.training.optimizer == "schedule_free":
        training = dataclasses.replace(training, schedule="constant")
    return dataclasses.replace(options, training=_filled(options.training, training), loss=_filled(options.loss, loss))


def _check_committee(options: FinetuneOptions) -> None:
    if options.committee == 0:
        return
    if options.committee < 2:
        raise InputError(f"committee = {options.committee}: expected at least 2 members, or 0 for none")
    if options.strategy not in ("lora", "delta"):
        raise InputError(f"committee = {options.committee} needs adapters: --strategy lora or delta")
    if options.devices > 1 or options.distributed:
        raise InputError(
            f"committee = {options.committee} is trained on one device: leave --devices, --distributed away"
        )
    if options.training.schedule == "plateau":
        raise InputError(
            f"committee = {options.committee} shares one learning rate: choose another schedule than plateau"
        )


def _filled(given: Part, defaults: Part) -> Part:
    """What is None in `given`, taken from `defaults`."""
    missing = [f.name for f in dataclasses.fields(given) if getattr(given, f.name) is None]
    return dataclasses.replace(given, **{name: getattr(defaults, name) for name in missing})
