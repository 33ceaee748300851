"""Checkpoint of a training run: state, best weights and progress in one file, so that they always belong together."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax import outputs
from equijax.errors import InputError
from equijax.finetune.trainer import Progress, TrainState


class Stored(NamedTuple):
    """What a run continues from."""

    state: TrainState
    best: Any  # the best weights, those that `progress` speaks of
    progress: Progress


def save(path: Path, stored: Stored) -> None:
    """Write a checkpoint; the previous one stays until the new one is on disk."""
    values = dataclasses.asdict(stored.progress)  # JSON has no infinity
    document = {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}
    outputs.save_arrays(path, jax.tree.leaves((stored.state, stored.best)), {"progress": document})


def restore(path: Path, state: TrainState, best: Any) -> Stored:
    """Read a checkpoint, bit for bit.

    Args:
      path: file.
      state, best: of the kind that the present options make.

    Raises:
      FileNotFoundError: no such file.
      InputError: what is stored is of another kind.
    """
    found, document = outputs.load_arrays(path)
    expected, structure = jax.tree.flatten((state, best))
    kinds = [[(np.shape(x), np.dtype(x.dtype)) for x in leaves] for leaves in (found, expected)]
    if kinds[0] != kinds[1]:
        raise InputError(f"{path} holds arrays of other shapes or types than these options train")
    state, best = jax.tree.unflatten(structure, found)
    values = {k: math.inf if v is None else v for k, v in document["progress"].items()}
    return Stored(jax.tree.map(jnp.array, state), best, Progress(**values))
