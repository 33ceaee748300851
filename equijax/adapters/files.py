"""Adapter directories: the trained numbers alone, bound to the backbone they belong to."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols

from equijax import checkpoint, outputs
from equijax.adapters.lora import Adapters, merge
from equijax.errors import InputError
from equijax.forcefield import ForceField
from equijax.potential import Potential
from equijax.pytrees import listing, sha256

FORMAT = 2  # raise when the meaning of a stored array or entry changes


def save(
    path: str | Path,
    adapters: Adapters,
    *,
    base: Potential,
    energies: np.ndarray | None = None,
    dataset_sha256: str | None = None,
    metadata: Mapping | None = None,
) -> Path:
    """Write an adapter directory: `adapter.npz`, and `adapter.json`, which carries the other's checksum.

    The directory appears complete or not at all; an existing one is replaced only once the new one is on disk.

    Args:
      path: directory to make.
      adapters: to save.
      base: the backbone as loaded, before any change of dtype: its fingerprint is stored.
      energies: [H, Z] eV isolated-atom energies that belong to the adapters, where they differ from the backbone's.
      dataset_sha256: of the training data, see `equijax.data.labelled.sha256`.
      metadata: anything JSON can hold.

    Raises:
      InputError: a non-finite array, named.
      FileExistsError: `path` holds something other than an adapter directory, which is left alone.
    """
    path, config, variables = Path(path), base.config, base.variables
    entries = adapters.arrays.items()
    arrays: dict[str, Any] = {f"{p}/{k}": np.asarray(v) for p, entry in entries for k, v in entry.items()}
    bad = [name for name, x in arrays.items() if not np.isfinite(x).all()]
    if bad:
        raise InputError(f"refusing to save {path}: non-finite values in {listing(bad)}")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    document = {
        "format": FORMAT,
        "alpha": adapters.alpha,
        "ranks": {p: e["A"].shape[-1] if "A" in e else None for p, e in adapters.arrays.items()},
        "elements": None if adapters.rows is None else [chemical_symbols[config.species[i]] for i in adapters.rows],
        "base_sha256": checkpoint.fingerprint(config, variables),
        "energies": {} if energies is None else _changed_energies(base, energies),
        "dataset_sha256": dataset_sha256,
        "arrays_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "metadata": dict(metadata or {}),
    }
    with outputs.replaced(path, outputs.ADAPTER) as beside:
        (beside / "adapter.npz").write_bytes(buffer.getvalue())
        (beside / "adapter.json").write_text(json.dumps(document, indent=1))
    return path


class Saved(NamedTuple):
    """Contents of an adapter directory."""

    adapters: Adapters
    energies: np.ndarray | None  # [H, Z] eV, None where the backbone's hold
    document: dict  # adapter.json


def load(path: str | Path, base: Potential, *, several: bool = False) -> Saved:
    """Read an adapter directory for the backbone it was trained on.

    Args:
      path: the directory.
      base: the backbone.
      several: whether it is that of a committee, whose arrays have a leading axis [M].

    Raises:
      FileNotFoundError: not an adapter directory.
      InputError: another backbone, another format, or files that do not belong together.
    """
    path, document = outputs.present(path), info(path)
    members = document["metadata"].get("members")
    if members and not several:
        raise InputError(f"{path} holds a committee of {members}: `equijax.load_committee` reads the folder it is in")
    config, variables = base.config, base.variables
    # format 1 had the digest of the arrays alone
    found = sha256(variables) if document["format"] == 1 else checkpoint.fingerprint(config, variables)
    if found != document["base_sha256"]:
        raise InputError(
            f"{path} belongs to the backbone with fingerprint {document['base_sha256']}, this one has {found}: "
            "load the checkpoint the adapter was trained from"
        )
    content = (path / "adapter.npz").read_bytes()
    if hashlib.sha256(content).hexdigest() != document["arrays_sha256"]:
        raise InputError(f"{path}: adapter.npz and adapter.json are not of one save; save or copy the adapter again")
    arrays: dict[str, dict] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        for name in stored.files:
            parent, _, kind = name.rpartition("/")
            arrays.setdefault(parent, {})[kind] = stored[name]
    row = {chemical_symbols[z]: i for i, z in enumerate(config.species)}
    rows = None if document["elements"] is None else tuple(row[s] for s in document["elements"])
    energies = None
    if document["energies"]:
        energies = np.array(variables["constants"]["atomic_energies"], np.float64)
        for head, values in document["energies"].items():
            for symbol, value in values.items():
                energies[config.heads.index(head), row[symbol]] = value
    return Saved(Adapters(arrays, document["alpha"], rows), energies, document)


def attach(base: ForceField, path: str | Path) -> ForceField:
    """The backbone with an adapter directory folded in, as a force field of its own.

    It shares the backbone's padded shapes, and compiled programs take weights as arguments: any number of adapters, of
    whatever ranks and elements, can be held over one backbone and used in turn without compiling again.

    Raises:
      FileNotFoundError, InputError: see `load`.
    """
    saved = load(path, base)
    variables = merge(base.variables, saved.adapters, energies=saved.energies)
    metadata = {"base": base.metadata, "adapter": saved.document}
    return ForceField(base.config, variables, metadata, base.head, base.pool, base.batch_pool)


def info(path: str | Path) -> dict:
    """adapter.json of an adapter directory.

    Raises:
      FileNotFoundError, InputError: not an adapter directory, or one of another format.
    """
    folder = outputs.present(path)
    if not (folder / "adapter.json").is_file():
        raise FileNotFoundError(f"{path} is not an adapter directory (no adapter.json in it)")
    document = outputs.ADAPTER.read(folder)
    if document is None:
        raise InputError(f"{path} is not an adapter directory: adapter.json is not what fine-tuning writes")
    if document["format"] not in (1, FORMAT):
        raise InputError(f"{path} has adapter format {document['format']}, this version reads 1 and {FORMAT}")
    return document


def _changed_energies(base: Potential, energies: np.ndarray) -> dict[str, dict[str, float]]:
    """{head: {symbol: eV}} where `energies` differs from the backbone's."""
    config, old = base.config, np.asarray(base.variables["constants"]["atomic_energies"])
    changed = np.argwhere(np.asarray(energies) != old)
    out: dict[str, dict[str, float]] = {}
    for h, z in changed.tolist():
        out.setdefault(config.heads[h], {})[chemical_symbols[config.species[z]]] = float(energies[h, z])
    return out
