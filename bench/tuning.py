"""Learning rate, passes and replay of each fine-tuning strategy, chosen without anything that strategies.py reports.

    python bench/tuning.py --data DIR --replay FILE [--model CKPT] [--materials Si-dia MgO-rs] [--strategies lora ...]

Every setting of GRID is run on every material. Of the replay file HELD_OUT structures are kept from replay, to see what
is damaged. The rule: of the settings whose force error on related ones (other compounds that share an element)
rises by at most CAP %, the one with the lowest validation loss; where none does, the one that raises it least. Both
numbers are relative to zero-shot, geometric means over the materials. Rows already in the result file are kept and not
run again.
"""

import itertools
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import _common as common
import ase.io
import jax
import numpy as np
import strategies
import tyro

from equijax.finetune import setup
from equijax.finetune.defaults import resolve
from equijax.finetune.options import nested
from equijax.finetune.run import set_errors

CAP = 10.0  # %, the aim for related compounds
HELD_OUT = 100  # structures of the replay file
FARTHEST, RANDOM = ({"replay_number": n, "replay_pick": how} for n, how in ((64, "farthest"), (256, "random")))
ALL_LAYERS = ("node_embedding", r"interactions_\d+/(linear.*|skip_tp|radial_mlp)", r"products_\d+/.*", r"readouts_\d+")
CASES = strategies.CASES | {
    "lora all layers + self-replay": {"targets": ALL_LAYERS, "all_species": True, "replay_self": "REPLAY"},
    "naive + self-replay": {"strategy": "naive", "replay_self": "REPLAY"},
}
LONGER = 4 * strategies.StrategiesConfig.epochs
# strategy -> settings; passes as in strategies.py unless given
GRID: dict[str, list[dict]] = {
    "scratch": [{"lr": lr, "epochs": LONGER} for lr in (3e-3, 1e-2)],
    "naive": [{"lr": lr} for lr in (1e-3, 3e-3, 1e-2)] + [{"lr": lr, "epochs": LONGER} for lr in (1e-3, 3e-3)],
    "freeze": [{"lr": lr} for lr in (1e-3, 3e-3, 1e-2)],
    "delta": [{"lr": lr, "l2sp": pull} for lr in (1e-3, 3e-3, 1e-2) for pull in (1e-3, 1e-1)],
    "lora r8": [{"lr": lr} for lr in (1e-2, 2e-2, 4e-2)] + [{"lr": lr, "epochs": LONGER} for lr in (1e-2, 2e-2)],
    "lora r8 + self-replay": [{"lr": lr} for lr in (2e-2, 4e-2)],
    "lora all layers + self-replay": [{"lr": lr} for lr in (1e-3, 3e-3, 1e-2)],
    "naive + replay": [{"lr": 3e-4, **FARTHEST}] + [{"lr": lr, **RANDOM} for lr in (3e-4, 1e-3, 3e-3)],
    "naive + self-replay": [{"lr": lr} for lr in (1e-3, 3e-3, 1e-2)],
    "multihead + replay": [{"lr": lr} for lr in (3e-4, 1e-3, 3e-3)],
}


@dataclass(frozen=True)
class TuningConfig:
    """Choose the options of the strategies that are compared."""

    data: Path
    """Folder with NAME_train and NAME_valid.extxyz."""
    replay: Path
    """Structures for replay, and to measure forgetting."""
    model: Path | None = None
    """Starting checkpoint, made by `python -m convert`; the bundled model by default."""
    materials: tuple[str, ...] = ("Si-dia", "MgO-rs")
    """Names."""
    strategies: tuple[str, ...] = tuple(GRID)
    """Names in GRID."""
    name: str = "tuning-related"
    """Of the result file; `tuning` holds earlier rows, whose force error is that of all held-out structures."""


