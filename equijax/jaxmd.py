"""A potential for `jax_md.simulate`, and blocks of compiled steps. Users import these names from `equijax.md`.

    neighbor_fn, energy_fn = equijax.md.energy_neighbor(displacement, box, ff, atoms.numbers)
    neighbors = neighbor_fn.allocate(R)
    init, apply = jax_md.simulate.nvt_nose_hoover(energy_fn, shift, dt, kT)
    state = init(key, R, mass=masses, neighbor=neighbors)
    state = apply(state, neighbor=neighbors)
    neighbors = neighbors.update(state.position)

Units: A, eV, amu; a time of 1 is sqrt(amu A^2 / eV) = 10.18 fs, so dt = 1 fs is `1.0 * ase.units.fs`; pressures eV/A^3.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from equijax import neighbors as nl
from equijax import precision, predict
from equijax.forcefield import ForceField
from equijax.gather import gather_senders

MAX_RERUNS = 4  # of one block of steps, each with more room for neighbours


class Lost(FloatingPointError):
    """A block of steps that cannot be completed; `step` is the last good one."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"after step {step}: {reason}")
        self.step = step


def energy_neighbor(
    displacement: Callable, box, ff: ForceField, numbers, *, skin: float = 0.5, head: str | None = None
) -> tuple[nl.NeighborFns, Callable]:
    """Neighbour list and energy functions of a model for `jax_md.simulate`.

    Whether positions are fractional, and which directions are periodic, is read off `displacement`. Cells of any shape
    and size are allowed, smaller than the cutoff too: the list holds lattice images, where JAX-MD's own takes the
    nearest image only.

    Args:
      displacement: from jax_md.space (`free`, `periodic`, `periodic_general`).
      box: that space's box: side, [3] sides or [3, 3] with cell vectors as columns, in A; None for `free`.
      ff: a force field, plain or specialised.
      numbers: [N] atomic numbers.
      skin: A beyond the cutoff that a neighbour list covers.
      head: required for a model with several.

    Returns:
      neighbor_fn with `allocate(R, box=...)` and `update(R, neighbors, box=...)`, and
      energy_fn(R, neighbor=..., box=..., perturbation=..., variables=...) -> [] eV: the sum of atomic interaction
      energies, without the isolated-atom constants E0 (they would cost float32 its digits). It is NaN where the
      neighbour list does not cover the cutoff, so a stale list is never silently wrong. Compiled loops of large models
      pass `variables=ff.device_variables(dtype)`, which are constants of the program otherwise.

    Raises:
      ValueError: an unknown element or head, a `displacement` that does not belong to `box`.
    """
    T = np.eye(3) if box is None else _matrix(np.asarray(box, np.float64))
    is_fractional, periodic = probe(displacement, T)
    return potential(T, nl.Space(is_fractional, periodic, ff.config.r_max, skin), ff, numbers, head)


def potential(T, space: nl.Space, ff: ForceField, numbers, head: str | None = None):
    """`energy_neighbor` with the space given in so many words: cell T [3, 3] (columns) and `space`."""
    if not space.skin > 0:
        raise ValueError(f"skin {space.skin} A: expected a positive length, 0.5 for solids, 1 for hot liquids")
    inputs = species_inputs(ff, numbers, head)
    fns = nl.neighbor_list(T, space)

    def energy_fn(R, neighbor, box=None, perturbation=None, variables=None, **unused):
        cell = jnp.asarray(T if box is None else _matrix(box)).astype(R.dtype)
        vectors, edges, valid = model_edges(R, cell, neighbor, space, perturbation)
        weights = variables if variables is not None else jax.tree.map(jnp.asarray, predict.cast(ff.variables, R.dtype))
        energy = ff.node_energies(weights, vectors, inputs | edges).sum()
        return energy * jnp.where(valid, 1.0, jnp.nan).astype(energy.dtype)

    return fns, energy_fn


def species_inputs(ff: ForceField, numbers, head: str | None) -> dict:
    """Rows of the species table of each atom, as the model wants them: slot [N], table [S], head [N].

    Raises:
      ValueError: an element the model does not know.
    """
    numbers = np.asarray(numbers)
    unknown = sorted({int(z) for z in numbers} - set(ff.config.species))
    if unknown:
        raise ValueError(f"atomic numbers {unknown}: this model knows {list(ff.config.species)}")
    present, slot = np.unique(numbers, return_inverse=True)
    table = np.array([ff.config.species.index(z) for z in present], np.int32)
    return {"slot": slot.astype(np.int32), "table": table, "head": np.full(len(numbers), ff.head_index(head), np.int32)}


