"""Where compiled programs are kept, and how much of a device they may use.

EQUIJAX_CACHE names another folder than the user's own (`~/.cache/equijax`, $XDG_CACHE_HOME/equijax); "off" keeps
nothing that XLA compiles (EQUIJAX_KERNELS is the switch of the C++ kernels).
"""

import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
from functools import cache
from pathlib import Path

import jax
import platformdirs
import psutil

MAX_BYTES = 1 << 29  # of programs kept, the least recently used go first; one takes 0.1 to 2 MB
CHUNK_SLOTS = {"cpu": 4096}  # by backend, measured with bench/phonons.py
ACCELERATOR_SLOTS = 1 << 19
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
OFF = "off"
log = logging.getLogger(__name__)
PROGRAMS = "programs"  # folder of `equijax.executables`
_places: dict[str, Path] = {}  # folders in use


def use_cache() -> None:
    """Keep compiled programs from now on, and take them from there in the next process.

    Programs and the ASE calculator call this; `import equijax` changes nothing of a user's JAX, and a cache that the
    user chose for JAX (JAX_COMPILATION_CACHE_DIR, jax_compilation_cache_dir) stays as it is, with `equijax.executables`
    beside it; where the user switched JAX's off nothing is kept. Where there is no safe place, one line says so.
    """
    if not jax.config.jax_enable_compilation_cache or os.environ.get("EQUIJAX_CACHE") == OFF:
        return
    try:
        # a home folder may serve several kinds of processor
        xla = _writable(f"xla-{hashlib.sha256(processor().encode()).hexdigest()[:12]}")
        _places[PROGRAMS] = _writable(PROGRAMS)
    except OSError as error:
        log.warning("compiled programs are not kept for the next time: %s", error)
        return
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many small ones take seconds together
        jax.config.update("jax_compilation_cache_dir", str(xla))


def programs_folder() -> Path | None:
    """Folder of compiled programs; None where none are kept."""
    off = not jax.config.jax_enable_compilation_cache or os.environ.get("EQUIJAX_CACHE") == OFF
    return None if off else _places.get(PROGRAMS)


def _writable(name: str) -> Path:
    path = folder(name)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written to: set EQUIJAX_CACHE")
    return path


@cache
def processor() -> str:
    """Instruction sets of this processor as one string: code compiled for it may not run on another."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features", "isa"))]
    if not flags and (sysctl := shutil.which("sysctl")):  # macOS: brand, family and features
        flags = [subprocess.run([sysctl, "machdep.cpu"], capture_output=True, text=True, check=False).stdout]
    return flags[0] if flags and flags[0] else platform.processor()


def folder(name: str) -> Path:
    """A folder of the cache, made where it is missing, that this user alone can write to: what lies in it is executed.

    Args:
      name: its path inside the cache.

    Raises:
      OSError: it cannot be made, or is not this user's alone; the message says what to do.
    """
    chosen = os.environ.get("EQUIJAX_CACHE", "")
    own = chosen not in ("", OFF)
    root = Path(chosen).expanduser().absolute() if own else platformdirs.user_cache_path("equijax")
    path = root / name
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(
            f"{path} belongs to user {found.st_uid}, expected {os.geteuid()}: remove it or set EQUIJAX_CACHE"
        )
    if found.st_mode & WRITABLE_BY_OTHERS:
        raise PermissionError(f"{path} can be written to by others: chmod go-w {path}, if you trust what is in it")
    return path


def chunk_slots() -> int:
    """Edge slots times tangents that keep a device of the default kind busy."""
    return CHUNK_SLOTS.get(jax.default_backend(), ACCELERATOR_SLOTS)


def default_memory() -> int:
    """Bytes to use on a device: 90 % of what an accelerator has free, 70 % of the host's free memory."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.9 * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return int(0.7 * available_memory() / jax.local_device_count())


# (limit, usage, page cache that would be given back in memory.stat) of control groups version 2 and 1
FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_memory(root: Path = Path("/")) -> int:
    """Bytes free on the host for this process, on any system.

    Args:
      root: where proc and sys are looked for.
    """
    return min([psutil.virtual_memory().available, *container_limits(root)])


def container_limits(root: Path = Path("/")) -> list[int]:
    """Bytes left under each memory limit of the control groups this process is in, and of the groups above those."""
    membership = root / "proc" / "self" / "cgroup"
    if not membership.is_file():  # not Linux
        return []
    left = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind in FILES:
            mount = root / "sys" / "fs" / "cgroup" / kind
            # inside a container the path is often the host's, and its own group is the mount itself
            inner = mount / path.lstrip("/")
            groups = [inner, *inner.parents]
            left += [_left(group, FILES[kind]) for group in groups[: groups.index(mount) + 1]]
    return [n for n in left if n is not None]


def _left(group: Path, files: tuple[str, str, str]) -> int | None:
    """Bytes left in one group; None where it sets no limit."""
    limit, usage, cache = files
    if not (group / limit).is_file() or not (group / usage).is_file():
        return None
    most = (group / limit).read_text().strip()
    if most == "max":
        return None
    statistics = group / "memory.stat"
    rows = dict(line.split() for line in statistics.read_text().splitlines()) if statistics.is_file() else {}
    used = int((group / usage).read_text()) - int(rows.get(cache, 0))
    return max(0, int(most) - used)
