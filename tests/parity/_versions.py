"""Releases of mace-torch beside one another, and the recipes by which each writes models."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / ".cache" / "mace-torch"
DRIVER = Path(__file__).with_name("_release.py")
RELEASES = tuple(range(3, 17))  # mace-torch 0.3.3 to 0.3.16: all that the package index has


@dataclass(frozen=True)
class Recipe:
    """How a model is written: by the training command, or out of a calculator that loaded another recipe's model."""

    options: tuple[str, ...] = ()
    since: int = RELEASES[0]  # first release 0.3.x that has the options
    start: str = ""  # recipe whose model is fine-tuned, or loaded by the calculator
    calculator: str = ""  # type that the calculator is asked for; the model is saved out of it
    merge: bool = True  # whether adapters are merged before the model is saved
    dtype: str = "float64"  # coarsest type that the constants of the file went through


DENSITY = (
    "--interaction_first=RealAgnosticDensityInteractionBlock",
    "--interaction=RealAgnosticDensityResidualInteractionBlock",
    "--distance_transform=Agnesi",
    "--pair_repulsion",
    "--model=ScaleShiftMACE",
)
NONLINEAR = (  # MACE-MH-1 but for its widths
    "--interaction_first=RealAgnosticResidualNonLinearInteractionBlock",
    "--interaction=RealAgnosticResidualNonLinearInteractionBlock",
    "--edge_irreps=4x0e+4x1o",
    "--use_edge_irreps_first=True",
    "--apply_cutoff=False",
    "--use_agnostic_product=True",
    "--distance_transform=Agnesi",
    "--pair_repulsion",
    "--model=ScaleShiftMACE",
)
SPIN = {"type": "categorical", "per": "graph", "num_classes": 4, "emb_dim": 4}
EMBEDDED = (
    f"--embedding_specs={{'total_spin': {SPIN}, 'total_charge': {SPIN | {'offset': 2}}}}",
    "--use_embedding_readout=True",
    "--use_last_readout_only=True",
)
FOUNDATION = ("--E0s=foundation", "--multiheads_finetuning=False")
MULTIHEAD = ("--pt_train_file=../wide.xyz", "--E0s={13: 0.4, 28: 0.3}", "--force_mh_ft_lr=True")
ADDED = {  # options that earlier releases than 0.3.x run without
    "--multiheads_finetuning=False": 7,  # before, fine-tuning had one head only
    "--force_mh_ft_lr=True": 9,  # before, the learning rate was what --lr said
    "--plot=False": 11,
    "--use_edge_irreps_first=True": 16,
}
HEADS = {head: {"train_file": f"../{head}.xyz", "E0s": "{13: -0.1, 28: -0.2, 29: -0.3}"} for head in ("wide", "narrow")}
RECIPES = {
    "defaults": Recipe(),
    "float32": Recipe(("--model=ScaleShiftMACE", "--default_dtype=float32"), dtype="float32"),
    "save_cpu": Recipe(("--save_cpu", "--model=ScaleShiftMACE")),
    "two_stages": Recipe(("--swa", "--start_swa=2", "--max_num_epochs=4", "--ema")),
    "transform": Recipe(("--distance_transform=Agnesi", "--pair_repulsion"), since=5),
    "density": Recipe(DENSITY, since=7),
    "reduced": Recipe((*DENSITY, "--use_reduced_cg=True"), since=14),
    "heads": Recipe((f"--heads={HEADS}",), since=7),
    "nonlinear": Recipe(NONLINEAR, since=14),
    "embedded": Recipe((*NONLINEAR, *EMBEDDED), since=14),
    "foundation": Recipe(FOUNDATION, since=5, start="transform"),
    "foundation_density": Recipe(FOUNDATION, since=7, start="density"),
    "all_elements": Recipe((*FOUNDATION, "--foundation_model_elements=True"), since=10, start="density"),
    "multihead": Recipe(MULTIHEAD, since=7, start="density"),
    "lora": Recipe((*FOUNDATION, "--lora=True", "--lora_rank=2"), since=15, start="density"),
    "lora_multihead": Recipe((*MULTIHEAD, "--lora=True"), since=15, start="density"),
    "adapters": Recipe((*FOUNDATION, "--lora=True", "--lora_rank=2"), since=15, start="density", merge=False),
    "calculator": Recipe(start="defaults", calculator="float64"),
    "calculator_widened": Recipe(start="float32", calculator="float64", dtype="float32"),
    "calculator_narrowed": Recipe(start="defaults", calculator="float32", dtype="float32"),
}
COMMON = (
    "--name=made --seed=1 --r_max=4.0 --num_radial_basis=4 --max_ell=2 --hidden_irreps=8x0e+8x1o --radial_MLP=[8,8,8] "
    "--MLP_irreps=4x0e --energy_key=REF_energy --forces_key=REF_forces --stress_key=REF_stress --valid_fraction=0.2 "
    "--batch_size=2 --valid_batch_size=2 --max_num_epochs=2 --eval_interval=1 --device=cpu "
    "--lr=0.1 --plot=False"
).split()


