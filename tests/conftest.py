"""What every test shares: compiled programs kept on disk, few of them in memory, and the parity tests kept apart."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
PARITY = ROOT / "tests" / "parity"
MAX_MEMORY_MAPS = 20_000  # XLA on CPU crashes at the kernel's usual limit of 65,530 memory maps

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("equijax", deadline=None, derandomize=True, database=None,
                          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
settings.load_profile("equijax")


def pytest_ignore_collect(collection_path, config):
    """The parity tests import torch at the top: look at them only when `-m parity` asks for them."""
    asked = config.option.markexpr == "parity"
    return True if PARITY in (collection_path, *collection_path.parents) and not asked else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if PARITY in item.path.parents:
            item.add_marker(pytest.mark.parity)


@pytest.fixture(autouse=True)
def few_compiled_programs():
    """Forget compiled programs before they exhaust the process's memory maps; the disk cache brings them back."""
    yield
    if memory_maps() > MAX_MEMORY_MAPS:
        import jax  # not at the top: the tests of the converter's reader run without it

        jax.clear_caches()
        gc.collect()


def memory_maps() -> int:
    """Number of memory maps of this process; 0 where the system does not tell."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0
