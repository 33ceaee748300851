"""Orbax checkpoints with the configuration beside the arrays; written beside, then renamed."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from equijax import trees
from equijax.config import ModelConfig, from_dict

FORMAT = 1  # raise when the meaning of a stored array or option changes


def save(path: str | Path, config: ModelConfig, variables: dict, metadata: dict) -> Path:
    """Write a model directory: `arrays/` (orbax) and `config.json`.

    The directory appears complete or not at all; an existing one is replaced only once the new one is on disk.

    Args:
      path: directory to create.
      config: hyper-parameters.
      variables: nested dict of arrays, {"params": ..., "constants": ...}.
      metadata: JSON-serialisable provenance (source file, sha256, version, ...).

    Raises:
      ValueError: a non-finite array, named by its tree path.
      FileExistsError: `path` holds something other than a model directory, which is left alone.
    """
    path = Path(path).absolute()
    if path.exists() and not (path / "config.json").is_file() and (path.is_file() or any(path.iterdir())):
        raise FileExistsError(f"refusing to replace {path}: it is not an equijax model directory")
    for key, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"refusing to save {path}: {jax.tree_util.keystr(key)} has non-finite values")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    beside.chmod(0o755)  # mkdtemp makes it private
    try:
        # the checkpointer finishes writing in the background; leaving the context waits for it
        with ocp.StandardCheckpointer(multiprocessing_options=alone()) as checkpointer:
            checkpointer.save(beside / "arrays", jax.tree.map(np.asarray, variables))
        document = {"format": FORMAT, "config": config.to_dict(), "metadata": metadata}
        (beside / "config.json").write_text(json.dumps(document, indent=1))
        _replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def load(path: str | Path) -> tuple[ModelConfig, dict, dict]:
    """Read a model directory.

    Returns:
      (config, variables as numpy arrays, metadata)

    Raises:
      FileNotFoundError: `path` is not a model directory.
      ValueError: written by an incompatible version.
    """
    path = Path(path).absolute()
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} is not an equijax model directory (no config.json in it); make one with "
            "`python -m convert MODEL OUT`"
        )
    document = json.loads((path / "config.json").read_text())
    if document.get("format") != FORMAT:
        raise ValueError(f"{path} has format {document.get('format')}, this version reads {FORMAT}: convert again")
    with ocp.StandardCheckpointer(multiprocessing_options=alone()) as checkpointer:
        structure = checkpointer.metadata(path / "arrays").item_metadata
        target = jax.tree.map(lambda m: np.zeros(m.shape, m.dtype), structure.tree)
        variables = checkpointer.restore(path / "arrays", target)
    return from_dict(ModelConfig, document["config"]), jax.tree.map(np.asarray, variables), document["metadata"]


def fingerprint(config: ModelConfig, variables: dict) -> str:
    """sha256 of a model: hyper-parameters and arrays, and nothing of where they came from.

    Args:
      config: hyper-parameters; those at their defaults do not count, so that new ones leave old fingerprints as they
        are.
      variables: nested dict of arrays, {"params": ..., "constants": ...}, in the dtypes of the model.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    chosen = {name: value for name, value in config.to_dict().items() if value != defaults[name]}
    text = json.dumps({"config": chosen, "arrays": trees.sha256(variables)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def alone() -> ocp.options.MultiprocessingOptions:
    """Orbax in this process without waiting for the others of a job: all may read, the caller says who writes."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    prefix = f"process_{index}"
    return ocp.options.MultiprocessingOptions(index, active_processes={index}, barrier_sync_key_prefix=prefix)


def _replace(new: Path, path: Path) -> None:
    """Put `new` at `path`; a previous directory is moved aside first and removed last."""
    old = None
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent)) / path.name
        os.rename(path, old)
    os.rename(new, path)
    if old is not None:
        shutil.rmtree(old.parent)
