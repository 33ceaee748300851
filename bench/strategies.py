"""Which fine-tuning strategy? Ten structures a material; the same data, passes, batches and metrics for all.

    python bench/strategies.py [--data DIR --retain FILE --replay FILE] [--materials Si-dia ...] [--strategies lora ...]

DIR holds NAME_train, _valid, _test.extxyz and NAME_phonopy.yaml; the structures shipped with the package by default.
Rows already in the result file are kept and not run again, so that a long comparison can be done in pieces. Prints the
table of medians over materials and draws strategies.png beside it.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import _common as common
import ase.io
import jax
import matplotlib
import numpy as np
import tyro

import equijax
from equijax import data
from equijax.data import select
from equijax.finetune import retained, setup, strategies
from equijax.finetune.defaults import resolve
from equijax.finetune.options import FinetuneOptions, nested
from equijax.finetune.run import assess, optimise, set_errors
from equijax.finetune.setup import Setup

ASSETS = Path(equijax.__file__).parent / "assets"
SECONDS = ("seconds", "processor_seconds")
EVALUATE_EVERY = 3  # passes; every one of them would cost as much as the training
AIM = {"better": 3.0, "worse": 10.0}  # phonons at least so many times better, related forces at most so many % worse
# name -> options that differ from the defaults, chosen by tuning.py; REPLAY is put in place of the replay file
CASES: dict[str, dict] = {
    "zero-shot": {"strategy": "zero-shot"},
    "scratch": {"strategy": "scratch"},
    "naive": {"strategy": "naive"},
    "freeze": {"strategy": "freeze"},
    "delta": {"strategy": "delta"},
    "lora r2": {"rank": 2},
    "lora r4": {"rank": 4},
    "lora r8": {"rank": 8},
    "lora r16": {"rank": 16},
    "lora r8 + self-replay": {"lr": 4e-2, "replay_self": "REPLAY"},
    "lora r8 + related prototypes": {"replay_related": 256},
    "naive + replay": {"strategy": "naive", "lr": 3e-4, "replay": "REPLAY"},
    "multihead + replay": {"strategy": "multihead", "replay": "REPLAY"},
}


@dataclass(frozen=True)
class StrategiesConfig:
    """Compare fine-tuning strategies on several materials."""

    model: Path | None = None
    """Starting checkpoint, made by `python -m convert`; the bundled model by default."""
    data: Path = ASSETS
    """Folder with NAME_train, _valid, _test.extxyz and NAME_phonopy.yaml."""
    retain: Path = ASSETS / "mini_valid.extxyz"
    """Structures that fine-tuning should not damage."""
    replay: Path | None = None
    """Structures for replay; strategies that need them are left out otherwise."""
    materials: tuple[str, ...] = ()
    """Names; all in --data by default."""
    strategies: tuple[str, ...] = ()
    """Names in the table; all by default."""
    epochs: int = 12
    """Passes over the training structures, of every strategy."""
    name: str = "strategies"
    """Of the result file."""


def main() -> None:
    """Run what is missing from the result file, print the table, draw the plot."""
    options = tyro.cli(StrategiesConfig)
    file = common.RESULTS / f"{options.name}-{jax.default_backend()}.json"
    stored = json.loads(file.read_text()) if file.exists() else {}
    rows = stored.get("rows", [])
    names = [n for n in options.strategies or CASES if "REPLAY" not in CASES[n].values() or options.replay]
    folder = Path(tempfile.mkdtemp())
    try:
        files = inputs(options, folder)
        for material, name in missing(options, names, rows=rows):
            before = next((r for r in rows if r["material"] == material), None)
            rows.append(run(options, files, material=material, name=name, before=before))
            common.write(options.name, rows, epochs=options.epochs)
    finally:
        shutil.rmtree(folder)
    rows = sorted(rows, key=lambda r: list(CASES).index(r["strategy"]))
    common.write(options.name, rows, epochs=options.epochs)
    if rows:
        print(table(rows))
        draw(rows, common.RESULTS / f"{options.name}.png")


def missing(options: StrategiesConfig, names: list[str], *, rows: list[dict]) -> Iterator[tuple[str, str]]:
    """(material, strategy) without a row, one material after the other so that what is compiled is used again."""
    found = sorted(p.name.removesuffix("_train.extxyz") for p in options.data.glob("*_train.extxyz"))
    done = {(r["material"], r["strategy"], r["epochs"]) for r in rows}
    for material in options.materials or found:
        for name in names:
            if (material, name, options.epochs) not in done:
                yield material, name
        jax.clear_caches()  # XLA on CPU runs out of memory maps


def inputs(options: StrategiesConfig, folder: Path) -> dict[str, Path | None]:
    """The starting model, and the replay structures: chosen once, not anew in every run."""
    model = starting_model(options.model, folder)
    chosen = None
    if options.replay:
        frames = ase.io.read(options.replay, ":")
        defaults = FinetuneOptions
        structures = data.read_structures(options.replay)
        picked = select.pick(structures, defaults.replay_number, how=defaults.replay_pick)
        chosen = folder / "replay.extxyz"
        ase.io.write(chosen, [frames[i] for i in picked])
    return {"model": model, "replay": chosen}


def starting_model(given: Path | None, folder: Path) -> Path:
    """The given checkpoint, or the bundled model converted into `folder`."""
    if given is not None:
        return given
    from convert.__main__ import main as convert

    convert([str(ASSETS / "mini.model"), str(folder / "model")])
    return folder / "model"


def recipe_of(options: StrategiesConfig, files: dict, *, material: str, case: dict) -> FinetuneOptions:
    """The resolved options of one run, which writes nothing."""
    sets = {k: (options.data / f"{material}_{k}.extxyz",) for k in ("train", "valid", "test")}
    given = {k: (files["replay"],) if v == "REPLAY" else v for k, v in case.items()}
    same = {"epochs": options.epochs, "evaluate_every": EVALUATE_EVERY, "retain": (options.retain,), **sets}
    same |= {"phonons": (options.data / f"{material}_phonopy.yaml",), "model": files["model"]}
    return resolve(nested({"out": Path("never-written"), **same, **given}))


def run(options: StrategiesConfig, files: dict, *, material: str, name: str, before: dict | None = None) -> dict:
    """One fine-tuning run, as `run.run` does it but without plots and files, reduced to a row.

    `before` is a row of the same material: the starting model is then not assessed again.
    """
    started, processor = time.perf_counter(), time.process_time()
    made = setup.begin(recipe_of(options, files, material=material, case=CASES[name]))
    row = {"material": material, "strategy": name, "epochs": options.epochs}
    before = before or assessed(made, made.ff.variables, when="before")
    row |= {k: v for k, v in before.items() if k.endswith("_before")}
    if name == "zero-shot":
        same = {k.replace("_before", "_after"): v for k, v in row.items() if k.endswith("_before")}
        return row | same | dict.fromkeys(("trainable", "best_epoch"), 0) | dict.fromkeys(SECONDS, 0.0)
    start = set_errors(made, made.ff.variables, graphs={"valid": made.graphs["valid"]})["valid"].loss
    variables, found = fit(made, start)
    found |= zip(SECONDS, (time.perf_counter() - started, time.process_time() - processor), strict=True)
    return row | found | assessed(made, variables, when="after")


def fit(made: Setup, start: float) -> tuple[dict, dict]:
    """Train; `start` is the validation loss of the starting model.

    Returns:
      variables of the result; how many numbers were trained and the best pass.
    """
    with tempfile.TemporaryDirectory() as folder:
        best, progress, _ = optimise(made, start, out=Path(folder).absolute())
    found = {"trainable": strategies.count(made.trained.start), "best_epoch": progress.best_epoch}
    return strategies.merged(made.ff.variables, made.trained, best=best, energies=made.energies), found


def assessed(made: Setup, variables: dict, *, when: str) -> dict:
    """What is compared: test set, retained set, phonons."""
    found = assess(made, variables, graphs=made.graphs)
    (phonon,) = found.phonons
    return {
        f"energy_mae_{when}": found.errors["test"].energy_mae,
        f"forces_mae_{when}": found.errors["test"].forces_mae,
        **{f"{kind}_forces_mae_{when}": e.forces_mae for kind, e in found.errors.items() if kind in retained.KINDS},
        f"frequency_mae_{when}": phonon["frequency_mae"],
        f"heat_capacity_error_{when}": abs(phonon["heat_capacity"] - phonon["heat_capacity_reference"]),
    }


def better(row: dict) -> float:
    """Times that the phonon frequency error became smaller."""
    return row["frequency_mae_before"] / row["frequency_mae_after"]


def worse(row: dict, kind: str) -> float | None:
    """Change of the force error on related or unrelated structures, %; None without such structures."""
    before, after = (row.get(f"{kind}_forces_mae_{when}") for when in ("before", "after"))
    return None if before is None or after is None else 100 * (after / before - 1)


def damage(rows: list[dict], kind: str) -> str:
    """Median of `worse`, in brackets the worst, and of how many materials where not of all."""
    found = [x for row in rows if (x := worse(row, kind)) is not None]
    if not found:
        return "-"
    part = f" of {len(found)}" if len(found) < len(rows) else ""
    return f"{np.median(found):+.1f} % ({max(found):+.1f} %){part}"


def by_strategy(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows grouped by strategy, in order."""
    return {n: [r for r in rows if r["strategy"] == n] for n in dict.fromkeys(r["strategy"] for r in rows)}


