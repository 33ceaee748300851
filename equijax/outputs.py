"""What programs write: files and records whole or not at all, folders of one program at a time."""

import dataclasses
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

import filelock
import numpy as np
import numpy.typing as npt

from equijax.errors import InputError

Options = TypeVar("Options")
Result = TypeVar("Result")
LOCK = ".lock"  # there while a program writes into the folder


@contextmanager
def beside(path: str | Path) -> Iterator[Path]:
    """A hidden path beside `path`, of the same suffix, to write to: it becomes `path` once it is whole and on disk.

    Where writing fails (a full disk, Ctrl-C) it goes, and an earlier `path` stays as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with beside(path) as part:
        part.write_text(text)


def write_json(path: str | Path, document: Any, *, allow_nan: bool = True) -> None:
    """Write `document` to `path` as JSON, whole or not at all; arrays, paths and dataclasses as `plain` has them.

    Raises:
      InputError: a number that is not finite, where `allow_nan` is off: such text is not JSON.
    """
    write_text(path, json.dumps(document, indent=1, default=plain, allow_nan=allow_nan) + "\n")


def plain(value: object) -> object:
    """What JSON has for a value that it lacks.

    Raises:
      TypeError: a value of another type.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def save_arrays(path: Path, arrays: Sequence[npt.ArrayLike], *, document: dict[str, Any]) -> None:
    """Write arrays, bit for bit, and a JSON document to one .npz, whole or not at all."""
    named: dict[str, Any] = {f"leaf{i}": np.asarray(x) for i, x in enumerate(arrays)}
    with beside(path) as part:
        np.savez(part, document=np.array(json.dumps(document, default=plain)), **named)


def load_arrays(path: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Arrays and document of `save_arrays`."""
    with np.load(path, allow_pickle=False) as data:
        return [data[f"leaf{i}"] for i in range(len(data.files) - 1)], json.loads(str(data["document"]))


def append(file: FileIO, record: bytes) -> None:
    """Write `record` to an unbuffered file; where it does not fit whole, leave the file as it was and raise."""
    start, rest = file.tell(), memoryview(record)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(start)
        file.seek(start)
        raise


def open_at(path: str | Path, size: int | None) -> FileIO:
    """The file, unbuffered and empty, or cut off after `size` bytes and ready to append to.

    Raises:
      InputError: shorter than that, or missing.
    """
    if size is None:
        return open(path, "wb", buffering=0)
    found = os.path.getsize(path) if os.path.exists(path) else 0
    if found < size:
        raise InputError(f"{path} has {found} bytes where the run to be continued had written {size}: put it back")
    file = open(path, "r+b", buffering=0)
    file.truncate(size)
    file.seek(size)
    return file


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Keep a folder to this program, made if need be; if nothing is written into a folder made here, it goes again.

    The lock is the kernel's: that of a killed process is free.

    Raises:
      FileExistsError: another program writes there.
    """
    folder = Path(folder).absolute()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(folder / LOCK)
    try:
        held.acquire(blocking=False)
    except filelock.Timeout:
        raise FileExistsError(f"{folder} is in use by another run: wait for it, or choose another --out") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        held.release()
        for path in made:
            if any(path.iterdir()):
                break
            path.rmdir()


def locked(run: Callable[[Options], Result]) -> Callable[[Options], Result]:
    """`run(options)` with a `lock` on the folder `options.out`, held by the first of several processes."""

    @functools.wraps(run)
    def alone(options: Options) -> Result:
        from equijax import parallel  # here, because `python -m convert --help` needs no JAX

        if not parallel.is_first():
            return run(options)
        with lock(options.out):  # type: ignore[attr-defined]
            return run(options)

    return alone


@dataclass(frozen=True)
class Kind:
    """A kind of folder that programs write, and by which it is known."""

    name: str  # for messages
    document: str  # its JSON file
    keys: frozenset[str]  # of that document, at least
    entries: frozenset[str]  # names that are always there
    optional: frozenset[str] = frozenset()  # names that may be

    def read(self, path: Path) -> dict[str, Any] | None:
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
COMMITTEE = Kind(
    "a committee directory",
    "committee.json",
    frozenset({"format", "members"}),
    frozenset({"committee.json", "base", "adapters"}),
    frozenset({"calibration.png"}),
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
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new.chmod(0o755)  # mkdtemp makes it private
    try:
        yield new
        check_replaceable(path, kind)  # writing took its time
        _exchange(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


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
        _discard(old)  # left by an exchange that was cut after its last rename
        os.rename(path, old)
    os.rename(new, path)
    _discard(old)


def _discard(folder: Path) -> None:
    """Remove a folder, if it is there; cut at any moment, no part of it is left under its name."""
    if folder.is_dir():
        trash = tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent)
        os.rename(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)
