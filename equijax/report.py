"""What a fine-tuning run tells: progress bar, metrics.jsonl, tables, plots, report.json."""

import dataclasses
import io
import json
from pathlib import Path

import matplotlib
import numpy as np
from tqdm import tqdm

from equijax import parallel
from equijax.train import Progress

UNITS = {"energy": ("meV/atom", 1e3), "forces": ("meV/A", 1e3), "stress": ("meV/A^3", 1e3)}


class Log:
    """Progress bar and metrics.jsonl of the first process; call it with the dicts of `train.fit`."""

    def __init__(self, path: Path, progress: Progress, steps: int, done: int):
        if parallel.is_first():
            kept = []
            if path.exists():  # a resumed run repeats what came after its checkpoint
                kept = [line for line in path.read_text().splitlines() if json.loads(line)["epoch"] <= progress.epoch]
            path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a") if parallel.is_first() else io.StringIO()
        self._bar = tqdm(total=steps, initial=done, desc="train", unit="step", dynamic_ncols=True,
                         disable=not parallel.is_first())  # fmt: skip
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._file.close()

    def __call__(self, record: dict) -> None:
        if "batch" in record:
            self._bar.update()
            self._shown |= {"epoch": str(record["epoch"]), "loss": f"{float(record['loss']):.3g}"}
        else:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            self._shown["valid"] = f"{record['loss']:.3g}"
            if record.get("forces_mae") is not None:
                self._shown["F"] = f"{1e3 * record['forces_mae']:.1f} meV/A"
        self._bar.set_postfix(self._shown, refresh=False)


def errors_table(models: dict[str, dict[str, dict]]) -> str:
    """MAE / RMSE of energy, forces and stress per model and set."""
    lines = [f"{'model':<12}{'set':<8}" + "".join(f"{q + ' (' + u + ')':>24}" for q, (u, _) in UNITS.items())]
    for model, sets in models.items():
        for name, found in sets.items():
            cells = [_pair(found[f"{q}_mae"], found[f"{q}_rmse"], factor) for q, (_, factor) in UNITS.items()]
            lines.append(f"{model:<12}{name:<8}" + "".join(f"{c:>24}" for c in cells))
    return "\n".join(lines)


def _pair(mae, rmse, factor):
    return "-" if mae is None else f"{factor * mae:.4g} / {factor * rmse:.4g}"


THERMAL = ("omega_max", "free_energy", "entropy", "heat_capacity")


def phonons_table(before: list[dict], after: list[dict], name: str) -> str:
    """Per crystal: starting model, result and reference; F, S and C_V at 300 K per mole of primitive cells."""
    titles = ("MAE (THz)", "highest (THz)", "F (kJ/mol)", "S (J/K/mol)", "C_V (J/K/mol)", "imaginary")
    lines, thresholds = [], ""
    width = max(len(row["crystal"]) for row in after) + 2
    lines.append(f"{'phonons':<{width}}{'model':<12}" + "".join(f"{title:>15}" for title in titles))
    for b, a in zip(before, after, strict=True):
        for model, row in (("zero-shot", b), (name, a)):
            agree = " ".join(f"{share:.0%}" for share in row["imaginary_agreement"].values())
            cells = [f"{row[k]:.4g}" for k in ("frequency_mae", *THERMAL)]
            lines.append(f"{row['crystal']:<{width}}{model:<12}" + "".join(f"{c:>15}" for c in (*cells, agree)))
        cells = ["", *(f"{a[f'{k}_reference']:.4g}" for k in THERMAL)]
        lines.append(f"{a['crystal']:<{width}}{'reference':<12}" + "".join(f"{c:>15}" for c in cells))
        thresholds = ", ".join(a["imaginary_agreement"])
    lines.append(f"imaginary: share of q that agree with the reference on modes below minus {thresholds} THz")
    return "\n".join(lines)


def verdict(result: dict) -> list[str]:
    """Plain statements: better or worse than zero-shot, on what, and what was forgotten."""
    before, after = result["before"], result["after"]
    lines = []
    if result["reason"] != "zero-shot" and not result["best_epoch"]:
        lines.append("training never improved the validation loss: the result is the starting model")
    for name in ("valid", "test", "retain"):
        if name in after["errors"]:
            lines.append(_compare(f"{name} force MAE", "forces_mae", before["errors"][name], after["errors"][name]))
    for b, a in zip(before["phonons"], after["phonons"], strict=True):
        lines.append(_compare(f"phonon frequency MAE of {a['crystal']} (THz)", "frequency_mae", b, a))
    for b, a in zip(before["dimers"], after["dimers"], strict=True):
        if a["repulsive"] < b["repulsive"]:
            lines.append(
                f"WORSE: {a['pair']} repels at {a['repulsive']:.0%} of the short distances, {b['repulsive']:.0%} before"
            )
    return [line for line in lines if line]


def _compare(what, key, before, after):
    b, a = before[key], after[key]
    if b is None or a is None:
        return ""
    word = "better" if a < b else "WORSE" if a > b else "the same"
    return f"{word}: {what} {b:.4g} -> {a:.4g}" + (f" (x{a / b:.2f})" if b else "")


def summary(result: dict) -> str:
    """The text at the end of a run."""
    table = errors_table({"zero-shot": result["before"]["errors"], result["strategy"]: result["after"]["errors"]})
    before, after = (result[k]["phonons"] for k in ("before", "after"))
    lines = [
        "",
        table,
        "",
        *([phonons_table(before, after, result["strategy"]), ""] if after else []),
        f"{result['strategy']}: {result['trainable']:,} trainable numbers, {result['epochs']} epochs "
        f"({result['reason']}), best after {result['best_epoch']}, {result['seconds']:.0f} s",
        *result["verdict"],
    ]
    return "\n".join(lines)


def write(out: Path, result: dict) -> None:
    """report.json, and the learning curve."""
    (out / "report.json").write_text(json.dumps(result, indent=1, default=_plain))
    log = out / "metrics.jsonl"
    history = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []  # zero-shot: none
    if history:
        learning_curve(history, result["before"]["errors"]["valid"], out / "learning_curve.png")


def _plain(x):
    if dataclasses.is_dataclass(x):
        return dataclasses.asdict(x)
    return x.tolist() if isinstance(x, np.ndarray | np.generic) else str(x)


def learning_curve(history: list[dict], zero_shot: dict, path: Path) -> None:
    """Training and validation loss, and validation force MAE, by epoch; the zero-shot values are dashed."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = [h["epoch"] for h in history]
    axes[0].semilogy(epochs, [h["train_loss"] for h in history], label="train")
    axes[0].semilogy(epochs, [h["loss"] for h in history], label="validation")
    axes[0].axhline(zero_shot["loss"], color="k", ls="--", lw=0.8, label="zero-shot")
    axes[0].set(xlabel="epoch", ylabel="loss")
    axes[0].legend()
    if zero_shot["forces_mae"] is not None:
        axes[1].plot(epochs, [1e3 * h["forces_mae"] for h in history], color="C1")
        axes[1].set_ylim(bottom=0.0)
        axes[1].axhline(1e3 * zero_shot["forces_mae"], color="k", ls="--", lw=0.8)
    axes[1].set(xlabel="epoch", ylabel="validation force MAE (meV/A)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _pyplot():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
