"""Fine-tune on ten structures of silicon with low-rank adapters, for two epochs; what was learnt and forgotten."""

import json
from importlib import resources
from pathlib import Path

import equijax
from equijax.adapters import files
from equijax.finetune import run
from equijax.finetune.options import FinetuneConfig, resolve

assets = Path(str(resources.files("equijax") / "assets"))
options = FinetuneConfig(
    model=Path("model"),
    train=(assets / "Si-dia_train.extxyz",),
    valid=(assets / "Si-dia_valid.extxyz",),
    test=(assets / "Si-dia_test.extxyz",),
    out=Path("tuned"),
    epochs=2,  # enough to see it work; 12 by default
)
run.run(resolve(options))  # what `python -m equijax.finetune` does

print(*sorted(p.name for p in Path("tuned").iterdir()))
print("adapter:", json.dumps(files.info("tuned/adapter"), default=str)[:300])

# the result is a model directory like any other; the adapter alone turns the old model into it
tuned = equijax.load("tuned/best")
switched = files.attach(equijax.load("model"), "tuned/adapter")
print(type(tuned).__name__, tuned.config == switched.config)