def main() -> None:
    """Run what is missing from the result file and print what the rule chooses."""
    options = tyro.cli(TuningConfig)
    file = common.RESULTS / f"{options.name}-{jax.default_backend()}.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    folder = Path(tempfile.mkdtemp())
    try:
        files = inputs(options, folder)
        for material, name in itertools.product(options.materials, options.strategies):
            for setting in GRID[name]:
                key = {"material": material, "strategy": name, "setting": setting}
                if not any(key.items() <= row.items() for row in rows):
                    rows.append(key | run(options, files, material=material, case=CASES[name] | setting))
                    common.write(options.name, rows, cap=CAP, held_out=HELD_OUT)
            jax.clear_caches()  # XLA on CPU runs out of memory maps
    finally:
        shutil.rmtree(folder)
    print(table(rows))


def inputs(options: TuningConfig, folder: Path) -> dict[str, Path]:
    """The starting model, and the replay file in two parts."""
    frames = ase.io.read(options.replay, ":")
    order = np.random.default_rng(0).permutation(len(frames))
    files = {"model": strategies.starting_model(options.model, folder)}
    for name, chosen in (("held_out", order[:HELD_OUT]), ("replay", order[HELD_OUT:])):
        files[name] = folder / f"{name}.extxyz"
        ase.io.write(files[name], [frames[i] for i in chosen])
    return files


def run(options: TuningConfig, files: dict, *, material: str, case: dict) -> dict:
    """Validation loss and force error on related held-out structures of one run, relative to zero-shot."""
    started = time.perf_counter()
    sets = {k: (options.data / f"{material}_{k}.extxyz",) for k in ("train", "valid")}
    given = {k: (files["replay"],) if v == "REPLAY" else v for k, v in case.items()}
    epochs = given.pop("epochs", strategies.StrategiesConfig.epochs)
    given |= {"epochs": epochs, "evaluate_every": epochs // 4, "retain": (files["held_out"],), **sets}
    made = setup.begin(resolve(nested({"model": files["model"], "out": Path("never-written"), **given})))
    graphs = {name: made.graphs[name] for name in ("valid", "related")}
    before = set_errors(made, made.ff.variables, graphs=graphs)
    variables, found = strategies.fit(made, before["valid"].loss)
    after = set_errors(made, variables, graphs=graphs)
    return {
        "valid_loss": after["valid"].loss / before["valid"].loss,
        "related_forces": after["related"].forces_mae / before["related"].forces_mae,
        "best_epoch": found["best_epoch"],
        "seconds": time.perf_counter() - started,
    }


def table(rows: list[dict]) -> str:
    """Means over materials per setting, the choice of the rule in bold, as a Markdown table."""
    lines = ["| strategy | setting | validation loss | related forces |", "| --- " * 4 + "|"]
    for name in dict.fromkeys(r["strategy"] for r in rows):
        found = {", ".join(f"{k} {v}" for k, v in s.items()): means(rows, name, setting=s) for s in GRID[name]}
        found = {text: both for text, both in found.items() if both}
        best = choice(found) if found else None
        for setting, (loss, forces) in found.items():
            mark = "**" if setting == best else ""
            lines.append(f"| {name} | {mark}{setting}{mark} | {loss:.3f} | {forces:.3f} |")
    return "\n".join(lines)


def means(rows: list[dict], name: str, *, setting: dict) -> tuple[float, float] | None:
    """(validation loss, force error on related structures) of a setting; None where it was not run on all materials."""
    chosen = [r for r in rows if r["strategy"] == name and r["setting"] == setting]
    if {r["material"] for r in chosen} != {r["material"] for r in rows}:
        return None
    loss, forces = (np.exp(np.mean([np.log(r[k]) for r in chosen])) for k in ("valid_loss", "related_forces"))
    return float(loss), float(forces)


def choice(found: dict[str, tuple[float, float]]) -> str:
    """The rule: see the top of the file."""
    kept = {s: m for s, m in found.items() if m[1] <= 1 + CAP / 100}
    return min(kept, key=lambda s: kept[s][0]) if kept else min(found, key=lambda s: found[s][1])


if __name__ == "__main__":
    main()