def recipes_of(release: int) -> list[str]:
    """Names of the recipes that mace-torch 0.3.`release` has the options for."""
    return [name for name, recipe in RECIPES.items() if recipe.since <= release]


def packages(release: int, names: set[str]) -> list[Path]:
    """Folders to import mace-torch 0.3.`release` from, and what the recipes `names` need beside it.

    Raises:
      ConnectionError: one is not there and cannot be downloaded.
    """
    wanted = [f"mace-torch==0.3.{release}"]
    if "reduced" in names:  # without it the releases take --use_reduced_cg and ignore it
        wanted.append(f"cuequivariance-torch=={version('cuequivariance')}")
    return [install(requirement) for requirement in wanted]


def install(requirement: str) -> Path:
    """Folder with one package alone, without its dependencies; downloaded once."""
    folder = PACKAGES / requirement
    if not folder.is_dir():
        beside = folder.with_name(f".{requirement}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
        done = subprocess.run([*command, "--target", str(beside), requirement], capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(beside, ignore_errors=True)
            raise ConnectionError(f"{requirement} is not in {PACKAGES} and pip failed: {done.stderr[-300:]}")
        beside.replace(folder)
    return folder


def structures(elements: tuple[str, ...], count: int, seed: int) -> list[Atoms]:
    """Rattled fcc cells of four atoms, of mixed elements."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        atoms = bulk("Cu", "fcc", a=rng.uniform(3.7, 4.1), cubic=True)
        atoms.symbols = rng.permutation(np.resize(rng.permutation(elements), len(atoms)))
        atoms.positions += rng.normal(scale=0.1, size=(len(atoms), 3))
        images.append(atoms)
    return images


def compared_structures() -> list[Atoms]:
    """What every model is compared on: crystals and a molecule of the elements that every recipe has."""
    molecule = Atoms("NiAl2", [[0, 0, 0], [2.3, 0, 0.1], [0.4, 2.5, 0]])
    return [*structures(("Al", "Ni"), 2, seed=3), molecule]


def write_models(release: int, names: list[str], folder: Path) -> None:
    """Let mace-torch 0.3.`release` write and evaluate the models of the recipes `names`, each in its folder.

    Recipes that others start from are made as well.

    Raises:
      ConnectionError: a package is missing, see `packages`.
      RuntimeError: the process of that release ended before its recipes did.
    """
    for name, elements, seed in (("wide", ("Al", "Ni", "Cu"), 1), ("narrow", ("Al", "Ni"), 2)):
        images = structures(elements, 12, seed)
        for atoms in images:
            atoms.calc = EMT()
            atoms.info |= {"REF_energy": atoms.get_potential_energy(), "REF_stress": atoms.get_stress()}
            atoms.arrays["REF_forces"] = atoms.get_forces()
            atoms.calc = None
        write(folder / f"{name}.xyz", images, format="extxyz")
    write(folder / "test.xyz", compared_structures(), format="extxyz")
    wanted = {name for n in names for name in (n, RECIPES[n].start, RECIPES[RECIPES[n].start or n].start)} - {""}
    job = {
        "structures": str(folder / "test.xyz"),
        "recipes": [{"name": name, **_task(RECIPES[name], release, folder)} for name in RECIPES if name in wanted],
    }
    (folder / "job.json").write_text(json.dumps(job))
    path = os.pathsep.join(str(p) for p in packages(release, wanted))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(DRIVER), "job.json"]
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        end = (folder / "log.txt").read_text()[-2000:]
        raise RuntimeError(f"mace-torch 0.3.{release} ended with status {done.returncode}: {end}")


def _task(recipe: Recipe, release: int, folder: Path) -> dict:
    """The recipe as the driver takes it."""
    start = str(folder / recipe.start / "made.model")
    if recipe.calculator:
        return {"calculator": [start, recipe.calculator]}
    options = [*COMMON, f"--train_file=../{'narrow' if recipe.start else 'wide'}.xyz", *recipe.options]
    options = [option for option in options if ADDED.get(option, 0) <= release]
    if recipe.start:
        options.append(f"--foundation_model={start}")
    elif not any(option.startswith("--heads") for option in options):
        options.append("--E0s={13: -0.1, 28: -0.2, 29: -0.3}")
    return {"argv": options, "merge": recipe.merge}
