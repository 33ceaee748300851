"""What a person waits for: from a command to its answer, a fresh process each.

Rows: one energy, a relaxation, phonons of a primitive cell, 1,000 steps of 64 atoms, fine-tuning on ten structures, all
with the bundled model. Columns: equijax with an empty cache; equijax with the cache that another crystal left; the same
task by mace-torch with ASE and phonopy (`wall_peers.py`), where that is installed. Wall time says what one waits on an
idle machine; processor time (user and system, of all threads) also means something on a shared one.

Every cold run starts with an empty EQUIJAX_CACHE, kernels included; every warm one with what one run of `FIRST` left.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path

import _common as common
import ase.io
import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk

ASSETS = resources.files("equijax") / "assets"
FIRST, SECOND = "NaCl", "MgO"  # the crystal that fills the cache, the one that is timed
CELLS = {"NaCl": bulk("NaCl", "rocksalt", a=5.69), "MgO": bulk("MgO", "rocksalt", a=4.25)}
LABELLED = {"NaCl": "NaCl-rs", "MgO": "Si-dia"}  # of the fine-tuning
PEERS = Path(__file__).with_name("wall_peers.py")
ENERGY = """
import sys, ase.io, equijax
atoms = ase.io.read(sys.argv[2])
atoms.calc = equijax.load(sys.argv[1]).calculator()
print(atoms.get_potential_energy(), abs(atoms.get_forces()).max())
"""
RELAXATION = """
import sys, ase.io, equijax
from equijax.relax import symmetric
atoms, report = symmetric.relax(equijax.load(sys.argv[1]), ase.io.read(sys.argv[2]))
print(report)
"""
COLUMNS = {"cold": "equijax, nothing kept", "warm": "equijax, after another crystal", "mace-torch": "mace-torch"}
TASKS = ("energy", "relaxation", "phonons", "md", "finetune")


@dataclass(frozen=True)
class Options:
    """Time commands."""

    tasks: tuple[str, ...] = TASKS
    """Rows."""
    repeats: int = 5
    """Runs of each; the median counts."""
    peers: bool = True
    """Time mace-torch too, where it is installed."""


def run(options: Options) -> None:
    """Time everything, print the table and write bench/results/wall-cpu.json."""
    peers = options.peers and util.find_spec("mace") is not None
    if options.peers and not peers:
        print("mace-torch is not installed: left out")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        for task in options.tasks:
            samples: dict[str, list] = {name: [] for name in COLUMNS}
            filled = folder / f"filled-{task}"
            timed(ours(task, FIRST, folder), folder, filled)
            for i in range(options.repeats):  # in turn, so that a drifting machine hits all alike
                samples["cold"].append(timed(ours(task, SECOND, folder), folder, folder / f"cold-{task}-{i}"))
                cache = shutil.copytree(filled, folder / f"warm-{task}-{i}")
                samples["warm"].append(timed(ours(task, SECOND, folder), folder, cache))
                if peers:
                    samples["mace-torch"].append(timed(theirs(task, SECOND, folder), folder, filled))
            rows.append({"task": task, **{k: v for name, found in samples.items() for k, v in summary(name, found)}})
            common.print_table(rows[-1:])
            common.write("wall", rows, first=FIRST, second=SECOND, repeats=options.repeats)
    common.print_table(rows)
    draw(rows, common.RESULTS / "wall-cpu.png")


def prepare(folder: Path) -> None:
    """The bundled model in both forms, primitive cells, 64 atoms and labelled structures."""
    subprocess.run([sys.executable, "-m", "convert", str(ASSETS / "mini.model"), str(folder / "mini")], check=True)
    for name, atoms in CELLS.items():
        ase.io.write(folder / f"{name}.vasp", atoms, format="vasp")
        many: Atoms = bulk(name, "rocksalt", a=2 * atoms.cell.lengths()[0] / np.sqrt(2), cubic=True) * (2, 2, 2)
        ase.io.write(folder / f"{name}-64.extxyz", many)


def ours(task: str, crystal: str, folder: Path) -> list[str]:
    """The command of a task."""
    model, cell, out = folder / "mini", folder / f"{crystal}.vasp", Path(tempfile.mkdtemp(dir=folder)) / "out"
    labelled = {part: f"{ASSETS / LABELLED[crystal]}_{part}.extxyz" for part in ("train", "valid")}
    rest = {
        "energy": ["-c", ENERGY, model, cell],
        "relaxation": ["-c", RELAXATION, model, cell],
        "phonons": [*"-m equijax phonons --relax --supercell 3 3 3".split(), cell, "--model", model, "--out", out],
        "md": [*"-m equijax md --steps 1000".split(), folder / f"{crystal}-64.extxyz", "--model", model, "--out", out],
        "finetune": [
            *"-m equijax finetune --epochs 12 --strategy naive".split(),
            *("--model", model, "--out", out, "--train", labelled["train"], "--valid", labelled["valid"]),
        ],
    }
    return [sys.executable, *map(str, rest[task])]


def theirs(task: str, crystal: str, folder: Path) -> list[str]:
    """The same by mace-torch."""
    cell, out = folder / f"{crystal}.vasp", tempfile.mkdtemp(dir=folder)
    labelled = [f"{ASSETS / LABELLED[crystal]}_{part}.extxyz" for part in ("train", "valid")]
    rest = {
        "energy": [cell],
        "relaxation": [cell],
        "phonons": [cell, out],
        "md": [folder / f"{crystal}-64.extxyz"],
        "finetune": [*labelled, out],
    }
    return [sys.executable, *map(str, (PEERS, task, ASSETS / "mini.model", *rest[task]))]


def timed(command: list[str], folder: Path, cache: Path) -> tuple[float, float]:
    """Wall and processor seconds of a command that must succeed."""
    environment = os.environ | {"EQUIJAX_CACHE": str(cache), "MPLBACKEND": "Agg"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with open(folder / "log", "w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read()[-3000:]}")
    return wall, used.ru_utime + used.ru_stime


def summary(name: str, samples: list[tuple[float, float]]) -> list[tuple[str, float]]:
    """Medians in seconds, by column; the spread of the processor time."""
    if not samples:
        return []
    wall, processor = np.array(samples).T
    return [
        (f"{name} wall s", float(np.median(wall))),
        (f"{name} processor s", float(np.median(processor))),
        (f"{name} processor range s", {"min": float(processor.min()), "max": float(processor.max())}),
    ]


def draw(rows: list[dict], path: Path) -> None:
    """Wall time of each task, by who does it."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    names = [name for name in COLUMNS if f"{name} wall s" in rows[0]]
    for i, name in enumerate(names):
        places = np.arange(len(rows)) + (i - (len(names) - 1) / 2) / (len(names) + 1)
        bars = axis.bar(places, [row[f"{name} wall s"] for row in rows], 1 / (len(names) + 1), label=COLUMNS[name])
        axis.bar_label(bars, fmt="%.3g", fontsize=7)
    axis.set(xticks=range(len(rows)), xticklabels=[row["task"] for row in rows], ylabel="wall time (s)")
    axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    run(tyro.cli(Options))
