"""Orbax checkpoints with the configuration beside the arrays; written beside, then renamed."""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from equijax import outputs, pytrees
from equijax.config import ModelConfig, from_dict
from equijax.errors import InputError

FORMAT = 1  # raise when the meaning of a stored array or option changes


def save(path: str | Path, config: ModelConfig, *, variables: dict, metadata: dict) -> Path:
    """Write a model directory: `arrays/` (orbax) and `config.json`.

    The directory appears complete or not at all; an existing one is replaced only once the new one is on disk.

    Args:
      path: directory to create.
      config: hyper-parameters.
      variables: nested dict of arrays, {"params": ..., "constants": ...}.
      metadata: JSON-serialisable provenance (source file, sha256, version, ...).

    Raises:
      InputError: a non-finite array, named by its tree path.
      FileExistsError: `path` holds something other than a model directory, which is left alone.
      OSError: it cannot be written; nothing is left of it, and an earlier one is untouched.
    """
    for key, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not np.isfinite(np.asarray(leaf)).all():
            raise InputError(f"refusing to save {path}: {jax.tree_util.keystr(key)} has non-finite values")
    with outputs.replaced(path, outputs.MODEL) as beside:
        check_room(beside, variables)
        # the checkpointer finishes writing in the background; leaving the context waits for it
        with _checkpointer(path) as checkpointer:
            checkpointer.save(beside / "arrays", jax.tree.map(np.asarray, variables))
        document = {"format": FORMAT, "config": config.to_dict(), "metadata": metadata}
        (beside / "config.json").write_text(json.dumps(document, indent=1))
    return Path(path).absolute()


class Checkpoint(NamedTuple):
    """What a model directory holds."""

    config: ModelConfig
    variables: dict  # a tree of numpy arrays
    metadata: dict  # where it comes from


def load(path: str | Path) -> Checkpoint:
    """Read a model directory.

    Raises:
      FileNotFoundError: `path` is not a model directory.
      InputError: written by an incompatible version.
    """
    path = outputs.present(path).absolute()
    if (path / outputs.COMMITTEE.document).is_file():
        raise InputError(
            f"{path} is a committee, no single model: `equijax.load_committee` reads it, and what its members share is "
            f"{path / 'base'}"
        )
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} is not an equijax model directory (no config.json in it); make one with "
            "`python -m convert MODEL OUT`"
        )
    document = outputs.MODEL.read(path)
    if document is None:
        raise InputError(f"{path} is not an equijax model directory: config.json is not what `convert` writes")
    if document["format"] != FORMAT:
        raise InputError(f"{path} has format {document['format']}, this version reads {FORMAT}: convert again")
    with _checkpointer(path) as checkpointer:
        structure = checkpointer.metadata(path / "arrays").item_metadata
        if structure is None:
            raise InputError(f"{path}: arrays/ is missing or damaged; convert or copy the model again")
        target = jax.tree.map(lambda m: np.zeros(m.shape, m.dtype), structure.tree)
        try:
            variables = checkpointer.restore(path / "arrays", target)
        except ValueError as error:
            raise InputError(f"{path}: arrays/ cannot be read ({error}); convert or copy the model again") from error
    config = from_dict(ModelConfig, document["config"])
    return Checkpoint(config, jax.tree.map(np.asarray, variables), document["metadata"])


def check_room(folder: Path, tree: Any) -> None:
    """Refuse to write arrays where they have no room: orbax ends badly on a full disk.

    Raises:
      OSError: what the system says to a file of that size.
    """
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))
    place = folder / "room"
    try:
        with open(place, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            elif shutil.disk_usage(folder).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), str(folder.parent)) from error
    finally:
        place.unlink(missing_ok=True)


@contextmanager
def _checkpointer(path: str | Path) -> Iterator:
    import orbax.checkpoint as ocp  # not at the top: half a second that no `--help` needs

    with system_errors(path), ocp.StandardCheckpointer(multiprocessing_options=alone()) as checkpointer:
        yield checkpointer


@contextmanager
def system_errors(path: str | Path) -> Iterator[None]:
    """Errors of the system under orbax, such as a full disk, as the OSError they are, and not in its log as well."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except ValueError as error:  # of tensorstore, which keeps the number in the text
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    finally:
        log.setLevel(level)


def fingerprint(config: ModelConfig, variables: dict) -> str:
    """sha256 of a model: hyper-parameters and arrays, and nothing of where they came from.

    Args:
      config: hyper-parameters; those at their defaults do not count, so that new ones leave old fingerprints as they
        are.
      variables: nested dict of arrays, {"params": ..., "constants": ...}, in the dtypes of the model.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    chosen = {name: value for name, value in config.to_dict().items() if value != defaults[name]}
    text = json.dumps({"config": chosen, "arrays": pytrees.sha256(variables)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def alone() -> Any:
    """Orbax in this process without waiting for the others of a job: all may read, the caller says who writes."""
    import orbax.checkpoint as ocp  # not at the top, as above

    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    prefix = f"process_{index}"
    return ocp.options.MultiprocessingOptions(index, active_processes={index}, barrier_sync_key_prefix=prefix)
