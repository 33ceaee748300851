"""What strategies train, and where they start."""

import dataclasses

import jax
import numpy as np

from equijax.finetune import strategies
from equijax.finetune.defaults import resolve
from equijax.finetune.options import FinetuneOptions


def test_naive_and_scratch_start_where_they_should(student):
    options = FinetuneOptions(model="m", train=("t",), out="o", strategy="naive", seed=1)
    for strategy, same in (("naive", True), ("scratch", False)):
        resolved = resolve(dataclasses.replace(options, strategy=strategy))
        trained = strategies.trainable(resolved, student.config, variables=student.variables, numbers=[11, 17])
        pairs = zip(jax.tree.leaves(trained.start), jax.tree.leaves(student.variables["params"]), strict=True)
        assert all(np.array_equal(a, b.astype("float32")) for a, b in pairs) == same
