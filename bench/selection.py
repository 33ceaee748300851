"""Do chosen structures teach more than random ones? Fine-tuning on a few, chosen by each way of `equijax.select`.

    python bench/selection.py [--data DIR] [--tasks real taught] [--materials Si-dia ...] [--ways farthest ...]

real: the pool is what is labelled, NAME_train and NAME_valid; some train, NAME_test and NAME_phonopy.yaml judge.
taught: the bundled model, all its parameters fine-tuned on all labels of a material, plays DFT. It labels a pool of
rattled and strained structures and frames of dynamics, of which ten train; others judge.
"uncertainty" begins with half of the structures by farthest points, trains a committee on them, and takes the others
where it disagrees most. Random draws are repeated. Rows already in the result file are kept and not run again.
"""

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import _common as common
import ase
import ase.io
import jax
import numpy as np
import strategies
import tyro
from ase import units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from equijax import data
from equijax.adapters import committee as committees
from equijax.config import Compute
from equijax.data.options import RattleConfig
from equijax.data.rattle import make_supercell, rattled
from equijax.finetune import candidates, committee, setup
from equijax.finetune.defaults import resolve
from equijax.finetune.options import SelectConfig, nested
from equijax.finetune.run import set_errors
from equijax.forcefield import ForceField

COUNT = {"real": 5, "taught": 10}
POOL, JUDGES = 120, 40  # structures that the teacher labels
RATTLES, STRAIN = (0.01, 0.03, 0.06, 0.1, 0.15), 0.04  # A
DYNAMICS_K, EVERY = (300.0, 900.0), 15  # steps of 2 fs between frames
MEMBERS = 8


@dataclass(frozen=True)
class SelectionConfig:
    """Compare ways to choose structures."""

    data: Path = strategies.ASSETS
    """Folder with NAME_train, _valid, _test, _relaxed.extxyz and NAME_phonopy.yaml."""
    model: Path | None = None
    """Starting checkpoint; the bundled model by default."""
    tasks: tuple[Literal["real", "taught"], ...] = ("real", "taught")
    """What to compare on."""
    materials: tuple[str, ...] = ()
    """Names; all in --data by default."""
    ways: tuple[str, ...] = ("random", "farthest", "gradients", "uncertainty")
    """How to choose."""
    draws: int = 3
    """Random choices."""
    epochs: int = 12
    """Passes over the chosen structures."""
    name: str = "selection"
    """Of the result file."""


def main() -> None:
    """Run what is missing from the result file and print the table."""
    options = tyro.cli(SelectionConfig)
    file = common.RESULTS / f"{options.name}-{jax.default_backend()}.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    folder = Path(tempfile.mkdtemp())
    try:
        model = strategies.starting_model(options.model, folder)
        for task, material in cases(options, rows):
            files = pool(options, model, folder=folder / f"{task}-{material}", task=task, material=material)
            for way, seed in missing(options, rows, task=task, material=material):
                rows.append(run(options, files, task=task, material=material, way=way, seed=seed))
                print(json.dumps(rows[-1]), flush=True)
                common.write(options.name, rows, count=COUNT, pool=POOL, judges=JUDGES)
            jax.clear_caches()  # XLA on CPU runs out of memory maps
    finally:
        shutil.rmtree(folder)
    print(table(rows))


def cases(options: SelectionConfig, rows: list[dict]) -> Iterator[tuple[str, str]]:
    """(task, material) with something missing."""
    found = sorted(p.name.removesuffix("_train.extxyz") for p in options.data.glob("*_train.extxyz"))
    for task in options.tasks:
        for material in options.materials or found:
            if list(missing(options, rows, task=task, material=material)):
                yield task, material


def missing(options: SelectionConfig, rows: list[dict], *, task: str, material: str) -> list[tuple[str, int]]:
    """(way, seed) without a row."""
    done = {(r["task"], r["material"], r["way"], r["seed"]) for r in rows}
    wanted = [(way, seed) for way in options.ways for seed in range(options.draws if way == "random" else 1)]
    return [(way, seed) for way, seed in wanted if (task, material, way, seed) not in done]


def pool(options: SelectionConfig, model: Path, *, folder: Path, task: str, material: str) -> dict[str, Path]:
    """Files: "model", "pool" and "test", labelled, and for real data "phonons"."""
    folder.mkdir()
    given = {k: options.data / f"{material}_{k}.extxyz" for k in ("train", "valid", "test", "relaxed")}
    files = {"model": model, "pool": folder / "pool.extxyz", "test": given["test"]}
    if task == "real":
        frames = [a for k in ("train", "valid") for a in ase.io.read(given[k], ":")]
        ase.io.write(files["pool"], frames)
        return files | {"phonons": options.data / f"{material}_phonopy.yaml"}
    teacher = taught(model, [given[k] for k in ("train", "valid", "test")], epochs=options.epochs)
    start = data_start(ase.io.read(given["relaxed"]), teacher)
    for name, number, seed in (("pool", POOL, 0), ("test", JUDGES, 1)):
        files[name] = folder / f"{name}.extxyz"
        ase.io.write(files[name], labelled(teacher, structures(start, teacher, number=number, seed=seed)))
    return files


def taught(model: Path, paths: list[Path], *, epochs: int) -> ForceField:
    """The teacher: all parameters trained on all there is."""
    recipe = nested(
        {"model": model, "train": tuple(paths), "valid": tuple(paths), "strategy": "naive", "epochs": epochs}
        | {"out": Path("never-written"), "evaluate_every": strategies.EVALUATE_EVERY}
    )
    made = setup.begin(resolve(recipe))
    return made.model(strategies.fit(made, np.inf)[0])


