"""Files of labelled structures: extxyz and whatever else ASE reads, and phonopy's files."""

from pathlib import Path

import ase
import ase.io
import numpy as np

from equijax import structures
from equijax.data import phonopy_files
from equijax.data.labelled import Keys, Labelled, from_values

AUTO = {
    "energy": ("REF_energy", "energy"),
    "forces": ("REF_forces", "forces"),
    "stress": ("REF_stress", "stress"),
    "virials": ("REF_virials", "virials"),
}


def load(
    path: str | Path, keys: Keys | None = None, index: str = ":", tangents: int = 0, seed: int = 0
) -> list[Labelled]:
    """Read a file of labelled structures.

    Args:
      path: extxyz, vasprun.xml, OUTCAR or another trajectory ASE reads; phonopy.yaml, phonopy_params.yaml, FORCE_SETS,
        FORCE_CONSTANTS or force_constants.hdf5 (the latter three beside the phonopy yaml that describes them).
      keys: names of the labels. By default a frame's REF_ labels if it has any, else ASE's own.
      index: frames, as for `ase.io.read`.
      tangents: for phonopy files, append the supercell with this many force-constant products along random tangents.
      seed: of those tangents.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unreadable, without labels, or labels that cannot be right; file and frame are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if phonopy_files.is_phonopy(path):
        return phonopy_files.load(path, tangents, seed)
    if tangents:
        raise ValueError(f"{path}: force-constant products need a phonopy file")
    keys = keys or Keys()
    frames = _read(path, index)
    for i, atoms in enumerate(frames):
        structures.check_ordered(atoms, f"{path}:{i}")
    found = [_frame(atoms, f"{path}:{i}", keys) for i, atoms in enumerate(frames)]
    _check_keys(path, keys, frames)
    if not any(s.has_first_order for s in found):
        raise ValueError(f"{path}: no energies, forces or stresses; the first frame has {_names(frames[0])}")
    _check_zeros(path, found)
    return found


def _read(path, index) -> list[ase.Atoms]:
    frames = []
    try:
        for atoms in ase.io.iread(path, index):
            frames.append(atoms)
    # the readers of ASE raise whatever their parsing meets; all of it means an unreadable file
    except Exception as error:
        raise ValueError(f"{path}:{len(frames)}: ASE cannot read it: {error}") from error
    if not frames:
        raise ValueError(f"{path}: no structures")
    return frames


def _frame(atoms, source, keys) -> Labelled:
    found = _values(atoms)
    reference = any(name[0] in found for name in AUTO.values())
    values = {field: _pick(found, getattr(keys, field), names, reference) for field, names in AUTO.items()}
    if values["stress"] is None and values["virials"] is not None:
        if not atoms.cell.rank == 3:
            raise ValueError(f"{source}: virials of a structure without a volume")
        values["stress"] = -np.asarray(values["virials"], float) / atoms.get_volume()
    del values["virials"]
    weight = float(found.get(keys.weight, 1.0)) if keys.weight != "none" else 1.0
    head = found.get(keys.head) if keys.head != "none" else None
    return from_values(atoms, source, **values, weight=weight, head=None if head is None else str(head))


def _values(atoms) -> dict:
    """Everything a frame carries by name: results of its calculator, per-atom arrays, frame information."""
    results = {} if atoms.calc is None else atoms.calc.results
    return {**{k: v for k, v in results.items() if v is not None}, **atoms.arrays, **atoms.info}


def _pick(found, key, names, reference):
    if key == "none":
        return None
    if key != "auto":
        return found.get(key)
    return found.get(names[0] if reference else names[1])  # never half of one level of theory and half of another


def _check_keys(path, keys, frames):
    """A name asked for that no frame has is a mistake, not a missing label."""
    for field in AUTO:
        key = getattr(keys, field)
        if key not in ("auto", "none") and not any(key in _values(atoms) for atoms in frames):
            raise ValueError(f"{path}: no frame has {field} under {key!r}; the first has {_names(frames[0])}")


def _check_zeros(path, structures):
    stresses = [s.stress for s in structures if s.stress is not None]
    if len(stresses) > 1 and not np.any(stresses):
        raise ValueError(
            f"{path}: all {len(stresses)} stresses are exactly zero: they stand for missing ones; "
            "leave them out of the file or read it with stress key 'none'"
        )


def _names(atoms):
    standard = {"numbers", "positions"}
    return ", ".join(sorted(set(_values(atoms)) - standard)) or "nothing but a structure"
