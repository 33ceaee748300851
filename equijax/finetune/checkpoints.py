"""What a run leaves in its folder to be continued: what it began with, and its state.

State, best weights and progress are one file, so that they always belong together.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax import checkpoint, outputs
from equijax.errors import InputError
from equijax.finetune.options import FinetuneOptions, document
from equijax.finetune.trainer import Progress, TrainState
from equijax.phonons.files import files_of

JOB = ("coordinator", "process")  # options that differ between processes, or from one start to the next
FILES = ("train", "valid", "test", "retain", "replay", "replay_self", "phonons")  # options that name files


def inputs(options: FinetuneOptions) -> dict[str, str]:
    """sha256 of what a run begins with, by option and path: the model, and every file that holds structures.

    Raises:
      FileNotFoundError: no such model or file.
    """
    config, variables, _ = checkpoint.load(options.model)
    found = {f"--model {options.model}": checkpoint.fingerprint(config, variables)}
    for name in FILES:
        for path in (p for given in getattr(options, name) for p in files_of(Path(given))):
            with open(path, "rb") as file:
                found[f"--{name.replace('_', '-')} {path}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check_free(out: Path, options: FinetuneOptions, *, begun: dict[str, str]) -> None:
    """Refuse to mix two runs in one folder.

    Args:
      out: folder of the run.
      options: of this start of it.
      begun: what this start begins with, from `inputs`.

    Raises:
      FileExistsError: the folder is in use and --resume is not given.
      InputError: --resume with options, model or data that the run did not have.
    """
    stored_in = out / "config.json"
    if not stored_in.exists():
        return
    if not options.resume:
        raise FileExistsError(f"{out} holds a run already: choose another --out, or continue it with --resume")
    stored, now = json.loads(stored_in.read_text()), document(options)
    changed = sorted(k for k in now if stored.get(k) != now[k] and k not in ("resume", "config", "out", *JOB))
    if changed:
        raise InputError(f"--resume with other options than the run in {out} had: {', '.join(changed)}")
    if not (out / "inputs.json").exists():
        raise InputError(f"{out} holds a run of an earlier version, without inputs.json: choose another --out")
    stored = json.loads((out / "inputs.json").read_text())
    changed = sorted(name for name in stored.keys() | begun.keys() if stored.get(name) != begun.get(name))
    if changed:
        raise InputError(f"--resume of {out} with contents that changed since it began: {', '.join(changed)}")


def begin(out: Path, options: FinetuneOptions, *, begun: dict[str, str]) -> None:
    """Write `inputs.json` and `config.json`, the last: with it the folder is in use."""
    outputs.write_json(out / "inputs.json", begun)
    outputs.write_json(out / "config.json", document(options))


class Stored(NamedTuple):
    """What a run continues from."""

    state: TrainState
    best: Any  # the best weights, those that `progress` speaks of
    progress: Progress


def save(path: Path, stored: Stored) -> None:
    """Write a checkpoint; the previous one stays until the new one is on disk."""
    values = dataclasses.asdict(stored.progress)  # JSON has no infinity
    document = {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}
    outputs.save_arrays(path, jax.tree.leaves((stored.state, stored.best)), document={"progress": document})


def restore(path: Path, state: TrainState, *, best: Any) -> Stored:
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
    values: dict[str, Any] = {k: math.inf if v is None else v for k, v in document["progress"].items()}
    return Stored(jax.tree.map(jnp.array, state), best, Progress(**values))