def data_start(relaxed: ase.Atoms, teacher: ForceField) -> ase.Atoms:
    """A supercell at rest, by the teacher."""
    (found,) = teacher.relax([relaxed], fmax=1e-3, cell=True)
    return make_supercell(found.atoms, None, min_length=8.0)


def structures(start: ase.Atoms, teacher: ForceField, *, number: int, seed: int) -> list[ase.Atoms]:
    """Two thirds rattled and strained, one third frames of dynamics at each temperature in turn."""
    few = number // 3
    config = RattleConfig(
        Path(), Path(), candidates=number - few, rattle=RATTLES, strain=STRAIN, seed=seed, number=1, min_distance=0.6
    )
    return [atoms for atoms, _ in rattled(start, config)] + dynamics(start, teacher, number=few, seed=seed)


def dynamics(start: ase.Atoms, teacher: ForceField, *, number: int, seed: int) -> list[ase.Atoms]:
    """Frames of Langevin dynamics."""
    frames: list[ase.Atoms] = []
    for kelvin in DYNAMICS_K:
        atoms, rng = start.copy(), np.random.default_rng([seed, int(kelvin)])
        atoms.calc = teacher.calculator("float32")
        thermalize_momenta(atoms, 2 * kelvin, rng=rng)
        move = Langevin(atoms, 2 * units.fs, temperature_K=kelvin, friction=0.02 / units.fs, rng=rng)
        for _ in range(number // len(DYNAMICS_K)):
            move.run(EVERY)
            frames.append(ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True))
    return frames


def labelled(teacher: ForceField, images: list[ase.Atoms]) -> list[ase.Atoms]:
    """With the teacher's energies, forces and stresses."""
    found = zip(images, teacher.evaluate(images), strict=True)
    return [data.to_atoms(data.Labelled(atoms, f.energy, f.forces, f.stress)) for atoms, f in found]


def run(options: SelectionConfig, files: dict, *, task: str, material: str, way: str, seed: int) -> dict:
    """Choose, fine-tune on what was chosen, judge."""
    started, frames = time.perf_counter(), ase.io.read(files["pool"], ":")
    with tempfile.TemporaryDirectory() as scratch:
        chosen = choose(options, files, frames=frames, count=COUNT[task], way=way, seed=seed, folder=Path(scratch))
        made = begin(options, files, [frames[i] for i in chosen], folder=Path(scratch))
        variables, _ = strategies.fit(made, np.inf)
    errors = set_errors(made, variables, graphs={"test": made.graphs["test"]})["test"]
    row = {"task": task, "material": material, "way": way, "seed": seed, "chosen": chosen}
    row |= {k: getattr(errors, k) for k in ("energy_mae", "forces_mae", "forces_rmse", "stress_mae")}
    if "phonons" in files:
        row["frequency_mae"] = strategies.assessed(made, variables, when="after")["frequency_mae_after"]
    return row | {"seconds": time.perf_counter() - started}


def begin(options: SelectionConfig, files: dict, frames: list[ase.Atoms], *, folder: Path, members: int = 0):
    """A run on some frames, which also say which pass was best."""
    ase.io.write(folder / "train.extxyz", frames)
    paths = {"train": (folder / "train.extxyz",), "valid": (folder / "train.extxyz",), "test": (files["test"],)}
    same = {"model": files["model"], "epochs": options.epochs, "evaluate_every": strategies.EVALUATE_EVERY}
    more = {"phonons": (files["phonons"],)} if "phonons" in files else {}
    return setup.begin(resolve(nested({"out": Path("never-written"), "committee": members} | same | paths | more)))


def choose(
    options: SelectionConfig, files: dict, *, frames: list[ase.Atoms], count: int, way: str, seed: int, folder: Path
) -> list[int]:
    """Indices of what is chosen."""
    select = SelectConfig((), files["model"], by=way, count=count, seed=seed)
    ff = committees.load_any(files["model"])
    if way != "uncertainty":
        return [int(i) for i in candidates.WAYS[way](ff, frames, [], select)[0]]
    first = candidates.by_farthest(ff, frames, [], dataclasses.replace(select, count=count // 2))[0]
    made = begin(options, files, [frames[i] for i in first], folder=folder, members=MEMBERS)
    trained = committee.train(made, np.inf)
    together = committees.gather(made.ff, trained.adapters, energies=made.energies)
    spread = [np.sqrt(f.forces.var(0).mean()) for f in together.evaluate_members(frames, compute=Compute("float32"))]
    order = [int(i) for i in np.argsort(-np.array(spread)) if i not in first]
    return [int(i) for i in first] + order[: count - len(first)]


def table(rows: list[dict]) -> str:
    """Errors relative to the mean of the random draws, as a Markdown table."""
    lines = ["| task | material | way | forces, meV/A | of random | phonons, THz | of random |", "| --- " * 7 + "|"]
    for task, material in dict.fromkeys((r["task"], r["material"]) for r in rows):
        some = [r for r in rows if (r["task"], r["material"]) == (task, material)]
        drawn = [r for r in some if r["way"] == "random"]
        for way in dict.fromkeys(r["way"] for r in some):
            own, cells = [r for r in some if r["way"] == way], []
            for key, factor in (("forces_mae", 1e3), ("frequency_mae", 1.0)):
                if key not in some[0]:
                    cells += ["-", "-"]
                    continue
                value = np.mean([r[key] for r in own])
                reference = np.mean([r[key] for r in drawn]) if drawn else np.nan
                low, high = (f(r[key] for r in own) for f in (min, max))
                among = f" ({factor * low:.3g} to {factor * high:.3g})" if len(own) > 1 else ""
                cells += [f"{factor * value:.3g}{among}", f"{value / reference:.2f}"]
            lines.append(f"| {task} | {material} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
