"""Fine-tune on ten structures of silicon with low-rank adapters, for two epochs; the adapter alone does the same."""

import shutil
from importlib import resources
from pathlib import Path

import numpy as np
from ase.build import bulk

import equijax
from equijax.adapters import files
from equijax.programs.finetune import main as finetune

Path("data").mkdir(exist_ok=True)
for name in ("train", "valid", "test"):
    source = resources.files("equijax") / "assets" / f"Si-dia_{name}.extxyz"
    shutil.copy(str(source), f"data/{name}.extxyz")

# what `python -m equijax.finetune --model model ...` does; two epochs are enough to see it work, 12 are the default
data = ["--train", "data/train.extxyz", "--valid", "data/valid.extxyz", "--test", "data/test.extxyz"]
status = finetune(["--model", "model", *data, "--out", "tuned", "--epochs", "2"])
assert status == 0, "the lines above say why"

# the result is a model directory like any other; the adapter alone turns the old model into it
tuned = equijax.load("tuned/best")
switched = files.attach(equijax.load("model"), "tuned/adapter")
crystal = [bulk("Si", "diamond", a=5.5)]
energies = [ff.evaluate(crystal)[0].energy for ff in (equijax.load("model"), tuned, switched)]
print("before, tuned, with the adapter:", np.round(energies, 4), "eV")
