"""What a fine-tuning run tells: progress bar, metrics.jsonl, tables, plots, report.json."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from equijax import outputs, parallel, tables
from equijax.data.errors import QUANTITIES, Quantity
from equijax.errors import InputError
from equijax.finetune import retained
from equijax.finetune.metrics import Dimer, LabelErrors
from equijax.finetune.trainer import Progress
from equijax.plots import draw_learning_curve


class Assessment(NamedTuple):
    """A model on everything a run looks at."""

    errors: dict[str, LabelErrors]  # by set
    phonons: list[dict]  # per crystal, see `equijax.phonons.compare`
    dimers: list[Dimer]  # per pair of elements


class Result(NamedTuple):
    """What report.json holds."""

    strategy: str
    trainable: int  # numbers
    reason: str  # why the run ended
    best_epoch: int
    epochs: int
    seconds: float
    messages: tuple[str, ...]
    structures: dict[str, int]  # by set
    split: dict | None
    dataset_sha256: str
    versions: dict[str, str]
    e0: str
    before: Assessment  # the untouched starting model
    before_with_new_e0: dict[str, LabelErrors] | None  # with the E0s of the result, where these are others
    after: Assessment
    verdict: tuple[str, ...] = ()


class Log:
    """Progress bar and metrics.jsonl of the first process; call it with the dicts of `trainer.fit`."""

    def __init__(self, path: Path, progress: Progress, *, steps: int, done: int) -> None:
        if parallel.is_first():
            # a resumed run repeats what came after its checkpoint
            kept = [record for record in read_history(path) if record["epoch"] <= progress.epoch]
            outputs.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = outputs.open_at(path, path.stat().st_size) if parallel.is_first() else None
        silent = not parallel.is_first()
        self._bar = tqdm(total=steps, initial=done, desc="train", unit="step", dynamic_ncols=True, disable=silent)
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()

    def __call__(self, record: dict) -> None:
        if "batch" in record:
            self._bar.update()
            self._shown |= {"epoch": str(record["epoch"]), "loss": f"{float(record['loss']):.3g}"}
        else:
            if self._file is not None:
                outputs.append(self._file, (json.dumps(record) + "\n").encode())
            self._shown["valid"] = f"{record['loss']:.3g}"
            if record.get("forces_mae") is not None:
                self._shown["F"] = f"{1e3 * record['forces_mae']:.1f} meV/A"
        self._bar.set_postfix(self._shown, refresh=False)


def read_history(path: Path) -> list[dict]:
    """Records of metrics.jsonl, the last one of each epoch; a last line cut short by a crash is left out.

    Raises:
      InputError: another line is not JSON.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records[record["epoch"]] = record
        except ValueError as error:
            if number < len(lines) or line.endswith("\n"):
                raise InputError(f"{path}, line {number}: not a record of this program: {error}") from error
    return list(records.values())


def errors_table(models: dict[str, dict[str, LabelErrors]]) -> str:
    """MAE / RMSE of energy, forces and stress per model and set."""
    rows = (
        [model, name, *(_pair(found, q) for q in QUANTITIES)]
        for model, sets in models.items()
        for name, found in sets.items()
    )
    return tables.text(["model", "set", *(f"{q.name} ({q.unit})" for q in QUANTITIES)], rows, left=2)


def _pair(found: LabelErrors, q: Quantity) -> str:
    """MAE / RMSE in the unit of the table."""
    mae, rmse = getattr(found, f"{q.name}_mae"), getattr(found, f"{q.name}_rmse")
    return tables.cell(None) if mae is None else tables.pair(q.factor * mae, q.factor * rmse)


def shifted_name(e0: str) -> str:
    """Name of the starting model whose E0s are those of the result; "zero-shot" is the untouched model."""
    return f"zero-shot with {e0} E0s"


THERMAL = ("omega_max", "free_energy", "entropy", "heat_capacity")


