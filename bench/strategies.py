"""Which fine-tuning strategy? Ten structures a material, the same data, budget and metrics for all.

    python bench/strategies.py --data DIR [--materials Si-dia ...] [--strategies lora naive ...] [--epochs 40]

DIR holds NAME_train, _valid, _test.extxyz and NAME_phonopy.yaml; the structures shipped with the package by default.
Rows already in the result file are kept and not run again, so a long comparison can be done in pieces.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import _common as common
import jax
import numpy as np
import tyro

import equijax
from equijax import finetune, recipe

ASSETS = Path(equijax.__file__).parent / "assets"
ALL_LAYERS = ("node_embedding", r"interactions_\d+/(linear.*|skip_tp|radial_mlp)", r"products_\d+/.*", r"readouts_\d+")
# name -> options that differ from the defaults; REPLAY is put in place of the replay file
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
    "lora all layers r8": {"rank": 8, "targets": ALL_LAYERS, "all_species": True, "lr": 5e-3},
    "lora all layers r8 + self-replay": {
        "rank": 8, "targets": ALL_LAYERS, "all_species": True, "lr": 5e-3, "replay_self": "REPLAY",
    },
    "naive + replay": {"strategy": "naive", "replay": "REPLAY"},
    "multihead": {"strategy": "multihead", "replay": "REPLAY"},
}  # fmt: skip


@dataclass(frozen=True)
class StrategiesConfig:
    """Compare fine-tuning strategies on several materials."""

    model: Path
    """Starting checkpoint, made by `python -m convert`."""
    data: Path = ASSETS
    """Folder with NAME_train, _valid, _test.extxyz and NAME_phonopy.yaml."""
    retain: Path = ASSETS / "mini_valid.extxyz"
    """What the starting model knew."""
    replay: Path | None = None
    """Structures for replay; strategies that need them are left out otherwise."""
    materials: tuple[str, ...] = ()
    """Names; all in --data by default."""
    strategies: tuple[str, ...] = ()
    """Names in the table; all by default."""
    epochs: int = 40
    """Of every strategy."""
    name: str = "strategies"
    """Of the result file."""


def main() -> None:
    """Run what is missing from the result file and print the table."""
    options = tyro.cli(StrategiesConfig)
    found = sorted(p.name.removesuffix("_train.extxyz") for p in options.data.glob("*_train.extxyz"))
    file = common.RESULTS / f"{options.name}-{jax.default_backend()}.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    done = {(r["material"], r["strategy"], r["epochs"]) for r in rows}
    for material in options.materials or found:
        for name in options.strategies or tuple(CASES):
            case = CASES[name]
            if (material, name, options.epochs) in done or ("REPLAY" in case.values() and options.replay is None):
                continue
            rows.append(run(options, material, name, case))
            common.write(options.name, rows, epochs=options.epochs)
            jax.clear_caches()  # XLA on CPU runs out of memory maps
    print(table(rows))


def run(options: StrategiesConfig, material: str, name: str, case: dict) -> dict:
    """One fine-tuning run in a temporary folder, reduced to a row."""
    folder = Path(tempfile.mkdtemp())
    files = {k: (options.data / f"{material}_{k}.extxyz",) for k in ("train", "valid", "test")}
    given = {k: (options.replay,) if v == "REPLAY" else v for k, v in case.items()}
    given = {"epochs": options.epochs, "retain": (options.retain,), **files, **given}
    config = recipe.FinetuneConfig(
        model=options.model, out=folder / "run", phonons=(options.data / f"{material}_phonopy.yaml",), **given
    )
    try:
        result = finetune.run(recipe.resolve(config))
    finally:
        shutil.rmtree(folder)
    row = {"material": material, "strategy": name, "epochs": options.epochs, "trainable": result["trainable"],
           "best_epoch": result["best_epoch"], "seconds": result["seconds"]}  # fmt: skip
    for when in ("before", "after"):
        errors, (phonon,) = result[when]["errors"], result[when]["phonons"]
        row |= {
            f"energy_mae_{when}": errors["test"]["energy_mae"],
            f"forces_mae_{when}": errors["test"]["forces_mae"],
            f"retain_forces_mae_{when}": errors["retain"]["forces_mae"],
            f"frequency_mae_{when}": phonon["frequency_mae"],
            f"heat_capacity_error_{when}": abs(phonon["heat_capacity"] - phonon["heat_capacity_reference"]),
        }
    return row


def table(rows: list[dict]) -> str:
    """Medians over materials, per strategy, as a Markdown table."""
    lines = [
        "| strategy | materials | trainable | forces, meV/A | phonons, THz | times better | C_V error, J/K/mol | "
        "retained forces, worse by | s |",
        "| --- " * 9 + "|",
    ]
    for name in dict.fromkeys(r["strategy"] for r in rows):
        chosen = [r for r in rows if r["strategy"] == name]

        def median(function, chosen=chosen):
            return float(np.median([function(r) for r in chosen]))

        better = median(lambda r: r["frequency_mae_before"] / r["frequency_mae_after"])
        worse = median(lambda r: 100 * (r["retain_forces_mae_after"] / r["retain_forces_mae_before"] - 1))
        cells = [
            name, str(len(chosen)), f"{int(median(lambda r: r['trainable'])):,}",
            f"{1e3 * median(lambda r: r['forces_mae_after']):.1f}", f"{median(lambda r: r['frequency_mae_after']):.3f}",
            f"{better:.2f}", f"{median(lambda r: r['heat_capacity_error_after']):.3f}", f"{worse:+.1f} %",
            f"{median(lambda r: r['seconds']):.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
