"""What each strategy trains, and the model it makes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from equijax import potential, pytrees
from equijax.adapters import lora
from equijax.config import ModelConfig
from equijax.finetune.defaults import LORA_TARGETS
from equijax.finetune.options import FinetuneOptions


class Trainable(NamedTuple):
    """What a strategy trains, and how it acts on the backbone."""

    start: Any  # pytree, before the first step
    combine: Callable[[dict, Any], dict]  # (backbone params, trained) -> params, pure
    pull: float = 0.0  # L2 towards zero


def trainable(options: FinetuneOptions, config: ModelConfig, *, variables: dict, numbers: Sequence[int]) -> Trainable:
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
    if options.strategy == "zero-shot":
        return Trainable(None, fill)
    if options.strategy == "lora":
        start = lora.init_lora(
            params,
            options.rank,
            alpha=options.alpha or max(options.rank, 1),
            targets=options.targets or LORA_TARGETS,
            key=options.seed,
            rows=rows,
        )
        return Trainable(start, lora.apply)
    if options.strategy == "delta":
        return Trainable(lora.init_delta(params, options.targets or (".*",), rows=rows), lora.apply, options.l2sp)
    if options.strategy == "freeze":
        labels = pytrees.freeze_labels(params, options.freeze)
        start = jax.tree.map(lambda x, label: x if label == "trainable" else None, params, labels)
        return Trainable(start, fill)
    if options.strategy == "scratch":
        params = potential.cast(potential.init_variables(config, options.seed)["params"], options.dtype)
    return Trainable(params, fill)


def fill(params: dict, trained: Any) -> dict:
    """`params` with the leaves of `trained` that are not None in their place."""
    return jax.tree.map(lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None)


def count(tree: Any) -> int:
    """Numbers in a pytree."""
    return int(sum(np.size(x) for x in jax.tree.leaves(tree)))


def describe(params: dict, trained: Trainable) -> str:
    """What will be trained, per layer."""
    if isinstance(trained.start, lora.Adapters):
        return lora.table(params, trained.start)
    return f"{count(trained.start):,} of {count(params):,} parameters are trained"


def merged(variables: dict, trained: Trainable, *, best: Any, energies: np.ndarray) -> dict:
    """The model that was trained: numpy variables in the dtypes of the starting ones.

    Args:
      variables: of the starting model, left untouched.
      trained: from `trainable`.
      best: what `trained.start` has become.
      energies: [H, Z] eV, isolated atoms.
    """
    if isinstance(best, lora.Adapters):
        return lora.merge(variables, best, energies=energies)
    params = jax.tree.map(
        lambda new, old: np.asarray(new).astype(np.asarray(old).dtype),
        trained.combine(variables["params"], best),
        variables["params"],
    )
    return with_energies({**variables, "params": params}, energies)


def with_energies(variables: dict, energies: np.ndarray) -> dict:
    """Variables with other isolated-atom energies [H, Z] eV, in the dtype of the old."""
    old = np.asarray(variables["constants"]["atomic_energies"])
    return {**variables, "constants": {**variables["constants"], "atomic_energies": energies.astype(old.dtype)}}
