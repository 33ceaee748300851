"""What the certificate of a run, report.json, says of every run: how far its numbers can be trusted, what made them."""

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from equijax import checkpoint, outputs
from equijax.potential import Potential

PACKAGES = ("equijax", "jax", "phonopy", "phono3py", "numpy", "ase", "spglib", "seekpath", "symfc")
# Imaginary frequencies smaller than this are called stable, THz. Noise of 1e-5, 1e-4, 1e-3 eV/A^2 on force constants
# moves soft acoustic branches by about 0.02, 0.06 and 0.2 THz.
STABILITY_THRESHOLDS_THZ = (0.02, 0.1, 0.3)


class Provenance(NamedTuple):
    """What computed a result."""

    model: dict[str, Any]  # fingerprint, head, and what its converter or its fine-tuning wrote
    versions: dict[str, str]
    machine: dict[str, str | int]


def verdict(lowest_THz: float) -> dict[str, str]:
    """ "stable" or "unstable" at each threshold: unstable where the lowest frequency is below minus the threshold."""
    return {f"{t:g} THz": "unstable" if lowest_THz < -t else "stable" for t in STABILITY_THRESHOLDS_THZ}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on; a package run from a checkout says so."""
    out = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed as a package"
    return out


def machine() -> dict[str, str | int]:
    """Device kind and count, platform."""
    devices = jax.local_devices()
    return {"device": devices[0].device_kind, "devices": len(devices), "platform": platform.platform()}


def provenance(ff: Potential) -> Provenance:
    """Model, versions and machine."""
    model = {
        "sha256": checkpoint.fingerprint(ff.config, ff.variables),
        "head": ff.config.heads[ff.head_index],
    } | ff.metadata
    return Provenance(model, versions(), machine())


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Enter the wall time of a block as `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def times(seconds: dict[str, float]) -> str:
    """The entries of `timed` in a line."""
    return ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())


def write(report: dict, path: str | Path) -> None:
    """Write the report as JSON; NaN and infinity are refused, they would not be JSON.

    Raises:
      ValueError: a number that is not finite.
    """
    outputs.write_json(path, report, allow_nan=False)
