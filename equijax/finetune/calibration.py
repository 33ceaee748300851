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


def summarise(found: Mapping[str, Pairs]) -> dict[str, dict[str, float]]:
    """By quantity, what committee.json says of `pairs`.

    Root mean squares of errors and deviations, `factor` = their ratio, by which deviations should be multiplied, the
    part of errors within one and two deviations so multiplied (of a Gaussian 0.68 and 0.95), and Spearman's rank
    correlation of |error| and deviation.
    """
    out = {}
    for name, (deviation, error) in found.items():
        rms, spread = (float(np.sqrt(np.mean(x**2))) for x in (error, deviation))
        factor = rms / spread if spread > 0 else None
        within = [float(np.mean(np.abs(error) <= k * (factor or 0.0) * deviation)) for k in (1, 2)]
        ranked = len(error) > 2 and np.ptp(deviation) > 0 and np.ptp(np.abs(error)) > 0
        rank = float(spearmanr(deviation, np.abs(error)).statistic) if ranked else None
        out[name] = {
            "number": len(error),
            "rms_error": rms,
            "rms_deviation": spread,
            "factor": factor,
            "within_1": within[0],
            "within_2": within[1],
            "rank_correlation": rank,
        }
    return out


def text(found: Mapping[str, Mapping[str, float]], which: str) -> str:
    """`summarise` as a table.

    Args:
      found: what it gave.
      which: set of structures, for the title.
    """
    rows = []
    for q in (q for q in QUANTITIES if q.name in found):
        one = found[q.name]
        rows.append(
            [
                f"{q.name} ({q.unit})",
                tables.cell(q.factor * one["rms_error"]),
                tables.cell(q.factor * one["rms_deviation"]),
                *(tables.cell(one[k]) for k in ("factor", "within_1", "within_2", "rank_correlation")),
            ]
        )
    titles = [f"committee on {which}", "RMS error", "RMS deviation", "factor", "within 1", "within 2", "rank corr."]
    return tables.text(titles, rows)