def phonons_table(before: list[dict], after: list[dict], *, name: str) -> str:
    """Per crystal: starting model, result and reference; F, S and C_V at 300 K per mole of primitive cells."""
    titles = ("MAE (THz)", "highest (THz)", "F (kJ/mol)", "S (J/K/mol)", "C_V (J/K/mol)", "imaginary")
    rows, thresholds = [], ""
    for b, a in zip(before, after, strict=True):
        for model, row in (("zero-shot", b), (name, a)):
            agree = " ".join(f"{share:.0%}" for share in row["imaginary_agreement"].values())
            rows.append([row["crystal"], model, *(row[k] for k in ("frequency_mae", *THERMAL)), agree])
        rows.append([a["crystal"], "reference", "", *(a[f"{k}_reference"] for k in THERMAL), ""])
        thresholds = ", ".join(a["imaginary_agreement"])
    text = tables.text(["phonons", "model", *titles], rows, left=2)
    return f"{text}\nimaginary: share of q that agree with the reference on modes below minus {thresholds} THz"


def verdict(result: Result) -> tuple[str, ...]:
    """Plain statements: better or worse than the untouched starting model, on what, and what was forgotten.

    Energies are also compared with the starting model with the E0s of the result, where these are others: the
    difference is what training did.
    """
    before, after, shifted = result.before, result.after, result.before_with_new_e0
    lines = []
    if result.reason != "zero-shot" and not result.best_epoch:
        with_e0 = "" if shifted is None else f" with {result.e0} E0s"
        lines.append(f"training never improved the validation loss: the result is the starting model{with_e0}")
    for name in (n for n in ("valid", "test", *retained.KINDS) if n in after.errors):
        b, a = before.errors[name], after.errors[name]
        lines.append(_compare(f"{name} force MAE", b.forces_mae, after=a.forces_mae))
        energy = f"{name} energy MAE (eV/atom) against"
        lines.append(_compare(f"{energy} the untouched model", b.energy_mae, after=a.energy_mae))
        if shifted is not None:
            lines.append(_compare(f"{energy} {shifted_name(result.e0)}", shifted[name].energy_mae, after=a.energy_mae))
    for b, a in zip(before.phonons, after.phonons, strict=True):
        what = f"phonon frequency MAE of {a['crystal']} (THz)"
        lines.append(_compare(what, b["frequency_mae"], after=a["frequency_mae"]))
    for b, a in zip(before.dimers, after.dimers, strict=True):
        if a.repulsive < b.repulsive:
            lines.append(
                f"WORSE: {a.pair} repels at {a.repulsive:.0%} of the short distances, {b.repulsive:.0%} before"
            )
    return tuple(line for line in lines if line)


def _compare(what: str, before: float | None, *, after: float | None) -> str:
    if before is None or after is None:
        return ""
    word = "better" if after < before else "WORSE" if after > before else "the same"
    return f"{word}: {what} {before:.4g} -> {after:.4g}" + (f" (x{after / before:.2f})" if before else "")


def summary(result: Result) -> str:
    """The text at the end of a run."""
    shifted = result.before_with_new_e0
    table = errors_table(
        {"zero-shot": result.before.errors}
        | ({} if shifted is None else {shifted_name(result.e0): shifted})
        | {result.strategy: result.after.errors}
    )
    before, after = result.before.phonons, result.after.phonons
    lines = [
        "",
        table,
        "",
        *([phonons_table(before, after, name=result.strategy), ""] if after else []),
        f"{result.strategy}: {result.trainable:,} trainable numbers, {result.epochs} epochs "
        f"({result.reason}), best after {result.best_epoch}, {result.seconds:.0f} s",
        *result.verdict,
        *(text for text in result.messages if text.startswith("WARNING")),
    ]
    return "\n".join(lines)


def write(out: Path, result: Result) -> None:
    """report.json, and the learning curve."""
    outputs.write_json(out / "report.json", document(result))
    if history := read_history(out / "metrics.jsonl"):  # zero-shot has none
        start = result.before_with_new_e0 or result.before.errors
        draw_learning_curve(out / "learning_curve.png", history, start=start["valid"]._asdict())


def document(x: Any) -> Any:
    """JSON of a result: named tuples become objects."""
    if isinstance(x, tuple) and hasattr(x, "_asdict"):
        return document(x._asdict())
    if isinstance(x, dict):
        return {name: document(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [document(value) for value in x]
    return x.tolist() if isinstance(x, np.ndarray | np.generic) else x
