"""Checkpoints of a training run by orbax, written in the background: state, best weights and progress in one.

A checkpoint appears complete or not at all, and the previous one goes only then; so the best weights are always those
that the progress stored with them speaks of.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from equijax import checkpoint, parallel
from equijax.train import Progress, TrainState


class Stored(NamedTuple):
    """What a run continues from."""

    state: TrainState
    best: Any  # the best weights
    progress: Progress


class Store:
    """The last checkpoint of a run, in a folder of its own; a context manager that waits for the writer.

    Of several processes the first writes, and all read.
    """

    def __init__(self, path: str | Path):
        path = Path(path).absolute()
        path.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=True, create=False, read_only=not parallel.is_first(),
            multiprocessing_options=checkpoint.alone(),
        ))  # fmt: skip

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, stored: Stored) -> None:
        """Keep this to resume from; a step already stored is not stored again."""
        step = int(stored.state.step)
        if parallel.is_first() and step not in self._manager.all_steps():
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(_copy(stored.state)), best=ocp.args.StandardSave(_copy(stored.best)),
                progress=_json(stored.progress),
            )  # fmt: skip
            self._manager.save(step, args=items, force=True)

    def restore(self, state: TrainState, best: Any) -> Stored | None:
        """What to continue from, or None where nothing is stored yet.

        Args:
          state, best: of the kind that the present options make.

        Raises:
          ValueError: what is stored is of another kind.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        found = self._manager.restore(step, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_copy(state)), best=ocp.args.StandardRestore(_copy(best)),
            progress=ocp.args.JsonRestore(),
        ))  # fmt: skip
        values = {k: math.inf if v is None else v for k, v in found["progress"].items()}
        return Stored(jax.tree.map(jax.numpy.array, found["state"]), found["best"], Progress(**values))


def _copy(tree):
    """Numpy copies: the buffers of the state are donated to the next step while the writer still reads."""
    return jax.tree.map(np.array, tree)


def _json(progress):
    values = dataclasses.asdict(progress)  # JSON has no infinity
    return ocp.args.JsonSave({k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()})
