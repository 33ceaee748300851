"""What each strategy trains, and the defaults it was tuned to."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from equijax import potential, pytrees
from equijax.adapters import lora
from equijax.config import ModelConfig
from equijax.finetune.options import LORA_TARGETS, FinetuneConfig


class Trainable(NamedTuple):
    """What a strategy trains, and how it acts on the backbone."""

    start: Any  # pytree
    combine: Callable[[dict, Any], dict]  # (backbone params, trainable) -> params
    pull: float = 0.0  # L2 towards zero


def trainable(options: FinetuneConfig, config: ModelConfig, variables: dict, numbers: Sequence[int]) -> Trainable:
    """What `options.strategy` trains.

    Args:
      options: resolved.
      config, variables: the starting model (with its new head, for multihead).
      numbers: atomic numbers in the training data.

    Raises:
      InputError: patterns that match nothing; see `equijax.adapters.lora` and `equijax.pytrees`.
    """
    params = potential.cast(variables["params"], options.dtype)
    rows = None if options.all_species else sorted(config.species.index(int(z)) for z in set(numbers))
    if options.strategy == "lora":
        start = lora.init_lora(
            params, options.rank, options.alpha or max(options.rank, 1), options.targets or LORA_TARGETS,
            options.seed, rows, options.dtype,
        )  # fmt: skip
        return Trainable(start, lora.apply)
    if options.strategy == "delta":
        start = lora.init_delta(params, options.targets or (".*",), rows, options.dtype)
        return Trainable(start, lora.apply, options.l2sp)
    if options.strategy == "freeze":
        labels = pytrees.freeze_labels(params, options.freeze)
        start = jax.tree.map(lambda x, label: x if label == "trainable" else None, params, labels)
        return Trainable(start, fill)
    if options.strategy == "scratch":
        params = potential.cast(potential.init_variables(config, options.seed)["params"], options.dtype)
    return Trainable(params, fill)


def fill(params: dict, trained: dict) -> dict:
    """`params` with the leaves of `trained` that are not None in their place."""
    return jax.tree.map(lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None)


def count(tree) -> int:
    """Numbers in a pytree."""
    return int(sum(np.size(x) for x in jax.tree.leaves(tree)))
