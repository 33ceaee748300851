"""Periodic neighbour list on the device: any cell, images included, symmetric, regular as in `equijax.graph`.

Row n of the list holds the neighbours of receiver n, found in `equijax.md.bins`; `reverse` is the slot of the same pair
seen from the sender. A list holds all pairs up to cutoff + skin and serves until atoms or cell have moved too far for
that to cover the cutoff; each step keeps the slots within the cutoff (`within`), so the model never pays for the skin.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from equijax import precision
from equijax.md import bins, boxes

REBUILD = 0.7  # part of the skin that may be used up before the list is built again
THERMAL = 0.2  # A along each axis: twice the thermal displacement of an atom at room temperature
SHRINK_AGAIN = 0.85  # the same after an overflow, which a fast shrinking cell may have caused


@flax.struct.dataclass
class NeighborList:
    """Neighbours within cutoff + skin of the reference positions. L is the number of slots a row."""

    senders: jax.Array  # [N, L] int32, the receiver itself where unused
    shifts: jax.Array  # [N, L, 3] int32: the sender sits at s_ref + shift (fractional)
    mask: jax.Array  # [N, L] slot in use
    reverse: jax.Array  # [N * L] int32, the slot of the same pair in the sender's row
    reference_position: jax.Array  # [N, 3] as given (fractional or real), where the list was built
    reference_box: jax.Array  # [3, 3]
    did_buffer_overflow: jax.Array  # [] bool: a row, a bin or the bins' reach was too small; the list is incomplete
    outran: jax.Array  # [] bool: at some update the positions had left the region the list covered
    slots: int = flax.struct.field(pytree_node=False)  # K, slots a row within the cutoff itself
    near: int = flax.struct.field(pytree_node=False)  # K', of these the first, that hold all within `Space.near`
    grid: bins.Grid = flax.struct.field(pytree_node=False)
    update_fn: Callable = flax.struct.field(pytree_node=False)

    def update(self, position: jax.Array, **kwargs: Any) -> "NeighborList":
        """The list for new positions (and `box`), built again only when the old one no longer covers the cutoff."""
        return self.update_fn(position, self, **kwargs)

    @property
    def idx(self) -> jax.Array:
        """[N, L] senders, N where unused: the Dense format of jax_md.partition."""
        return jnp.where(self.mask, self.senders, self.senders.shape[0])


class NeighborFns(NamedTuple):
    """`allocate(position, box=..., at_least=...)` chooses sizes on the host; `update` is jit-compatible."""

    allocate: Callable
    update: Callable


def neighbor_list(box: npt.ArrayLike, space: boxes.Space) -> NeighborFns:
    """Neighbour list functions with the interface of jax_md's; positions may be [N, 3] or, for replicas, [B, N, 3].

    Args:
      box: [3, 3] default cell, columns are vectors, A.
      space: see `Space`.
    """
    default = np.asarray(box)

    def cell(position: jax.Array, box: npt.ArrayLike | None) -> jax.Array:
        T = jnp.asarray(default if box is None else box).astype(position.dtype)
        return jnp.broadcast_to(T, (*position.shape[:-2], 3, 3))

    def allocate(
        position: jax.Array, box: npt.ArrayLike | None = None, at_least: NeighborList | None = None, **unused: Any
    ) -> NeighborList:
        """A fresh list; with `at_least`, larger in every capacity than that (overflowed) one."""
        position = jnp.asarray(position)
        T = cell(position, box)
        shrink = bins.SHRINK if at_least is None else SHRINK_AGAIN
        both, cells = _and_shaken(np.asarray(position), np.asarray(T), space=space)
        grid = bins.lay_out(both, cells, space=space, shrink=shrink)
        outer, slots, near = (bins.grow(n) for n in np.asarray(_largest_rows(both, cells, grid=grid, space=space)))
        if at_least is not None:
            outer = max(outer, bins.grow(1.4 * at_least.senders.shape[-1]))  # a shrinking cell gains a shell at once
            slots = max(slots, bins.grow(1.4 * at_least.slots))
            near = max(near, bins.grow(1.4 * at_least.near))
            grid = grid._replace(capacity=max(grid.capacity, bins.grow(1.4 * at_least.grid.capacity)))
        outran = jnp.zeros(position.shape[:-2], bool)
        fields = jax.jit(_build, static_argnums=(2, 3, 4))(position, T, grid, space, outer)
        slots, near = min(slots, outer), min(near, outer)
        return NeighborList(**fields._asdict(), outran=outran, slots=slots, near=near, grid=grid, update_fn=update)

    def update(
        position: jax.Array, neighbors: NeighborList, box: npt.ArrayLike | None = None, **unused: Any
    ) -> NeighborList:
        T = cell(position, box)
        used = _each(partial(skin_used, space=space), position)(position, T, neighbors)

        def rebuild(_: None) -> NeighborList:
            new = neighbors.replace(**_build(position, T, neighbors.grid, space, neighbors.senders.shape[-1])._asdict())
            return new.replace(did_buffer_overflow=new.did_buffer_overflow | neighbors.did_buffer_overflow)

        new = jax.lax.cond((used > REBUILD).any(), rebuild, lambda _: neighbors, None)
        complete = _each(lambda x, T, pairs: _inside(x, T, neighbors=pairs, space=space).complete, position)(
            position, T, new
        )
        return new.replace(
            outran=neighbors.outran | (used > 1.0), did_buffer_overflow=new.did_buffer_overflow | ~complete
        )

    return NeighborFns(allocate, update)


def _each(function: Callable, position: jax.Array) -> Callable:
    """`function` of one structure, mapped over replicas where there are any."""
    return jax.vmap(function) if position.ndim == 3 else function


@precision.exact
def skin_used(position: jax.Array, T: jax.Array, neighbors: NeighborList, space: boxes.Space) -> jax.Array:
    """Fraction of the skin used up since the list was built; above 1 a pair within the cutoff may be missing.

    With F the deformation of the cell since then and u the displacements beyond it, a pair now at distance d was at
    most |F^-1| (d + 2 max|u|) apart, and |F^-1| <= 1 + |F^-1 - 1|_Frobenius.
    """
    T0 = neighbors.reference_box
    s_ref = boxes.fractional(neighbors.reference_position, T0, space=space)
    u = (boxes.unwrap(boxes.fractional(position, T, space=space), s_ref, space=space) - s_ref) @ T.T
    largest = jnp.sqrt((u**2).sum(1).max())
    back = T0 @ boxes.inverse(T) - jnp.eye(3, dtype=T.dtype)
    then = (1.0 + jnp.sqrt((back**2).sum())) * (space.cutoff + 2.0 * largest)
    return (then - space.cutoff) / space.skin


@precision.exact
def pair_vectors(position: jax.Array, T: jax.Array, *, neighbors: NeighborList, space: boxes.Space) -> jax.Array:
    """[N, L, 3] receiver minus sender in A."""
    s_ref = boxes.fractional(neighbors.reference_position, neighbors.reference_box, space=space)
    s = boxes.unwrap(boxes.fractional(position, T, space=space), s_ref, space=space)
    return (s[:, None] - s[neighbors.senders] - neighbors.shifts) @ T.T


class Near(NamedTuple):
    """The K slots a row that lie within the cutoff now."""

    senders: jax.Array  # [N*K]
    reverse: jax.Array  # [N*K]
    mask: jax.Array  # [N, K]
    shifts: jax.Array  # [N, K, 3] against the unwrapped reference frame
    complete: jax.Array  # [] False where a row needs more than K slots, or more than K' near ones


def within(position: jax.Array, T: jax.Array, *, neighbors: NeighborList, space: boxes.Space) -> Near:
    """The K slots a row that lie within the cutoff now."""
    n, size = neighbors.senders.shape
    k = neighbors.slots
    inside = _inside(position, T, neighbors=neighbors, space=space)
    rows = jnp.arange(n, dtype=jnp.int32)[:, None]
    chosen = compact(inside.mask, inside.rank, size=k)
    mask = chosen < size
    chosen = jnp.minimum(chosen, size - 1)
    senders = jnp.where(mask, jnp.take_along_axis(neighbors.senders, chosen, 1), rows)
    shifts = jnp.where(mask[..., None], jnp.take_along_axis(neighbors.shifts, chosen[..., None], 1), 0)
    opposite = jnp.take(inside.rank.reshape(-1), jnp.take_along_axis(neighbors.reverse.reshape(n, size), chosen, 1))
    reverse = jnp.where(mask, senders * k + opposite, rows * k + jnp.arange(k, dtype=jnp.int32))
    return Near(senders.reshape(-1), reverse.reshape(-1), mask, shifts, inside.complete)


def compact(mask: jax.Array, rank: jax.Array, *, size: int) -> jax.Array:
    """[N, size] columns of the True entries of each row of mask [N, M], by their rank; M where there are no more."""
    n, m = mask.shape
    where = jnp.where(mask, rank, size)
    columns = jnp.broadcast_to(jnp.arange(m, dtype=jnp.int32), mask.shape)
    rows = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32)[:, None], mask.shape)
    return jnp.full((n, size), m, jnp.int32).at[rows, where].set(columns, mode="drop", unique_indices=False)


def ranked(mask: jax.Array) -> jax.Array:
    """[N, M] how many True entries of its row stand before each."""
    return jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1


class Inside(NamedTuple):
    """What of a list is within the cutoff now."""

    mask: jax.Array  # [N, L] slot within the cutoff
    rank: jax.Array  # [N, L] int32, its place among those of its row, near ones first
    complete: jax.Array  # [] whether there is a place for all


def _inside(position: jax.Array, T: jax.Array, *, neighbors: NeighborList, space: boxes.Space) -> Inside:
    v = pair_vectors(position, T, neighbors=neighbors, space=space)
    r2 = (v**2).sum(-1)

    def closer(cutoff: float) -> jax.Array:
        """Decided alike from both ends of a pair."""
        here = neighbors.mask & (r2 < cutoff**2)
        return here & jnp.take(here.reshape(-1), neighbors.reverse).reshape(here.shape)

    mask = closer(space.cutoff)
    complete = mask.sum(1).max() <= neighbors.slots
    if space.near is None:
        return Inside(mask, ranked(mask), complete)
    first = closer(space.near)
    count = first.sum(1, keepdims=True, dtype=jnp.int32)
    rank = jnp.where(first, ranked(first), count + ranked(mask & ~first))
    return Inside(mask, rank, complete & (count.max() <= neighbors.near))


class Built(NamedTuple):
    """The arrays of a `NeighborList` just built, described there."""

    senders: jax.Array
    shifts: jax.Array
    mask: jax.Array
    reverse: jax.Array
    reference_position: jax.Array
    reference_box: jax.Array
    did_buffer_overflow: jax.Array


def _and_shaken(position: np.ndarray, T: np.ndarray, *, space: boxes.Space) -> tuple[np.ndarray, np.ndarray]:
    """[M, N, 3] positions as given and, after them, shaken by heat, with their cells [M, 3, 3].

    In a perfect crystal every atom has the same neighbours; a shell just beyond the cutoff crosses it in the first
    steps, and room for it made then costs another compilation of the whole simulation.
    """
    moves = np.random.default_rng(0).normal(scale=THERMAL, size=position.shape).astype(position.dtype)
    if space.fractional:
        moves = moves @ np.swapaxes(boxes.inverse(T), -1, -2)
    both, cells = np.stack([position, position + moves]), np.stack([T, T])
    return both.reshape(-1, *position.shape[-2:]), cells.reshape(-1, 3, 3)


@partial(jax.jit, static_argnames=("grid", "space"))
def _largest_rows(position: jax.Array, T: jax.Array, *, grid: bins.Grid, space: boxes.Space) -> jax.Array:
    """[3] most neighbours of any atom of structures [M, N, 3]: within cutoff + skin, within the cutoff, near ones."""
    cutoffs = (space.cutoff + space.skin, space.cutoff, space.cutoff if space.near is None else space.near)

    def count(cell: tuple[jax.Array, jax.Array]) -> jax.Array:
        position, T = cell
        c = bins.candidates(position, T, grid=grid, space=space)
        return jnp.stack([bins.closer(c, T, space=space, cutoff=cutoff).sum((1, 2)).max() for cutoff in cutoffs])

    return jax.lax.map(count, (position, T)).max(0)  # one after another, in the memory of one


def _build(position: jax.Array, T: jax.Array, grid: bins.Grid, space: boxes.Space, size: int) -> Built:
    """The arrays of a `NeighborList` with `size` slots a row."""
    return _each(partial(_build_one, grid=grid, space=space, size=size), position)(position, T)


def _build_one(position: jax.Array, T: jax.Array, grid: bins.Grid, space: boxes.Space, size: int) -> Built:
    n = position.shape[0]
    c = bins.candidates(position, T, grid=grid, space=space)
    mask = bins.closer(c, T, space=space, cutoff=space.cutoff + space.skin).reshape(n, -1)
    rank = ranked(mask)
    chosen = compact(mask, rank, size=size)
    used = chosen < mask.shape[1]
    chosen = jnp.minimum(chosen, mask.shape[1] - 1)
    rows = jnp.arange(n, dtype=jnp.int32)[:, None]
    senders = jnp.where(used, jnp.take_along_axis(c.senders.reshape(n, -1), chosen, 1), rows)
    image = jnp.take_along_axis(c.image, (chosen // grid.capacity)[..., None], 1)
    # a bin and its opposite stand as far from the two ends of those within reach
    opposite = (c.image.shape[1] - 1 - chosen // grid.capacity) * grid.capacity + c.place[:, None]
    slot = rank[senders, opposite]
    found = used & mask[senders, opposite] & (slot < size)
    reverse = jnp.where(found, senders * size + slot, rows * size + jnp.arange(size, dtype=jnp.int32))
    base = c.base.astype(jnp.int32)
    too_coarse = (bins.reach(T, grid) < space.cutoff + space.skin).any()  # the cell has shrunk below what was laid out
    # images of atoms inside the cell -> shifts between the positions as given
    shifts = jnp.where(used[..., None], image + base[:, None] - base[senders], 0)
    overflow = c.overflow | (mask.sum(1).max() > size) | too_coarse
    return Built(senders, shifts, found, reverse.reshape(-1), position, T, overflow)
