"""Cells as JAX-MD has them: columns are the cell vectors (the transpose of ASE's rows), r = T s with s fractional."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax import precision

Array = np.ndarray | jax.Array


class Space(NamedTuple):
    """Where atoms live: fractional or real coordinates, which directions are periodic, cutoff and skin in A."""

    fractional: bool
    periodic: tuple[bool, bool, bool]
    cutoff: float
    skin: float
    near: float | None = None  # A, r_max of a model whose cutoff is that of its dispersion


def inverse(T: Array) -> Array:
    """Inverse of [..., 3, 3] by cross products: a solver call would cost more than a step of a small model."""
    xp = jnp if isinstance(T, jax.Array) else np
    a, b, c = T[..., :, 0], T[..., :, 1], T[..., :, 2]
    rows = xp.stack([xp.cross(b, c), xp.cross(c, a), xp.cross(a, b)], axis=-2)
    return rows / (a * rows[..., 0, :]).sum(-1)[..., None, None]


def heights(T: Array) -> Array:
    """[..., 3] distances between opposite faces of the cell with column vectors T, in A."""
    return 1.0 / ((inverse(T) ** 2).sum(-1)) ** 0.5


@precision.exact
def fractional(position: jax.Array, T: jax.Array, *, space: Space) -> jax.Array:
    """Fractional coordinates [N, 3]."""
    return position if space.fractional else position @ inverse(T).T


def unwrap(s: jax.Array, s_ref: jax.Array, *, space: Space) -> jax.Array:
    """Undo the jumps by whole cell vectors since `s_ref`, [N, 3]: shift functions may wrap atoms into the cell."""
    return s - jnp.where(np.array(space.periodic), jnp.round(s - s_ref), 0.0)
