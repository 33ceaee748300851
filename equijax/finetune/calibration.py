"""How well the standard deviations of a committee tell its errors."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from equijax import tables
from equijax.adapters.committee import Members
from equijax.data.errors import QUANTITIES
from equijax.data.labelled import Labelled


class Pairs(NamedTuple):
    """Standard deviations of the members and errors of their mean."""

    deviation: np.ndarray  # [n]
    error: np.ndarray  # [n], mean minus label


def pairs(structures: Sequence[Labelled], found: Sequence[Members]) -> dict[str, Pairs]:
    """By quantity, over all labelled components: energy in eV/atom, forces in eV/A, stress in eV/A^3."""
    out: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for s, f in zip(structures, found, strict=True):
        labels = {"energy": s.energy, "forces": s.forces, "stress": s.stress}
        for name, label in labels.items():
            if label is None:
                continue
            number = len(s.atoms) if name == "energy" else 1
            each = np.asarray(getattr(f, name)) / number
            deviation, error = each.std(0), each.mean(0) - np.asarray(label) / number
            known = np.isfinite(error)
            out.setdefault(name, []).append((deviation[known], error[known]))
    return {name: Pairs(*(np.concatenate(x) for x in zip(*both, strict=True))) for name, both in out.items()}


class Calibration(NamedTuple):
    """How far the deviations of one quantity tell its errors; None where all members agree, or too little is known."""

    number: int  # of components
    rms_error: float
    rms_deviation: float
    factor: float | None  # their ratio, by which deviations should be multiplied
    within_1: float | None  # part of errors within one deviation so multiplied: of a Gaussian 0.68
    within_2: float | None  # within two: 0.95
    rank_correlation: float | None  # Spearman's, of |error| and deviation


def summarise(found: Mapping[str, Pairs]) -> dict[str, Calibration]:
    """By quantity, in the units of `pairs`."""
    return {name: _calibration(deviation, np.abs(error)) for name, (deviation, error) in found.items()}


def _calibration(deviation: np.ndarray, error: np.ndarray) -> Calibration:
    rms, spread = (float(np.sqrt(np.mean(x**2))) for x in (error, deviation))
    factor = rms / spread if spread > 0 else None
    one, two = (None if factor is None else float(np.mean(error <= k * factor * deviation)) for k in (1, 2))
    ranked = len(error) > 2 and np.ptp(deviation) > 0 and np.ptp(error) > 0
    rank = float(spearmanr(deviation, error).statistic) if ranked else None
    return Calibration(len(error), rms, spread, factor, one, two, rank)


def text(found: Mapping[str, Calibration], which: str) -> str:
    """`summarise` as a table.

    Args:
      found: what it gave.
      which: set of structures, for the title.
    """
    rows = []
    for q in (q for q in QUANTITIES if q.name in found):
        one = found[q.name]
        numbers = (q.factor * one.rms_error, q.factor * one.rms_deviation, *one[3:])
        rows.append([f"{q.name} ({q.unit})", *map(tables.cell, numbers)])
    titles = [f"committee on {which}", "RMS error", "RMS deviation", "factor", "within 1", "within 2", "rank corr."]
    return tables.text(titles, rows)
