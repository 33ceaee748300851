"""How much memory this process may still take: what the machine has free, less where a container sets a limit."""

from pathlib import Path

import psutil

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
            left += [_left(group, *FILES[kind]) for group in groups[: groups.index(mount) + 1]]
    return [n for n in left if n is not None]


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """Bytes left in one group; None where it sets no limit."""
    if not (group / limit).is_file() or not (group / usage).is_file():
        return None
    most = (group / limit).read_text().strip()
    if most == "max":
        return None
    statistics = group / "memory.stat"
    rows = dict(line.split() for line in statistics.read_text().splitlines()) if statistics.is_file() else {}
    used = int((group / usage).read_text()) - int(rows.get(cache, 0))
    return max(0, int(most) - used)