@precision.exact
def model_edges(R, T, neighbor: nl.NeighborList, space: nl.Space, perturbation=None):
    """Edge vectors [N, K, 3] of the slots within the cutoff, their senders and reverse, and whether all are there.

    In fractional coordinates the derivative with respect to R is the one in real space, as in jax_md.space.
    """
    still_R, still_T = jax.lax.stop_gradient((R, T))
    edges = nl.within(still_R, still_T, neighbor, space)
    valid = edges["complete"] & ~neighbor.did_buffer_overflow & (nl.skin_used(still_R, still_T, neighbor, space) <= 1.0)
    s = nl.fractional(still_R, still_T, space)
    s_ref = nl.fractional(neighbor.reference_position, neighbor.reference_box, space)
    jumps = s - nl.unwrap(s, s_ref, space)
    unwrapped = R - jumps if space.fractional else R - jumps @ T.T
    difference = unwrapped[:, None] - gather_senders(unwrapped, edges["senders"], edges["reverse"])
    if space.fractional:
        ds = difference - edges["shifts"]
        still = jax.lax.stop_gradient(ds)
        vectors = still @ T.T + (ds - still)  # value T ds; tangents: dT ds, and d(ds) taken in real space
    else:
        vectors = difference - edges["shifts"].astype(R.dtype) @ T.T
    if perturbation is not None:
        perturbation = jnp.asarray(perturbation)
        vectors = vectors @ perturbation.T if perturbation.ndim == 2 else vectors * perturbation
    far = jnp.array([predict.MASKED_LENGTH * space.cutoff, 0.0, 0.0], R.dtype)
    vectors = jnp.where(edges["mask"][..., None], vectors, far)
    return vectors, {"senders": edges["senders"], "reverse": edges["reverse"]}, valid


def probe(displacement: Callable, T: np.ndarray) -> tuple[bool, tuple[bool, bool, bool]]:
    """Are positions fractional, and along which columns of T do they repeat? Asked of the function itself.

    Raises:
      ValueError: neither the fractional nor the real displacement in the cell T.
    """
    x = np.array([1.0, 2.0, 3.0]) * 1e-3
    zero = np.zeros(3)
    moved = np.asarray(displacement(jnp.asarray(x), jnp.asarray(zero)))

    def like(a, b):
        return np.allclose(a, b, rtol=1e-3, atol=1e-5)

    if not (like(moved, x) or like(moved, T @ x)):
        raise ValueError(
            f"displacement of {x.tolist()} is {moved.tolist()}, which is neither that vector (real coordinates) nor "
            f"box @ it (fractional coordinates) for box {T.tolist()}: pass the box the displacement was made with"
        )
    is_fractional = not like(moved, x)
    vectors = np.eye(3) if is_fractional else T.T
    repeats = tuple(bool(np.abs(displacement(jnp.asarray(v), jnp.asarray(zero))).max() < 1e-2) for v in vectors)
    return is_fractional, repeats


def _matrix(box):
    """[3, 3] from a side, [3] sides or a matrix."""
    if box.ndim == 2:
        return box
    return box * np.eye(3) if isinstance(box, np.ndarray) else box * jnp.eye(3, dtype=box.dtype)


def blocks(
    apply_fn: Callable,
    state,
    neighbors: nl.NeighborList,
    neighbor_fn: nl.NeighborFns,
    *,
    start: int = 0,
    steps: int,
    block: int = 100,
    box_of: Callable | None = None,
    **kwargs,
) -> Iterator[tuple]:
    """Run `apply_fn` of jax_md.simulate in compiled blocks of steps; yields (step, state, neighbors) after each.

    Where the neighbour list turned out too small inside a block, the block is run again from its start with a larger
    list. With positions [B, N, 3] and everything in `state` stacked likewise, B replicas advance together.

    Args:
      apply_fn: from jax_md.simulate.
      state: its state, on device.
      neighbors: list for the positions of `state`.
      neighbor_fn: allocates a larger one.
      start: number of the step `state` is at.
      steps: number of the last step.
      block: steps a block; the last may be shorter.
      box_of: state -> box, for ensembles that change it (`jax_md.simulate.npt_box`).
      kwargs: passed on to `apply_fn`, e.g. variables.

    Raises:
      Lost: positions or momenta became non-finite, or atoms outran the list within a step.
    """
    advance = compiled_block(apply_fn, box_of)
    step = start
    while step < steps:
        length = min(block - step % block, steps - step)
        for _attempt in range(1 + MAX_RERUNS):
            new_state, new_neighbors = advance(state, neighbors, length, kwargs)
            if not bool(new_neighbors.did_buffer_overflow.any()):
                break
            box = {} if box_of is None else {"box": _over_replicas(box_of, state)(state)}
            neighbors = neighbor_fn.allocate(state.position, at_least=neighbors, **box)
        else:
            raise Lost(step, f"the neighbour list overflowed {1 + MAX_RERUNS} times, each time with more "
                             "room: the structure or its cell collapses; use a smaller time step, a longer barostat "
                             "time or a relaxed start")  # fmt: skip
        if bool(new_neighbors.outran.any()):  # which makes energies NaN: looked at first
            raise Lost(
                step, "an atom moved further than the skin within one step: use a smaller time step or more skin"
            )
        if not _finite((new_state.position, new_state.momentum)):
            raise Lost(step, "a position or momentum is not finite: use a smaller time step or a relaxed start")
        step, state, neighbors = step + length, new_state, new_neighbors
        yield step, state, neighbors


def compiled_block(apply_fn: Callable, box_of: Callable | None) -> Callable:
    """advance(state, neighbors, length, kwargs) -> (state, neighbors), one program for any length."""

    @jax.jit
    def advance(state, neighbors, length, kwargs):
        each = _over_replicas(lambda s, n: apply_fn(s, neighbor=n, **kwargs), state)

        def body(_, carry):
            state, neighbors = carry
            state = each(state, neighbors)
            box = {} if box_of is None else {"box": _over_replicas(box_of, state)(state)}
            return state, neighbors.update(state.position, **box)

        return jax.lax.fori_loop(0, length, body, (state, neighbors))

    return advance


def _over_replicas(function, state):
    return jax.vmap(function) if state.position.ndim == 3 else function


def _finite(tree) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))
