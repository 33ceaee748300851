"""Tables: aligned text for people, CSV for programs."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from equijax import outputs


def text(header: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> str:
    """A line for the header and one a row, columns two spaces apart.

    Args:
      header: [columns] titles.
      rows: entries, see `cell`.
      left: so many columns are aligned to the left, the others to the right.
    """
    cells = [list(header), *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        aligned = (f"{c:<{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def cell(value: object) -> str:
    """An entry of a table or legend: numbers to four digits, lists of wave vectors in brackets, None as "-"."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join("(" + ",".join(f"{x:g}" for x in q) + ")" for q in value)
    return str(value)


def pair(mae: float | None, rmse: float | None) -> str:
    """A mean absolute and a root mean square error in one entry."""
    return cell(None) if mae is None or rmse is None else f"{cell(mae)} / {cell(rmse)}"


def write_csv(path: str | Path, header: Sequence[str], *, rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file, whole or not at all; floats to ten digits, the unit of each column in its name."""
    with outputs.beside(path) as part, open(part, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([f"{x:.10g}" if isinstance(x, float | np.floating) else x for x in row] for row in rows)
