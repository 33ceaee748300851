"""Reads the zip container of a torch file: the pickle, and the storages its tensors are views of.

Format (torch/csrc/serialization, torch/serialization.py): one top folder with `data.pkl`, `data/0`, `data/1`, ...
stored uncompressed, and since torch 2.1 `byteorder`. Every size that the pickle claims is checked against the file.
"""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.errors import Budget, UnreadableModel, UnsupportedModel, shorten
from convert.families import family
from convert.records import Builder, Global, Instance
from convert.unpickle import interpret

MAX_PICKLE_BYTES = 64 * 2**20
MAX_ENTRIES = 100_000

_STORAGE_DTYPES = {
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "u1",
    "torch.BFloat16Storage": "u2",
}


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the file: a read-only view of its storage."""

    array: np.ndarray


def read_archive(path: Path, budget: Budget | None = None) -> object:
    """The top-level object of the torch file `path` as inert data (see `convert.unpickle`), tensors as `Tensor`.

    Args:
      path: the file.
      budget: what the objects may take; None: that of a file of this size.

    Raises:
      FileNotFoundError: no such file.
      UnreadableModel: not a torch zip file, truncated, corrupt or hostile.
      UnsupportedModel: a known kind of file that is no whole model, such as compiled code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, budget or Budget(path.stat().st_size))
    except (UnreadableModel, UnsupportedModel) as error:
        raise type(error)(f"{path}: {error}") from None
    # zipfile reports damage by its own error and, for odd headers, by these
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        ValueError,
        RuntimeError,
        KeyError,
        IndexError,
        OverflowError,
        OSError,
    ) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise UnreadableModel(f"{path}: {_describe(path)} ({type(error).__name__}: {str(error)[:200]})") from None


def _describe(path: Path) -> str:
    """What a file that is no readable zip looks like, from its first bytes."""
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        return "the file is empty"
    if head[8:10] == b'{"':
        return str(family("safetensors file"))
    if head.startswith(b"PK"):
        return "the zip container is truncated or corrupt; fetch the file again"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"version https:")):
        return "this is a web page or a git-lfs pointer, not the model; fetch the file itself"
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        return "a bare pickle (torch before 1.6, or not torch at all); re-save it with a current torch"
    return f"not a torch .model file: it starts with {head!r}"


def _read(archive: zipfile.ZipFile, budget: Budget) -> object:
    _refuse_compiled(archive.namelist())
    entries = _entries(archive)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnreadableModel(
            f"expected one TOP/data.pkl in the zip, found {len(pickles)}; "
            f"entries: {', '.join(map(shorten, list(entries)[:5]))}"
        )
    folder = pickles[0].removesuffix("data.pkl")
    if entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise UnreadableModel(f"data.pkl is larger than {MAX_PICKLE_BYTES} bytes")
    order = _byte_order(archive, entries, name=f"{folder}byteorder")
    storages = _Storages(archive, entries, folder, order)
    return interpret(archive.read(entries[pickles[0]]), storages.load, builders=_BUILDERS, budget=budget)


def _refuse_compiled(names: list[str]) -> None:
    """Raise for an archive of compiled code, whose entries may be compressed."""
    paths = {name.partition("/")[2] for name in names}
    if any(path.startswith("code/") or path == "constants.pkl" for path in paths):
        script = "lammps" if any("/lammps_mace" in path for path in paths) else "compiled"
        mace = any(path.startswith("code/__torch__/mace/") for path in paths)
        raise UnsupportedModel(family(f"{script if mace else 'foreign'} script"))
    if any(path.endswith(("archive_format", "serialized_exported_program.json", ".wrapper.so")) for path in paths):
        raise UnsupportedModel(family("exported program"))


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise UnreadableModel(f"{len(infos)} zip entries, more than {MAX_ENTRIES}")
    size = archive.fp.seek(0, 2) if archive.fp else 0
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise UnreadableModel(f"zip entry {shorten(info.filename)} is compressed or encrypted, unlike torch's own")
    if sum(info.file_size for info in infos) > size:
        raise UnreadableModel("zip entries add up to more than the file holds: truncated or overlapping")
    names = {info.filename: info for info in infos}
    if len(names) != len(infos):
        raise UnreadableModel("zip entries with the same name")
    return names


def _byte_order(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], *, name: str) -> str:
    if name not in entries:
        return "<"  # torch before 2.1 ran on little-endian machines and did not write it
    if entries[name].file_size <= 8:
        text = archive.read(entries[name])
        if text in (b"little", b"big"):
            return "<" if text == b"little" else ">"
    raise UnreadableModel("entry byteorder is neither 'little' nor 'big'")


