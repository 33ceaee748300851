"""Compiled code kept on disk: where it lies, whether that place can be trusted, and which processor it is for.

EQUIJAX_CACHE names another folder than the user's own (`~/.cache/equijax`, $XDG_CACHE_HOME/equijax).
"""

import os
import platform
import shutil
import stat
import subprocess
from functools import cache
from pathlib import Path

import platformdirs

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


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
    chosen = os.environ.get("EQUIJAX_CACHE")
    root = Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("equijax")
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
