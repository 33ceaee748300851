"""Bins of a cell, on the device: the atoms that may be neighbours, images included.

Atoms are sorted by their bin of the cell, and empty bins cost nothing; the candidates of an atom are the bins within
reach, each with the lattice translation S that brings it there, so that cells smaller than the cutoff need no special
case.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax import precision
from equijax.errors import InputError
from equijax.md import boxes

WIDEST_A = 10.0  # of a bin: three of 7 A to a cutoff of 21 A have half as many candidates as one
HEADROOM = 1.1  # slots and bin capacity allocated per slot needed
MAX_BINS = 1024  # along a cell vector: numbers of bins fit 32 bits
MAX_IMAGES = 10_000  # lattice translations looked at; a cell that needs more is refused
SHRINK = 0.97  # bins are sized for a cell shrunk by this factor before they must be laid out again


class Grid(NamedTuple):
    """Bins along each cell vector, how many to look at on either side, and atoms a bin holds: static."""

    bins: tuple[int, ...]
    reach: tuple[int, ...]
    capacity: int


class Candidates(NamedTuple):
    """All atoms in the bins within reach. J bins, M places a bin."""

    s: jax.Array  # [N, 3] fractional, inside the cell
    base: jax.Array  # [N, 3] whole cell vectors taken off for that
    senders: jax.Array  # [N, J, M], N where there is none
    image: jax.Array  # [N, J, 3] lattice translation of the bin
    place: jax.Array  # [N] of each atom in its bin
    overflow: jax.Array  # [] bool: a bin holds more than its M places


def lay_out(position: np.ndarray, T: np.ndarray, *, space: boxes.Space, shrink: float = SHRINK) -> Grid:
    """Bins that divide cutoff + skin where the cell is large enough, one bin and several images where it is not.

    Raises:
      InputError: a cell without volume, or one so thin that more than 10^5 images would be needed.
    """
    size = (space.cutoff + space.skin) / shrink
    width = size / math.ceil(size / WIDEST_A)
    height = boxes.heights(T).reshape(-1, 3).min(0)  # smallest of the replicas
    if not np.isfinite(height).all() or height.min() <= 0:
        raise InputError(f"box {T.tolist()}: its columns must be three cell vectors that span a volume")
    bins = [max(1, min(MAX_BINS, int(h / width))) if p else 1 for h, p in zip(height, space.periodic, strict=True)]
    images = [math.ceil(size * b / h) if p else 0 for b, h, p in zip(bins, height, space.periodic, strict=True)]
    if math.prod(2 * r + 1 for r in images) > MAX_IMAGES:
        raise InputError(
            f"box smaller than allowed: {height.round(3).tolist()} A between opposite faces against a cutoff of "
            f"{space.cutoff} A would need more than {MAX_IMAGES} images; repeat the cell"
        )
    s = position if space.fractional else position @ np.swapaxes(boxes.inverse(T), -1, -2)
    s = s.reshape(-1, *s.shape[-2:])
    flat = (np.floor((s - np.floor(s)) * bins).astype(int) % bins) @ _strides(bins)
    return Grid(tuple(bins), tuple(images), grow(max(np.unique(row, return_counts=True)[1].max() for row in flat)))


def _strides(bins: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.array([bins[1] * bins[2], bins[2], 1], np.int32)


def reach(T: jax.Array, grid: Grid) -> jax.Array:
    """[3] distance that the bins looked at cover in each direction, A; infinite where nothing is periodic."""
    images, bins = np.array(grid.reach), np.array(grid.bins)
    return jnp.where(images > 0, images * boxes.heights(T) / bins, jnp.inf)


def grow(n: float) -> int:
    """Capacity to allocate for n entries."""
    return math.ceil(n * HEADROOM) + 1


def candidates(position: jax.Array, T: jax.Array, *, grid: Grid, space: boxes.Space) -> Candidates:
    """Candidates for neighbours: all atoms in the bins within reach."""
    bins = np.array(grid.bins, np.int32)
    n = position.shape[0]
    s = boxes.fractional(position, T, space=space)
    base = jnp.where(np.array(space.periodic), jnp.floor(s), 0.0)
    s = s - base
    cell = jnp.where(np.array(space.periodic), jnp.clip((s * bins).astype(jnp.int32), 0, bins - 1), 0)
    flat = cell @ _strides(bins)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    filled = flat[order]  # bin of each atom, ascending
    place = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32) - jnp.searchsorted(filled, filled))
    offsets = np.array(list(itertools.product(*(range(-r, r + 1) for r in grid.reach))), np.int32)  # [J, 3]
    target = cell[:, None, :] + offsets
    image = jnp.floor_divide(target, bins)
    wanted = (target - image * bins) @ _strides(bins)  # [N, J]
    first, last = jnp.searchsorted(filled, wanted), jnp.searchsorted(filled, wanted, side="right")
    found = first[..., None] + jnp.arange(grid.capacity, dtype=jnp.int32)
    senders = jnp.where(found < last[..., None], order[jnp.minimum(found, n - 1)], n)  # [N, J, capacity]
    return Candidates(s, base, senders, image, place, overflow=place.max() >= grid.capacity)


@precision.exact
def closer(c: Candidates, T: jax.Array, *, space: boxes.Space, cutoff: float) -> jax.Array:
    """[N, J, capacity] candidates closer than `cutoff`, the atom itself excluded."""
    n = c.s.shape[0]
    v = c.s[:, None, None] - c.s[jnp.minimum(c.senders, n - 1)] - c.image[:, :, None]
    r2 = ((v @ T.T) ** 2).sum(-1)
    itself = (c.senders == jnp.arange(n)[:, None, None]) & ~c.image.any(-1)[:, :, None]
    return (c.senders < n) & ~itself & (r2 < cutoff**2)