class _Storages:
    """Typed one-dimensional arrays behind the tensors, read on first use."""

    def __init__(self, archive: zipfile.ZipFile, entries: dict, folder: str, order: str) -> None:
        self.archive, self.entries, self.folder, self.order = archive, entries, folder, order
        self.cache: dict[tuple[str, str], np.ndarray] = {}

    def load(self, pid: object) -> np.ndarray:
        """Array [numel] for torch's persistent id ("storage", type, key, location, numel)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], Global):
            raise UnreadableModel("a persistent id that is not torch's ('storage', type, key, location, numel)")
        kind, key, numel = pid[1].dotted, pid[2], pid[4]
        if kind not in _STORAGE_DTYPES:
            raise UnreadableModel(f"storage type {kind} is not supported; expected {', '.join(_STORAGE_DTYPES)}")
        if not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise UnreadableModel(f"storage with key {shorten(key)} and size {shorten(numel)}")
        if (key, kind) not in self.cache:
            self.cache[key, kind] = self._array(kind, key)
        array = self.cache[key, kind]
        if array.size != numel:
            raise UnreadableModel(f"storage {shorten(key)} holds {array.size} elements, the pickle claims {numel}")
        return array

    def _array(self, kind: str, key: str) -> np.ndarray:
        info = self.entries.get(f"{self.folder}data/{key}")
        if info is None:
            raise UnreadableModel(f"zip entry data/{shorten(key)} is missing")
        dtype = np.dtype(self.order + _STORAGE_DTYPES[kind])
        data = self.archive.read(info)
        if len(data) % dtype.itemsize:
            raise UnreadableModel(f"storage {shorten(key)}: {len(data)} bytes do not divide into {dtype}")
        array = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
        if kind == "torch.BFloat16Storage":  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array != 0 if kind == "torch.BoolStorage" else array


def _sizes(values: object, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 16:
        raise UnreadableModel(f"tensor {what} {shorten(values)} is not a tuple of at most 16 integers")
    if any(type(v) is not int or not 0 <= v < 2**40 for v in values):
        raise UnreadableModel(f"tensor {what} holds something else than non-negative integers")
    return values


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *rest: object) -> Tensor:
    """`torch._utils._rebuild_tensor_v2`: a strided view, every index checked to lie in the storage.

    The rest (requires_grad, hooks, metadata) is not used: mace-torch saves all parameters frozen in some versions.
    """
    if not isinstance(storage, np.ndarray):
        raise UnreadableModel(f"a tensor over {shorten(storage)} instead of a storage")
    shape, strides = _sizes(size, "size"), _sizes(stride, "stride")
    if len(shape) != len(strides) or type(offset) is not int or offset < 0:
        raise UnreadableModel(f"tensor of size {shape} with strides {strides} and offset {shorten(offset)}")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if count and last >= storage.size:
        raise UnreadableModel(
            f"tensor of size {shape}, strides {strides}, offset {offset} reaches element {last} of a "
            f"storage of {storage.size}"
        )
    if not count:
        return Tensor(np.zeros(shape, storage.dtype))
    steps = [s * storage.itemsize for s in strides]
    return Tensor(np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False))


def _rebuild_parameter(tensor: object, *rest: object) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise UnreadableModel(f"a parameter over {shorten(tensor)} instead of a tensor")
    return tensor


def _rebuild_from_type(function: object, kind: object, args: object, state: object) -> object:
    """`torch._tensor._rebuild_from_type_v2`: a tensor that carried Python attributes, which are dropped."""
    if not isinstance(function, Global) or function.dotted not in _TENSORS or not isinstance(args, tuple):
        raise UnreadableModel(f"a tensor rebuilt by {shorten(function)}")
    return _TENSORS[function.dotted](*args)


def _numpy_scalar(kind: object, data: object) -> float | int | bool:
    """`numpy.core.multiarray.scalar`: hyper-parameters that were numpy numbers."""
    code = kind.args[0] if isinstance(kind, Instance) and kind.cls == "numpy.dtype" and kind.args else None
    if code not in ("f8", "f4", "i8", "i4", "u1", "b1") or not isinstance(data, bytes):
        raise UnreadableModel(f"numpy number of type {shorten(code)}")
    return np.frombuffer(data, np.dtype(f"<{code}"), count=1)[0].item()


_TENSORS: dict[str, Builder] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
_BUILDERS: dict[str, Builder] = _TENSORS | {
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": lambda values: _sizes(tuple(values), "size"),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
