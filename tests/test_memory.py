"""Memory that may be used: limits of containers in made-up file systems, and none where there are no such files."""

import sys
from pathlib import Path

import jax
import psutil
import pytest

from equijax import compiled

GB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
SYSTEMS = {
    "not Linux": ({}, []),
    "no limit": ({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "max\n", f"{V2}/memory.current": "5\n"}, []),
    "version 2": (
        {
            "proc/self/cgroup": "0::/\n",
            f"{V2}/memory.max": f"{4 * GB}\n",
            f"{V2}/memory.current": f"{3 * GB}\n",
            f"{V2}/memory.stat": f"anon 1\ninactive_file {2 * GB}\n",
        },
        [3 * GB],
    ),
    "version 2, the group above is tighter": (
        {
            "proc/self/cgroup": "0::/user/job\n",
            f"{V2}/user/job/memory.max": f"{8 * GB}",
            f"{V2}/user/job/memory.current": "0",
            f"{V2}/user/memory.max": f"{2 * GB}",
            f"{V2}/user/memory.current": f"{GB}",
        },
        [8 * GB, GB],
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n",
            f"{V1}/job/memory.limit_in_bytes": f"{GB}\n",
            f"{V1}/job/memory.usage_in_bytes": f"{GB // 2}\n",
            f"{V1}/job/memory.stat": f"total_inactive_file {GB // 4}\n",
        },
        [3 * GB // 4],
    ),
    "version 1, the host's path": (
        {
            "proc/self/cgroup": "4:memory:/docker/0123\n",
            f"{V1}/memory.limit_in_bytes": f"{2 * GB}\n",
            f"{V1}/memory.usage_in_bytes": f"{3 * GB}\n",
        },
        [0],
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_limits_of_containers(tmp_path, name):
    files, left = SYSTEMS[name]
    root = write(tmp_path, files)
    assert compiled.container_limits(root) == left
    free = psutil.virtual_memory().available
    if left and min(left) < free // 2:
        assert compiled.available_memory(root) == min(left)
    else:
        assert free / 2 < compiled.available_memory(root) < 2 * free


def test_a_hessian_uses_part_of_it():
    assert jax.default_backend() != "cpu" or 0 < compiled.default_memory() < compiled.available_memory()


def test_no_module_reads_meminfo():
    """/proc/meminfo exists on Linux alone."""
    package = Path(sys.modules["equijax"].__file__).parent
    assert not [p for p in package.rglob("*.py") if "meminfo" in p.read_text()]
