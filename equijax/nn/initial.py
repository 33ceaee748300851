"""Random weights, distributed as mace-torch draws them before training."""

import re
from collections.abc import Callable

import numpy as np

from equijax.nn.nonlinear import ALPHA

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def draw(rng: np.random.Generator, path: str, *, shape: tuple[int, ...]) -> np.ndarray:
    """Values of the parameter at a '/'-joined path, float64."""
    return next(rule for pattern, rule in _RULES if re.fullmatch(pattern, path))(rng, shape)


def _torch_linear(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Of a torch.nn.Linear whose weights are [out, in]; a bias as if it had as many inputs as it has entries."""
    return rng.uniform(-1, 1, size=shape) / shape[-1] ** 0.5


# the first pattern that matches the whole path counts
_RULES: tuple[tuple[str, Draw], ...] = (
    # weights of a contraction are divided by the number of its paths
    (r".*_nu\d+", lambda rng, shape: rng.normal(size=shape) / shape[1]),
    (r".*/edges/(source|target)", lambda rng, shape: rng.uniform(-1e-3, 1e-3, size=shape)),
    (r".*/edges/.*/scale\d+", lambda rng, shape: np.ones(shape)),
    (r".*/edges/.*/offset\d+", lambda rng, shape: np.zeros(shape)),
    (r".*/edges/.*|joint_embedding/(?!.*_table).*", _torch_linear),
    (r".*/alpha", lambda rng, shape: np.full(shape, ALPHA)),
    (r".*/beta|readouts_\d+/bias_\w+", lambda rng, shape: np.zeros(shape)),
    (r".*", lambda rng, shape: rng.normal(size=shape)),
)
