"""Run inside one release of mace-torch: train by its own command, then compute energies and forces by its calculator.

    PYTHONPATH=FOLDER_OF_THE_RELEASE python _release.py JOB.json

The job is a list of recipes, done in order in folders of their own, so that a later one can start from a model of an
earlier one. Each leaves `done.json` with its files, or `failed.txt` with the traceback.
"""

import json
import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from ase.io import read

# Whole modules are what these releases save and load; torch 2.6 made weights_only=True the default after most of them.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
torch.set_num_threads(1)


def train(argv: list[str], merge: bool) -> list[Path]:
    """The models that the training command of this release writes to the working directory.

    Without `merge`, adapters stay in the model, as they do when it is saved while it trains.
    """
    from mace.cli import run_train

    # From 0.3.5 on the command also tries to write a TorchScript copy: slow, and no file that is converted.
    run_train.jit = None
    sys.argv = ["mace_run_train", *argv]
    with nullcontext() if merge else patch.object(run_train, "merge_lora_weights"):
        run_train.main()
    return sorted(Path().glob("*.model"))


def save_from_calculator(source: str, dtype: str) -> list[Path]:
    """The model that a calculator of this release holds after loading `source`, saved as users save it."""
    from mace.calculators import MACECalculator

    calculator = MACECalculator(model_paths=source, device="cpu", default_dtype=dtype)
    torch.save(calculator.models[0], "calculator.model")
    return [Path("calculator.model")]


def evaluate(path: Path, structures: str) -> None:
    """Write energies [eV], forces [eV/A] and stresses of crystals [eV/A^3] of every head to a .npz beside the model."""
    from mace.calculators import MACECalculator

    images = read(structures, ":")
    heads = getattr(torch.load(path, map_location="cpu"), "heads", None) or ["Default"]
    numbers = {}
    for i, head in enumerate(heads):
        calculator = MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64", head=head)
        for atoms in images:
            atoms.info["head"] = head  # 0.3.7 to 0.3.12 take the head from here and ignore the argument
            atoms.calc = calculator
        numbers[f"energy{i}"] = np.array([atoms.get_potential_energy() for atoms in images])
        numbers[f"forces{i}"] = np.concatenate([atoms.get_forces() for atoms in images])
        numbers[f"stress{i}"] = np.array([atoms.get_stress(voigt=False) for atoms in images if atoms.pbc.all()])
    np.savez(path.with_suffix(".npz"), heads=heads, **numbers)


def main(job: dict) -> None:
    root = Path.cwd()
    for recipe in job["recipes"]:
        folder = root / recipe["name"]
        folder.mkdir()
        os.chdir(folder)
        try:
            torch.set_default_dtype(torch.float32)  # what a new process starts with; the command before changed it
            if "calculator" in recipe:
                files = save_from_calculator(*recipe["calculator"])
            else:
                files = train(recipe["argv"], recipe["merge"])
            for path in files:
                evaluate(path, job["structures"])
            Path("done.json").write_text(json.dumps([str(path) for path in files]))
        except (Exception, SystemExit):  # reported by the test of this recipe; the others go on
            Path("failed.txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
