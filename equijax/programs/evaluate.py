"""`python -m equijax.evaluate --model CKPT --data a.extxyz ...`: errors of a model on labelled structures."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import equijax
from equijax import data, outputs
from equijax.adapters import files
from equijax.data import Keys
from equijax.data.errors import QUANTITIES, label_warnings, parity, structure_errors, summarise, write_csv
from equijax.data.labelled import sha256
from equijax.plots import draw_parity
from equijax.programs import runner


@dataclass(frozen=True)
class EvaluateConfig(Keys):
    """Compare a model with labelled structures: table, parity plot, one CSV row per structure."""

    model: Path
    """Checkpoint directory."""
    data: tuple[Path, ...]
    """Labelled files: extxyz, any ASE trajectory, phonopy files."""
    out: Path = Path("evaluation")
    """Folder for structures.csv, parity.png and report.json."""
    adapter: Path | None = None
    """Fine-tuning adapter of this model to evaluate it with."""
    head: str | None = None
    """Head of a model that has several, for structures that name none."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the model."""


@runner.program("equijax evaluate")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write everything to the output folder."""
    return run(runner.options(EvaluateConfig, argv, "equijax evaluate"))


@outputs.locked
def run(options: EvaluateConfig) -> int:
    """Errors of `options.model` on `options.data`, printed and written to `options.out`.

    Raises:
      FileNotFoundError, ValueError: see `equijax.load` and `equijax.data.read_file`.
    """
    started = time.perf_counter()
    ff = equijax.load(options.model, head=options.head)
    ff = ff if options.adapter is None else files.attach(ff, options.adapter)
    read = {str(path): data.read_file(path, options) for path in options.data}
    print("\n".join(text for file in read.values() for text in file.messages))
    by_file = {path: file.structures for path, file in read.items()}
    structures = [s for chosen in by_file.values() for s in chosen]
    if not structures:
        raise ValueError(f"{', '.join(by_file)}: nothing but isolated atoms, which set E0 and are not evaluated")
    found = data.predictions(ff, structures, dtype=options.dtype)
    errors = [structure_errors(s, f) for s, f in zip(structures, found, strict=True)]
    rows, first = [], 0
    for path, chosen in by_file.items():
        rows.append({"file": path, **summarise(errors[first : first + len(chosen)])})
        first += len(chosen)
    if len(by_file) > 1:
        rows.append({"file": "all", **summarise(errors)})
    write_csv(options.out / "structures.csv", structures, found=found, errors=errors)
    draw_parity(options.out / "parity.png", parity(structures, found))
    warnings = [*(w for file in read.values() for w in file.warnings), *label_warnings(structures, found)]
    report = {"model": str(options.model), "head": options.head, "dtype": options.dtype, "metadata": ff.metadata,
              "dataset_sha256": sha256(structures), "errors": rows, "warnings": warnings,
              "seconds": time.perf_counter() - started}  # fmt: skip
    outputs.write_json(options.out / "report.json", report)
    print(table(rows))
    for text in label_warnings(structures, found):
        print(f"WARNING: {text}")
    print(f"structures.csv, parity.png and report.json are in {options.out}")
    return 0


def table(rows: Sequence[dict]) -> str:
    """One line a file, MAE / RMSE of each quantity."""
    width = max(len(r["file"]) for r in rows) + 2
    lines = ["".join([f"{'file':<{width}}{'structures':>10}", *(f"{f'{q} ({u})':>24}" for q, u, _ in QUANTITIES)])]
    for r in rows:
        cells = []
        for q, u, _ in QUANTITIES:
            mae, rmse = r[f"{q} MAE ({u})"], r[f"{q} RMSE ({u})"]
            cells.append(f"{'-' if mae is None else f'{mae:.4g} / {rmse:.4g}':>24}")
        lines.append(f"{r['file']:<{width}}{r['structures']:>10}" + "".join(cells))
    return "\n".join(["mean absolute / root mean square error", *lines])
