"""How long does one call of an ASE calculator take for the smallest structures, 1 to 8 atoms, where overheads count?

Each call moves all atoms a little and asks for forces, as dynamics and relaxations do; float64. Ours, ours specialised
for the elements (`fast`) and mace-torch's take turns in blocks of calls. Wall and processor time (all threads) a call.

    python bench/calls.py [--models mini published] [--blocks 7] [--calls 30]
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path

import _common as common
import numpy as np
import peers
import tyro
from ase import Atoms
from ase.build import bulk

import equijax
from equijax import testing

STRUCTURES = {
    1: bulk("Cu", "fcc", a=3.61),
    2: bulk("MgO", "rocksalt", a=4.25),
    3: Atoms("OMgO", [[-1.8, 0, 0], [0, 0, 0], [1.8, 0, 0]]),
    4: bulk("Cu", "fcc", a=3.61, cubic=True),
    8: bulk("MgO", "rocksalt", a=4.25, cubic=True),
}
MODELS = ("mini", "published")  # bundled with equijax; the shape of MACE-MP-0b3 with random weights


@dataclass(frozen=True)
class Options:
    """Time calls of calculators."""

    models: tuple[str, ...] = MODELS
    """Which models."""
    blocks: int = 7
    """Blocks of calls of each; the median of their means counts."""
    calls: int = 30
    """Calls in a block."""


def calculators(model: str, folder: Path) -> dict[str, Callable]:
    """Functions that make a calculator of the model: of ours, and of mace-torch where that is installed."""
    peer = util.find_spec("mace") is not None
    if model == "mini":
        path = str(resources.files("equijax") / "assets" / "mini.model")
        subprocess.run([sys.executable, "-m", "convert", path, str(folder / "mini")], check=True)
        ff = equijax.load(folder / "mini")
    else:
        config, path = common.published_config(), str(folder / "published.model")
        ff = testing.random_forcefield(config)
        if peer:
            import torch

            torch.save(peers.torch_model(config).double(), path)

    def mace_torch():
        from mace.calculators import MACECalculator

        return MACECalculator(model_paths=path, device="cpu", default_dtype="float64")

    made: dict[str, Callable] = {"equijax": ff.calculator, "fast": lambda: ff.calculator(fast=True)}
    return made | {"mace-torch": mace_torch} if peer else made


def block(atoms: Atoms, calls: int, rng: np.random.Generator) -> tuple[float, float]:
    """Milliseconds of wall and of processor time a call."""
    moves = rng.normal(0, 0.003, (calls, *atoms.positions.shape))
    wall, processor = time.perf_counter(), time.process_time()
    for move in moves:
        atoms.positions += move
        atoms.get_forces()
    return 1e3 * (time.perf_counter() - wall) / calls, 1e3 * (time.process_time() - processor) / calls


def row(start: Atoms, makers: dict[str, Callable], options: Options) -> dict:
    """Times of one structure, the calculators taking turns."""
    copies, rng = {}, np.random.default_rng(0)
    for name, make in makers.items():
        copies[name] = start.copy()
        copies[name].calc = make()
        block(copies[name], 3, rng)  # compiles
    samples: dict[str, list] = {name: [] for name in copies}
    for _ in range(options.blocks):
        for name, atoms in copies.items():
            atoms.positions = start.positions
            samples[name].append(block(atoms, options.calls, rng))
    found: dict = {}
    for name, pairs in samples.items():
        for kind, ms in zip(("wall ms", "processor ms"), np.transpose(pairs), strict=True):
            found[f"{name} {kind}"] = float(np.median(ms))
            found[f"{name} {kind} range"] = {"min": ms.min(), "max": ms.max()}
    return found


def run(options: Options) -> None:
    """Time everything, print the table and write bench/results/calls-cpu.json."""
    rows = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            makers = calculators(model, Path(folder))
            for count, atoms in STRUCTURES.items():
                rows.append({"model": model, "atoms": count, **row(atoms, makers, options)})
                common.print_table(rows[-1:])
    common.print_table(rows)
    common.write("calls", rows, blocks=options.blocks, calls=options.calls)


if __name__ == "__main__":
    run(tyro.cli(Options))
