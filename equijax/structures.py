"""Structures from files: the one reader of the programs, for whatever ASE reads."""

from pathlib import Path

import ase
import ase.io


def read(path: str | Path) -> ase.Atoms:
    """The last structure in a file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: ASE cannot read it.
    """
    return _read(path, "-1:")[0]


def read_all(path: str | Path) -> list[ase.Atoms]:
    """All structures in a file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: ASE cannot read it, or there are none in it.
    """
    return _read(path, ":")


def _read(path: str | Path, index: str) -> list[ase.Atoms]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"structure file {path} does not exist")
    try:
        images = ase.io.read(path, index=index)
    # the readers of ASE raise whatever their parsing meets; all of it means an unreadable file
    except Exception as error:
        raise ValueError(f"{path}: ASE cannot read it: {type(error).__name__}: {error}") from error
    if not images or not all(len(atoms) for atoms in images):
        raise ValueError(f"{path}: no structure, or one without atoms")
    return images
