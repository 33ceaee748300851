"""How float32 matrices are multiplied: in full float32 everywhere, unless the user asks JAX for less in the model.

Left alone, XLA rounds float32 factors to TF32 (10 bits) on recent NVIDIA GPUs and to bfloat16 (7 bits) on TPUs, which
leaves forces about three digits. Derivatives inherit the precision of the product they differentiate.

Opt in for the model, per program or for a whole process:

    with jax.default_matmul_precision("tensorfloat32"): ...
    JAX_DEFAULT_MATMUL_PRECISION=tensorfloat32 python ...

Positions, cells and neighbour lists are never rounded: an error of 2^-11 of a cell vector is not a small one.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

P = ParamSpec("P")
R = TypeVar("R")
FULL = "highest"


def of_model() -> str:
    """Precision of the model's products: `jax_default_matmul_precision` where it is set, "highest" where it is not."""
    return str(jax.config.jax_default_matmul_precision or FULL)


def require(dtype: DTypeLike) -> None:
    """Refuse to compute in a dtype that JAX would silently lower.

    Raises:
      ValueError: float64 where JAX keeps to 32 bits.
    """
    if jnp.dtype(dtype) == jnp.float64 and not jax.config.jax_enable_x64:
        raise ValueError("float64 needs `with jax.enable_x64(True):` around this call: JAX would compute in float32")


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: products inside are full float32, whatever the user chose (geometry)."""
    return jax.default_matmul_precision(FULL)(function)


def chosen(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: products inside have the precision `of_model` (the network)."""

    @wraps(function)
    def with_precision(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision(of_model()):
            return function(*args, **kwargs)

    return with_precision
