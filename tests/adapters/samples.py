"""Adapters with random numbers in them."""

import jax
import numpy as np

from equijax.adapters import lora

ROWS = (0, 2)  # Na and Cl


def trained(base, rank: int | float = 1, seed: int = 0, rows=ROWS, scale: float = 0.1) -> lora.Adapters:
    """Adapters with random numbers in place of every zero."""
    start = lora.init_lora(base.variables["params"], rank, alpha=2.0, rows=rows)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), start)
