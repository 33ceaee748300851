"""The crystals of a screening run, each with its name: the file as it was given and the frame in it, `FILE:0`."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import ase
import numpy as np

from equijax import structures
from equijax.config import EMBEDDED
from equijax.errors import InputError


class Crystal(NamedTuple):
    """What a worker is sent."""

    name: str
    atoms: ase.Atoms | None = None  # None where the file cannot be read
    error: str | None = None  # why

    @property
    def digest(self) -> str:
        """sha256 of what is computed from: a name with other contents is another crystal. Empty without atoms."""
        if self.atoms is None:
            return ""
        a, found = self.atoms, hashlib.sha256()
        for array in (a.numbers, a.positions, a.cell.array, a.pbc, a.get_masses()):
            found.update(np.ascontiguousarray(array).tobytes())
        embedded = {key: str(a.info[key]) for key, _ in EMBEDDED.values() if key in a.info}
        found.update(repr((sorted(embedded.items()), [c.todict() for c in a.constraints])).encode())
        return found.hexdigest()


def read(paths: Sequence[Path]) -> list[Crystal]:
    """All frames of files, and of the files below folders, hidden ones apart.

    A file that cannot be read is a `Crystal` with its error, and stops no other.

    Raises:
      FileNotFoundError: no such file or folder.
      InputError: a file twice, or none at all.
    """
    found = [crystal for path in paths for file in files(path) for crystal in frames(file)]
    twice = [name for name, times in Counter(crystal.name for crystal in found).items() if times > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice: name every file, or the folder it is in, once")
    if not found:
        raise InputError(f"no structures in {', '.join(map(str, paths))}: expected files that ASE reads")
    return found


def files(path: Path) -> list[Path]:
    """A file, or those below a folder in alphabetical order.

    Raises:
      FileNotFoundError: neither.
    """
    if not path.exists():
        raise FileNotFoundError(f"structure file or folder {path} does not exist")
    if path.is_file():
        return [path]
    below = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
    return sorted(p for p in below if p.is_file())


def frames(file: Path) -> Iterator[Crystal]:
    """The frames of a file; where it ends in something unreadable, the last one is that, with its error."""
    i = 0
    try:
        for atoms in structures.images(file):
            yield named(atoms, f"{file}:{i}")
            i += 1
    except InputError as error:
        yield Crystal(f"{file}:{i}", error=f"{error}; neither this frame nor those after it were read")
        return
    if i == 0:
        yield Crystal(f"{file}:0", error=f"{file}: no structure in it")


def named(atoms: ase.Atoms, name: str) -> Crystal:
    """A crystal; without its atoms where there are none, or where it is disordered."""
    try:
        structures.check_ordered(atoms, name)
    except InputError as error:
        return Crystal(name, error=str(error))
    return Crystal(name, atoms.copy()) if len(atoms) else Crystal(name, error=f"{name}: a structure without atoms")
