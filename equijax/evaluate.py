"""`python -m equijax.evaluate --model CKPT --data a.extxyz ...`: errors of a model on labelled structures."""

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import equijax
from equijax import adapters, data, files, runner
from equijax.data import Keys, Labelled

# (name, unit, factor from eV and A)
QUANTITIES = (("energy", "meV/atom", 1e3), ("forces", "meV/A", 1e3), ("stress", "meV/A^3", 1e3))
COLUMNS = (
    "source",
    "formula",
    "atoms",
    "head",
    "energy_label_eV",
    "energy_eV",
    "energy_error_meV_per_atom",
    "forces_mae_meV_per_A",
    "forces_rmse_meV_per_A",
    "forces_max_meV_per_A",
    "stress_mae_meV_per_A3",
)


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


@files.locked
def run(options: EvaluateConfig) -> int:
    """Errors of `options.model` on `options.data`, printed and written to `options.out`.

    Raises:
      FileNotFoundError, ValueError: see `equijax.load` and `equijax.data.load`.
    """
    started = time.perf_counter()
    ff = equijax.load(options.model)
    ff = ff if options.adapter is None else adapters.attach(ff, options.adapter)
    read = {str(path): data.read(path, options) for path in options.data}
    print("\n".join(text for file in read.values() for text in file.messages))
    by_file = {path: file.structures for path, file in read.items()}
    structures = [s for chosen in by_file.values() for s in chosen]
    if not structures:
        raise ValueError(f"{', '.join(by_file)}: nothing but isolated atoms, which set E0 and are not evaluated")
    found = data.predictions(ff, structures, dtype=options.dtype, head=options.head)
    errors = [structure_errors(s, f) for s, f in zip(structures, found, strict=True)]
    rows, first = [], 0
    for path, chosen in by_file.items():
        rows.append({"file": path, **summarise(errors[first : first + len(chosen)])})
        first += len(chosen)
    if len(by_file) > 1:
        rows.append({"file": "all", **summarise(errors)})
    write_csv(options.out / "structures.csv", structures, found, errors)
    draw_parity(options.out / "parity.png", structures, found)
    warnings = [*(w for file in read.values() for w in file.warnings), *label_warnings(structures, found)]
    report = {"model": str(options.model), "head": options.head, "dtype": options.dtype, "metadata": ff.metadata,
              "dataset_sha256": data.sha256(structures), "errors": rows, "warnings": warnings,
              "seconds": time.perf_counter() - started}  # fmt: skip
    files.write_json(options.out / "report.json", report)
    print(table(rows))
    for text in label_warnings(structures, found):
        print(f"WARNING: {text}")
    print(f"structures.csv, parity.png and report.json are in {options.out}")
    return 0


def structure_errors(s: Labelled, found: dict) -> dict[str, np.ndarray]:
    """Prediction minus label: energy [1] eV/atom, forces [components] eV/A, stress [9] eV/A^3; empty if unlabelled."""
    empty = np.zeros(0)
    out = {"energy": empty, "forces": empty, "stress": empty}
    if s.energy is not None:
        out["energy"] = np.array([(found["energy"] - s.energy) / len(s.atoms)])
    if s.forces is not None:
        d = found["forces"] - s.forces
        out["forces"] = d[np.isfinite(s.forces)]
    if s.stress is not None:
        out["stress"] = (found["stress"] - s.stress).ravel()
    return out


def summarise(errors: Sequence[dict]) -> dict:
    """MAE and RMSE over all components of several structures; None where nothing is labelled."""
    out: dict = {"structures": len(errors)}
    for name, unit, factor in QUANTITIES:
        d = factor * np.concatenate([e[name] for e in errors])
        out[f"{name} MAE ({unit})"] = float(np.abs(d).mean()) if d.size else None
        out[f"{name} RMSE ({unit})"] = float(np.sqrt((d**2).mean())) if d.size else None
    return out


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


def write_csv(path: Path, structures: Sequence[Labelled], found: Sequence[dict], errors: Sequence[dict]) -> None:
    """One row a structure: source, formula, energies (eV), errors in the units of the column names."""
    with files.beside(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for s, f, e in zip(structures, found, errors, strict=True):
            force, stress = 1e3 * np.abs(e["forces"]), 1e3 * np.abs(e["stress"])
            numbers = [
                1e3 * e["energy"][0] if e["energy"].size else "",
                *([force.mean(), np.sqrt((force**2).mean()), force.max()] if force.size else ["", "", ""]),
                stress.mean() if stress.size else "",
            ]
            label = "" if s.energy is None else repr(s.energy)
            row = [s.source, s.atoms.get_chemical_formula(), len(s.atoms), s.head or "", label, repr(f["energy"])]
            writer.writerow(row + [x if x == "" else f"{x:.6g}" for x in numbers])


def draw_parity(path: Path, structures: Sequence[Labelled], found: Sequence[dict]) -> None:
    """Prediction against label: energy per atom, force and stress components."""
    import matplotlib  # only where a figure is drawn

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pairs = list(zip(structures, found, strict=True))
    panels = {
        "energy (eV/atom)": [(s.energy / len(s.atoms), f["energy"] / len(s.atoms)) for s, f in pairs
                             if s.energy is not None],
        "force (eV/A)": [(s.forces, f["forces"]) for s, f in pairs if s.forces is not None],
        "stress (eV/A$^3$)": [(s.stress, f["stress"]) for s, f in pairs if s.stress is not None],
    }  # fmt: skip
    panels = {title: chosen for title, chosen in panels.items() if chosen}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.2), layout="constrained", squeeze=False)
    for axis, (title, chosen) in zip(axes[0], panels.items(), strict=True):
        x = np.concatenate([np.ravel(a) for a, _ in chosen])
        y = np.concatenate([np.ravel(b) for _, b in chosen])
        known = np.isfinite(x)
        ends = [min(x[known].min(), y[known].min()), max(x[known].max(), y[known].max())]
        axis.plot(ends, ends, color="0.6", lw=0.8)
        axis.plot(x[known], y[known], ".", ms=3, alpha=0.5)
        axis.locator_params(nbins=5)
        axis.set(title=title, xlabel="label", ylabel="model", aspect="equal")
    with files.beside(path) as part:
        figure.savefig(part, dpi=130)
    plt.close(figure)


def label_warnings(structures: Sequence[Labelled], found: Sequence[dict]) -> list[str]:
    """What the model's own results say against the labels: unit and sign of stresses, reference of energies."""
    out = []
    try:
        data.check_stress(structures, [f["stress"] for f in found])
    except (ValueError, FloatingPointError) as error:
        out.append(str(error))
    off = data.off_reference(structures, [f["energy"] for f in found])
    if off is not None:
        out.append(
            f"energy labels are {off:.4g} eV/atom off the model's (median; more than {data.energies.REFERENCE_EV} is "
            "another reference of energies, not an error of the model): fine-tune with --e0 refit"
        )
    return out


if __name__ == "__main__":
    sys.exit(main())
