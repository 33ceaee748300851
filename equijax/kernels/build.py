"""Compile C++ kernels on first use, keep them in the user's cache, hand them to XLA as FFI targets.

EQUIJAX_KERNELS chooses: "auto" (default; where a kernel cannot be had, XLA does the work, which is said once), "off"
(always XLA) or "require" (an error where a kernel cannot be had). It holds for those of GPUs (`gpu`, `choice`) too.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from functools import cache
from pathlib import Path

import jax

from equijax import compiled
from equijax.errors import InputError

FLAGS = ("-std=c++17", "-O2", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-w")
MODES = ("auto", "off", "require")
# Widest SIMD registers by CPU feature: (flag of /proc/cpuinfo, bytes); 16 bytes exist on every x86-64 and arm64.
REGISTERS = (("avx512f", 64), ("avx", 32))
log = logging.getLogger(__name__)
_locks: defaultdict = defaultdict(threading.Lock)
registered: set[str] = set()  # keys of the kernels that XLA knows
refused: list[str] = []  # why kernels that were wanted could not be had


def mode() -> str:
    """EQUIJAX_KERNELS.

    Raises:
      InputError: not one of `MODES`.
    """
    value = os.environ.get("EQUIJAX_KERNELS", "auto")
    if value not in MODES:
        raise InputError(f"EQUIJAX_KERNELS={value!r}: expected one of {', '.join(MODES)}")
    return value


def vector_bytes(channels: int, itemsize: int) -> int | None:
    """The widest SIMD register that `channels` numbers fill evenly, bytes; None where not even 16 bytes do."""
    widest = next((size for flag, size in REGISTERS if flag in compiled.processor().split()), 16)
    sizes = [size for size in (64, 32, 16) if size <= widest and channels % (size // itemsize) == 0]
    return sizes[0] if sizes else None


@cache
def compiler() -> str | None:
    """$CXX, or the first C++ compiler on the path."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def wanted() -> bool:
    """Whether to try kernels: not switched off, and a compiler to make them (its absence is said once)."""
    return mode() != "off" and (compiler() is not None or _without_compiler())


@cache
def target(name: str, source: str) -> str | None:
    """Compile `source`, which defines the FFI symbol `handler`, and register it with XLA.

    Args:
      name: for messages and the target's name.
      source: complete C++ text; headers of this directory and of XLA's FFI can be included.

    Returns:
      the name for `jax.ffi.ffi_call`, or None where the kernel cannot be had and XLA shall do the work.

    Raises:
      RuntimeError: the kernel cannot be had and EQUIJAX_KERNELS=require.
    """
    cxx = compiler()
    if not wanted() or cxx is None:
        return None
    with _locks[name, source]:  # who needs a kernel that another thread is compiling waits for it
        try:
            key = _key(cxx, name, source=source)
            if _kept(key) is None:
                _compile(cxx, name, source=source, key=key)
            register(key)
        except OSError as error:
            return _without(f"the {name} kernel is not available: {error}")
    # the key is part of the name: a program in a cache never meets another version of its kernel
    return f"equijax_{key}"


def register(key: str) -> bool:
    """Hand the library of a kernel to XLA; whether there is one in the cache.

    Raises:
      OSError: the library cannot be loaded.
    """
    if key in registered:
        return True
    library = _kept(key)
    if library is not None:
        handler = jax.ffi.pycapsule(ctypes.CDLL(str(library)).handler)
        jax.ffi.register_ffi_target(f"equijax_{key}", handler, platform="cpu")
        registered.add(key)
    return library is not None


def _key(cxx: str, name: str, *, source: str) -> str:
    """A name for what is compiled: from which text, by what, and for which processor."""
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False).stdout
    headers = "".join(p.read_text() for p in sorted(Path(__file__).parent.glob("*.h")))
    text = "\0".join((source, headers, compiled.processor(), version, jax.__version__, *FLAGS))
    return f"{name}_{_digest(text.encode())}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]


def _kept(key: str) -> Path | None:
    """The library in the cache. Its name ends in the digest of its content: one that was damaged is made again."""
    for path in compiled.folder("kernels").glob(f"{key}_*.so"):
        if path.stem == f"{key}_{_digest(path.read_bytes())}":
            return path
        path.unlink(missing_ok=True)
    return None


def _compile(cxx: str, name: str, *, source: str, key: str) -> None:
    """Build the library beside its place, then move it there.

    Raises:
      OSError: the compiler failed (its first error), or the folder cannot be written to.
    """
    folder = compiled.folder("kernels")
    print(f"equijax: compiling the {name} kernel for this processor (once) into {folder}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file, built = Path(scratch) / f"{name}.cc", Path(scratch) / "built.so"
        file.write_text(source)
        include = (f"-I{Path(__file__).parent}", f"-I{jax.ffi.include_dir()}")
        command = [cxx, *FLAGS, *include, str(file), "-o", str(built)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if "error" in line] or [result.stderr[-200:]]
            raise ChildProcessError(f"{cxx} failed: {errors[0].strip()}")
        built.chmod(0o700)
        os.replace(built, folder / f"{key}_{_digest(built.read_bytes())}.so")


@cache
def _without_compiler() -> bool:
    _without("no C++ compiler found (install g++ or clang, or set CXX), so no CPU kernels")
    return False


def _without(message: str) -> None:
    if mode() == "require":
        raise RuntimeError(f"EQUIJAX_KERNELS=require: {message}")
    refused.append(message)
    log.warning("%s; XLA computes the same numbers, slower", message)