def table(rows: list[dict]) -> str:
    """Medians over materials, per strategy, as a Markdown table."""
    lines = [
        "| strategy | materials | trainable | forces, meV/A | phonons, THz | phonons better (least) | "
        "C_V error, J/K/mol | related forces worse (most) | unrelated (most) | processor s |",
        "| --- " * 10 + "|",
    ]
    for name, chosen in by_strategy(rows).items():

        def median(key: str, chosen: list[dict] = chosen) -> float:
            return float(np.median([r[key] for r in chosen]))

        gains = [better(r) for r in chosen]
        cells = [
            name,
            str(len(chosen)),
            f"{int(median('trainable')):,}",
            f"{1e3 * median('forces_mae_after'):.1f}",
            f"{median('frequency_mae_after'):.3f}",
            f"{np.median(gains):.2f}x ({min(gains):.2f}x)",
            f"{median('heat_capacity_error_after'):.3f}",
            *(damage(chosen, kind) for kind in retained.KINDS),
            f"{median('processor_seconds'):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict], path: Path) -> None:
    """Gain against damage to related compounds: medians, bars over the middle half of the materials, their number.

    The aim is shaded; rows without related structures are left out, and where there are no others nothing is drawn.
    """
    measured = [(row, x) for row in rows if (x := worse(row, "related")) is not None]
    if not measured:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    axis.set(
        xscale="symlog",
        yscale="log",
        xlabel="force error on related compounds, change in % (linear below 10)",
        ylabel="phonon frequency error, times smaller than zero-shot",
    )
    for i, name in enumerate(by_strategy(rows)):
        chosen = [(x, better(row)) for row, x in measured if row["strategy"] == name]
        if not chosen:
            continue
        x, y = np.percentile(chosen, (25, 50, 75), axis=0).T
        fill = {} if len(chosen) > 1 else {"mfc": "none"}
        axis.errorbar(
            x[1],
            y[1],
            xerr=[[x[1] - x[0]], [x[2] - x[1]]],
            yerr=[[y[1] - y[0]], [y[2] - y[1]]],
            marker="osD^v<>PX*hd"[i % 12],
            color=f"C{i % 10}",
            ms=8,
            lw=1,
            ls="none",
            label=f"{name} ({len(chosen)})",
            **fill,
        )
    axis.set_xscale("symlog", linthresh=10)
    axis.axhline(1, color="k", lw=0.8, ls=":")
    left, right = axis.get_xlim()
    bottom, top = axis.get_ylim()
    axis.fill_between([left, AIM["worse"]], AIM["better"], top, color="C2", alpha=0.12, lw=0)
    axis.set(xlim=(left, right), ylim=(bottom, top))
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10) if bottom <= t <= top]
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
