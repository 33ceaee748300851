"""What every benchmark shares: the published model shape, structures, timing, machine description, JSON results."""

import json
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from ase import Atoms
from ase.build import bulk

from equijax import executables, precision, testing
from equijax.config import ModelConfig

executables.FEW = 0  # what is timed here is optimised, however little of it there is
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "numpy", "ase", "phonopy", "torch", "mace-torch", "jax-md", "symmetrix-xl")
CRYSTALS = {  # conventional cells and their neighbours within 6 A
    "Si": lambda: bulk("Si", "diamond", a=5.43, cubic=True),
    "Cu": lambda: bulk("Cu", "fcc", a=3.61, cubic=True),
    "NaCl": lambda: bulk("NaCl", "rocksalt", a=5.64, cubic=True),
}


def published_config() -> ModelConfig:
    """The shape of MACE-MP-0b3-medium: 89 elements, 128x0e+128x1o, 6 A; 9,063,204 parameters."""
    return testing.random_config(channels=128, r_max=6.0, species=tuple(range(1, 90)), num_radial=10)


def crystal(name: str, repeat: int | tuple[int, int, int], seed: int = 0) -> Atoms:
    """A rattled supercell (0.05 A), so that nothing vanishes by symmetry."""
    atoms = CRYSTALS[name]().repeat(repeat)
    atoms.rattle(0.05, seed=seed)
    return atoms


def timed(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Time of each call in milliseconds, the calls alternating so that a drifting machine hits all alike.

    Returns:
      per name: median, min, max and runs of wall time; the median of processor time, of all threads, for machines
      that others use. One untimed call of each comes first.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start, processor = time.perf_counter(), time.process_time()
            call()
            samples[name].append(1e3 * (time.perf_counter() - start))
            busy[name].append(1e3 * (time.process_time() - processor))
    return {
        name: {"median_ms": float(np.median(s)), "min_ms": min(s), "max_ms": max(s), "runs": len(s)}
        | {"processor_ms": float(np.median(busy[name]))}
        for name, s in samples.items()
    }


def machine() -> dict:
    """Processor, cores, device and package versions."""
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "versions": {p: v for p in PACKAGES if (v := _version(p))},
        "matmul_precision": precision.of_model(),  # of float32 products in the model
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_memory_gb() -> float:
    """Largest resident size of this process so far, GB (getrusage's is inherited from the parent process)."""
    (line,) = (line for line in _lines("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def write(name: str, rows: list[dict], *, folder: Path = RESULTS, quiet: bool = False, **extra) -> Path:
    """Write NAME-BACKEND.json under bench/results: the machine, what was asked and one dict a row."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{jax.default_backend()}.json"
    path.write_text(json.dumps({"machine": machine(), **extra, "rows": rows}, indent=1) + "\n")
    if not quiet:
        print(f"wrote {path}")
    return path


def print_table(rows: list[dict]) -> None:
    """Rows as an aligned table; floats with three significant digits."""
    columns = list(dict.fromkeys(k for r in rows for k in r if not isinstance(r[k], dict)))
    cells = [[_format(r.get(c, "")) for c in columns] for r in rows]
    widths = [max(len(c), *(len(row[i]) for row in cells)) for i, c in enumerate(columns)]
    for row in [columns, *cells]:
        print("  ".join(value.rjust(width) for value, width in zip(row, widths, strict=True)))


def _format(value):
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _lines(path):
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
