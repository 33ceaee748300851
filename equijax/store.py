"""Checkpoints of a training run by orbax, written in the background: the last state to resume from, the best weights.

Each checkpoint appears complete or not at all, and the previous one goes only then.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from equijax import checkpoint, parallel
from equijax.train import Progress, TrainState


class Store:
    """`last/` and `best/` under one folder, one checkpoint in each; a context manager that waits for the writer.

    Of several processes the first writes, and all read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=True, create=False, read_only=not parallel.is_first(),
            multiprocessing_options=checkpoint.alone(),
        )  # fmt: skip
        managers = []
        for name in ("last", "best"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
            managers.append(ocp.CheckpointManager(self.path / name, options=options))
        self._last, self._best = managers

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_) -> None:
        self.wait()
        for manager in (self._best, self._last):
            manager.close()

    def wait(self) -> "Store":
        """Return when everything saved is on disk."""
        for manager in (self._best, self._last):
            manager.wait_until_finished()
        return self

    def save_best(self, trainable: Any, progress: Progress) -> None:
        """Keep these weights as the best; a resumed run finds again what it had found before it was cut."""
        if not parallel.is_first() or (self._best.latest_step() or 0) >= progress.best_epoch:
            return
        items = ocp.args.Composite(weights=ocp.args.StandardSave(_copy(trainable)), progress=_json(progress))
        self._best.save(progress.best_epoch, args=items, force=True)

    def save_last(self, state: TrainState, progress: Progress) -> None:
        """Keep this state to resume from; a step already stored is not stored again."""
        step = int(state.step)
        if parallel.is_first() and step not in self._last.all_steps():
            items = ocp.args.Composite(state=ocp.args.StandardSave(_copy(state)), progress=_json(progress))
            self._last.save(step, args=items, force=True)

    def restore_last(self, like: TrainState) -> tuple[TrainState, Progress] | None:
        """The state to resume from, or None.

        Raises:
          ValueError: it does not fit `like`, the state that the present options make.
        """
        step = self._last.latest_step()
        if step is None:
            return None
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_copy(like)), progress=ocp.args.JsonRestore())
        found = self._last.restore(step, args=args)
        values = {k: math.inf if v is None else v for k, v in found["progress"].items()}
        return jax.tree.map(jax.numpy.array, found["state"]), Progress(**values)

    def restore_best(self, like: Any) -> Any | None:
        """The best weights, or None while the starting ones are."""
        epoch = self._best.latest_step()
        if epoch is None:
            return None
        args = ocp.args.Composite(weights=ocp.args.StandardRestore(_copy(like)))
        return self._best.restore(epoch, args=args)["weights"]


def _copy(tree):
    """Numpy copies: the buffers of the state are donated to the next step while the writer still reads."""
    return jax.tree.map(np.array, tree)


def _json(progress):
    values = dataclasses.asdict(progress)  # JSON has no infinity
    return ocp.args.JsonSave({k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()})
