"""Output that appears whole or not at all: written beside its place, then renamed; only what is ours is replaced.

A folder cannot be exchanged for another in one step everywhere, so the earlier one waits as `.NAME.previous` until the
new one is in place. `present` finds it there when a replacement was cut in between; the next one tidies up.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """A kind of folder that programs write, and by which it is known."""

    name: str  # for messages
    document: str  # its JSON file
    keys: frozenset[str]  # of that document, at least
    entries: frozenset[str]  # names that are always there
    optional: frozenset[str] = frozenset()  # names that may be

    def read(self, path: Path) -> dict | None:
        """The document of a folder; None where it is not one of this kind."""
        try:
            document = json.loads((path / self.document).read_bytes())
        except (ValueError, IsADirectoryError):  # no JSON
            return None
        return document if isinstance(document, dict) and self.keys <= set(document) else None

    def owns(self, path: Path) -> bool:
        """Whether a folder is of this kind and holds nothing else."""
        names = {entry.name for entry in path.iterdir()}
        return self.entries <= names <= self.entries | self.optional and self.read(path) is not None


MODEL = Kind(
    "an equijax model directory",
    "config.json",
    frozenset({"format", "config", "metadata"}),
    frozenset({"config.json", "arrays"}),
)
ADAPTER = Kind(
    "an adapter directory",
    "adapter.json",
    frozenset({"format", "base_sha256", "arrays_sha256"}),
    frozenset({"adapter.json", "adapter.npz"}),
)


@contextmanager
def replaced(path: str | Path, kind: Kind) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends, or vanishes when it fails.

    Through a symbolic link, the folder it points to is replaced.

    Raises:
      FileExistsError: see `check_replaceable`.
    """
    path = Path(os.path.realpath(path))
    check_replaceable(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    beside.chmod(0o755)  # mkdtemp makes it private
    try:
        yield beside
        check_replaceable(path, kind)  # writing took its time
        _exchange(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_replaceable(path: str | Path, kind: Kind) -> None:
    """Refuse a path that holds something else than a folder of this kind, before work starts.

    Raises:
      FileExistsError: `path`, or the place where an earlier one waits, is neither empty nor of this kind alone; it is
        left as it is.
    """
    for place in (Path(path), previous(path)):
        if os.path.lexists(place) and not (place.is_dir() and (kind.owns(place) or not any(place.iterdir()))):
            raise FileExistsError(f"refusing to replace {place}: it is not {kind.name} alone; choose another name")


def present(path: str | Path) -> Path:
    """`path`, or the earlier folder that waits beside it because its replacement was cut."""
    waiting = previous(path)
    return Path(path) if os.path.lexists(path) or not waiting.is_dir() else waiting


def previous(path: str | Path) -> Path:
    """Where the earlier folder of `path` waits while it is replaced."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.previous")


def _exchange(new: Path, path: Path) -> None:
    """Put `new` at `path`; at every moment one of the two is found by `present`."""
    old = previous(path)
    if path.is_dir() and any(path.iterdir()):
        shutil.rmtree(old, ignore_errors=True)  # left by an exchange that was cut after its last rename
        os.rename(path, old)
    os.rename(new, path)
    shutil.rmtree(old, ignore_errors=True)
