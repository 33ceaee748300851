"""The C++ kernels that a model will ask for, compiled on other cores while one traces the program that calls them."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from equijax.config import ModelConfig
from equijax.kernels import convolution, polynomial
from equijax.nn.convolution import kernel_platform, paths


def start(config: ModelConfig, dtype: str, *, terms: int = 0) -> None:
    """Begin to compile what is not in the cache yet.

    What goes wrong there goes wrong again, and is said, where the kernel is needed.

    Args:
      config: of the model.
      dtype: of the computation.
      terms: rows of a table that each radial function is a sum of; 0: radial functions are arrays.
    """
    if kernel_platform(config.channels, dtype) != "cpu":
        return
    steps = range(0 if terms else 1, config.num_interactions)  # without tables the first sums over species
    shapes = {(tuple(map(tuple, paths(config, t))), config.edge_width(t)) for t in steps}
    pool = ThreadPoolExecutor(os.cpu_count())
    for some, width in sorted(shapes):
        pool.submit(partial(convolution.target, some, terms, width, dtype))
    variables = (config.max_ell + 1) ** 2
    pool.submit(partial(polynomial.target, max(config.correlation), variables, config.channels, dtype))
    pool.shutdown(wait=False)
