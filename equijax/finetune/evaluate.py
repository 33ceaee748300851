"""Errors of a model on labelled structures, from files to a table and figures."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from equijax import data, outputs, plots, tables
from equijax.adapters import committee, files
from equijax.data import Labelled
from equijax.data.errors import (
    QUANTITIES,
    StructureErrors,
    Summary,
    label_warnings,
    parity,
    structure_errors,
    summarise,
    write_csv,
)
from equijax.data.labelled import sha256
from equijax.errors import InputError
from equijax.finetune.options import EvaluateConfig


class FileErrors(NamedTuple):
    """Errors on the structures of a file."""

    file: str  # "all" for those of all files
    summary: Summary

    def document(self) -> dict[str, str | int | float | None]:
        """A row of report.json."""
        return {"file": self.file, **self.summary.document()}


class Evaluation(NamedTuple):
    """What a run found."""

    errors: list[FileErrors]  # a row a file, then one of all
    messages: list[str]  # of what was read
    warnings: list[str]  # of labels that the model contradicts


@outputs.locked
def run(options: EvaluateConfig) -> Evaluation:
    """Errors of `options.model` on `options.data`, written to `options.out`.

    Raises:
      FileNotFoundError, InputError: see `equijax.load` and `equijax.data.read_file`.
    """
    started = time.perf_counter()
    ff = committee.load_any(options.model, head=options.head)
    ff = ff if options.adapter is None else files.attach(ff, options.adapter)
    read = {str(path): data.read_file(path, options.keys) for path in options.data}
    structures = [s for file in read.values() for s in file.structures]
    if not structures:
        raise InputError(f"{', '.join(read)}: nothing but isolated atoms, which set E0 and are not evaluated")
    found = data.predictions(ff, structures, dtype=options.dtype)
    errors = [structure_errors(s, f) for s, f in zip(structures, found, strict=True)]
    rows = _rows({path: file.structures for path, file in read.items()}, errors)
    write_csv(options.out / "structures.csv", structures, found=found, errors=errors)
    plots.draw_parity(options.out / "parity.png", parity(structures, found))
    warnings = label_warnings(structures, found)
    report = {
        "model": str(options.model),
        "head": options.head,
        "dtype": options.dtype,
        "metadata": ff.metadata,
        "dataset_sha256": sha256(structures),
        "errors": [row.document() for row in rows],
        "warnings": [*(w for file in read.values() for w in file.warnings), *warnings],
        "seconds": time.perf_counter() - started,
    }
    outputs.write_json(options.out / "report.json", report)
    return Evaluation(rows, [text for file in read.values() for text in file.messages], warnings)


def _rows(by_file: dict[str, list[Labelled]], errors: list[StructureErrors]) -> list[FileErrors]:
    """Errors of the structures of each file, and of all where there are several files."""
    rows, first = [], 0
    for path, structures in by_file.items():
        rows.append(FileErrors(path, summarise(errors[first : first + len(structures)])))
        first += len(structures)
    return rows if len(by_file) == 1 else [*rows, FileErrors("all", summarise(errors))]


def summary(found: Evaluation) -> str:
    """The lines printed at the end of a run."""
    return "\n".join([*found.messages, table(found.errors), *(f"WARNING: {text}" for text in found.warnings)])


def table(rows: Sequence[FileErrors]) -> str:
    """One line a file, MAE / RMSE of each quantity."""
    header = ["file", "structures", *(f"{name} ({unit})" for name, unit, _ in QUANTITIES)]
    lines = [[file, s.structures, *(tables.pair(*d) for d in (s.energy, s.forces, s.stress))] for file, s in rows]
    return "mean absolute / root mean square error\n" + tables.text(header, lines)
