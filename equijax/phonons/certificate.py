"""The certificate of a phonon run, report.json: how far its numbers can be trusted, and a short text of it."""

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from equijax import checkpoint, outputs
from equijax.potential import Potential

PACKAGES = ("equijax", "jax", "phonopy", "phono3py", "numpy", "ase", "spglib", "seekpath", "symfc")
# Imaginary frequencies smaller than this are called stable, THz. Noise of 1e-5, 1e-4, 1e-3 eV/A^2 on force constants
# moves soft acoustic branches by about 0.02, 0.06 and 0.2 THz.
STABILITY_THRESHOLDS_THZ = (0.02, 0.1, 0.3)


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


def provenance(ff: Potential) -> dict:
    """Certificate entries that say what computed it: model, versions, machine."""
    model = {
        "sha256": checkpoint.fingerprint(ff.config, ff.variables),
        "head": ff.config.heads[ff.head_index],
    } | ff.metadata
    return {"model": model, "versions": versions(), "machine": machine()}


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


def summary(report: dict) -> str:
    """The lines printed at the end of a run."""
    raw, rest = report["raw_residuals"], report["residual"]
    stress = f", stress {rest['max_stress_GPa']:.1e} GPa" if "max_stress_GPa" in rest else ""
    lines = [
        f"{report['formula']}, {report['space_group']}, {report['supercell_atoms']} atoms, {report['dtype']}",
        f"  residual: force {rest['max_force_eV_A']:.1e} eV/A{stress}",
        f"  force constants, before any cleaning: sum rule {raw['sum_rule_eV_A2']:.1e}, permutation "
        f"{raw['permutation_eV_A2']:.1e}, space group {raw['space_group_eV_A2']:.1e} eV/A^2 "
        f"(largest entry {raw['scale_eV_A2']:.3g}); projection: {report['projection']}",
    ]
    if check := report["spot_check"]:
        lines.append(
            f"  a random column against finite differences: {check['max_difference_eV_A2']:.1e} of "
            f"{check['max_entry_eV_A2']:.3g} eV/A^2"
        )
    low = ", ".join(f"{v:.3f}" for v in report["lowest_THz"])
    lines.append(f"  lowest frequencies on the mesh (Gamma acoustic modes left out): {low} THz")
    lines.append("  " + ", ".join(f"{word} at {limit}" for limit, word in report["verdict"].items()))
    thermal = report["thermal"]
    lines.append(
        f"  thermal properties: {thermal['gamma_acoustic_excluded']} acoustic modes at Gamma excluded, "
        f"{100 * thermal['imaginary_excluded']:.2g} % of the others excluded as imaginary"
    )
    lines.append(f"  {times(report['seconds'])}")
    return "\n".join(lines)
