"""A potential for `jax_md.simulate`, and blocks of compiled steps. Users import both from `equijax.md`.

    neighbor_fn, energy_fn = equijax.md.energy_neighbor(displacement, box, ff=ff, numbers=atoms.numbers)
    neighbors = neighbor_fn.allocate(R)
    init, apply = jax_md.simulate.nvt_nose_hoover(energy_fn, shift, dt, kT)
    state = init(key, R, mass=masses, neighbor=neighbors)
    state = apply(state, neighbor=neighbors)
    neighbors = neighbors.update(state.position)

Units: A, eV, amu; a time of 1 is sqrt(amu A^2 / eV) = 10.18 fs, so dt = 1 fs is `1.0 * ase.units.fs`; pressures eV/A^3.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from equijax import precision
from equijax.errors import InputError
from equijax.graph.fields import Topology
from equijax.graph.gather import gather_senders
from equijax.graph.near import MASKED_LENGTH
from equijax.graph.neighbours import embedded_numbers, longest_cutoff
from equijax.md import boxes, neighbours
from equijax.potential import Potential, cast


def energy_neighbor(
    displacement: Callable,
    box: npt.ArrayLike | None,
    *,
    ff: Potential,
    numbers: npt.ArrayLike,
    skin: float = 0.5,
    info: Mapping[str, Any] | None = None,
) -> tuple[neighbours.NeighborFns, Callable]:
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
      info: "charge" and "spin" of the system, of a model that embeds them; see `graph.neighbours.embedded_numbers`.

    Returns:
      neighbor_fn with `allocate(R, box=...)` and `update(R, neighbors, box=...)`, and
      energy_fn(R, neighbor=..., box=..., perturbation=..., variables=...) -> [] eV: the sum of atomic interaction
      energies, without the isolated-atom constants E0 (they would cost float32 its digits). It is NaN where the
      neighbour list does not cover the cutoff, so a stale list is never silently wrong. Compiled loops of large models
      pass `variables=ff.device_variables(dtype)`, which are constants of the program otherwise.

    Raises:
      InputError: an unknown element, a `displacement` that does not belong to `box`.
    """
    T = np.eye(3) if box is None else _matrix(np.asarray(box, np.float64))
    is_fractional, periodic = probe(displacement, T)
    space = space_of(ff, periodic, fractional=is_fractional, skin=skin)
    return energy_in(T, space, ff=ff, numbers=numbers, info=info)


def energy_in(
    T: np.ndarray,
    space: boxes.Space,
    *,
    ff: Potential,
    numbers: npt.ArrayLike,
    info: Mapping[str, Any] | None = None,
) -> tuple[neighbours.NeighborFns, Callable]:
    """`energy_neighbor` with the space given in so many words: cell T [3, 3] (columns) and `space`."""
    if not space.skin > 0:
        raise InputError(f"skin {space.skin} A: expected a positive length, 0.5 for solids, 1 for hot liquids")
    species = species_inputs(ff, numbers)
    embedded = np.tile(embedded_numbers(info or {}, ff.config, name="the system"), (len(species[0]), 1))
    fns = neighbours.neighbor_list(T, space)

    def energy_fn(
        R: jax.Array,
        neighbor: neighbours.NeighborList,
        box: npt.ArrayLike | None = None,
        perturbation: jax.Array | None = None,
        variables: dict | None = None,
        **unused: Any,
    ) -> jax.Array:
        cell = jnp.asarray(T if box is None else _matrix(box)).astype(R.dtype)
        vectors, edges, valid = model_edges(R, cell, neighbor=neighbor, space=space, perturbation=perturbation)
        weights = variables if variables is not None else jax.tree.map(jnp.asarray, cast(ff.variables, R.dtype))
        topology = Topology(*species, edges.senders, edges.reverse)
        if space.near is not None:
            topology = topology._replace(near=jnp.arange(neighbor.near))
        if embedded.size:
            topology = topology._replace(embedded=jnp.asarray(embedded, R.dtype))
        energy = ff.node_energies(weights, vectors, topology).sum()
        return energy * jnp.where(valid, 1.0, jnp.nan).astype(energy.dtype)

    return fns, energy_fn


def space_of(ff: Potential, periodic: tuple[bool, bool, bool], *, skin: float, fractional: bool = False) -> boxes.Space:
    """Where the atoms of a model live: lists that reach as far as it reads, A."""
    near = None if getattr(ff.config, "dispersion", None) is None else ff.config.r_max
    return boxes.Space(fractional, periodic, longest_cutoff(ff.config), skin, near)


def species_inputs(ff: Potential, numbers: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The species as the model wants them: row of the table of each atom [N], the table [S], the head [N].

    Raises:
      InputError: an element the model does not know.
    """
    numbers = np.asarray(numbers)
    unknown = sorted({int(z) for z in numbers} - set(ff.config.species))
    if unknown:
        raise InputError(f"atomic numbers {unknown}: this model knows {list(ff.config.species)}")
    present, slot = np.unique(numbers, return_inverse=True)
    table = np.array([ff.config.species.index(z) for z in present], np.int32)
    return slot.astype(np.int32), table, np.full(len(numbers), ff.head_index, np.int32)


@precision.exact
def model_edges(
    R: jax.Array,
    T: jax.Array,
    *,
    neighbor: neighbours.NeighborList,
    space: boxes.Space,
    perturbation: jax.Array | None = None,
) -> tuple[jax.Array, neighbours.Near, jax.Array]:
    """Edge vectors [N, K, 3] of the slots within the cutoff, these slots, and whether all are there.

    In fractional coordinates the derivative with respect to R is the one in real space, as in jax_md.space.
    """
    still_R, still_T = jax.lax.stop_gradient((R, T))
    edges = neighbours.within(still_R, still_T, neighbors=neighbor, space=space)
    valid = (
        edges.complete
        & ~neighbor.did_buffer_overflow
        & (neighbours.skin_used(still_R, still_T, neighbor, space) <= 1.0)
    )
    s = boxes.fractional(still_R, still_T, space=space)
    s_ref = boxes.fractional(neighbor.reference_position, neighbor.reference_box, space=space)
    jumps = s - boxes.unwrap(s, s_ref, space=space)
    unwrapped = R - jumps if space.fractional else R - jumps @ T.T
    difference = unwrapped[:, None] - gather_senders(unwrapped, edges.senders, edges.reverse)
    if space.fractional:
        ds = difference - edges.shifts
        still = jax.lax.stop_gradient(ds)
        vectors = still @ T.T + (ds - still)  # value T ds; tangents: dT ds, and d(ds) taken in real space
    else:
        vectors = difference - edges.shifts.astype(R.dtype) @ T.T
    if perturbation is not None:
        perturbation = jnp.asarray(perturbation)
        vectors = vectors @ perturbation.T if perturbation.ndim == 2 else vectors * perturbation
    far = jnp.array([MASKED_LENGTH * space.cutoff, 0.0, 0.0], R.dtype)
    vectors = jnp.where(edges.mask[..., None], vectors, far)
    return vectors, edges, valid


def probe(displacement: Callable, T: np.ndarray) -> tuple[bool, tuple[bool, bool, bool]]:
    """Are positions fractional, and along which columns of T do they repeat? Asked of the function itself.

    Raises:
      InputError: neither the fractional nor the real displacement in the cell T.
    """
    x = np.array([1.0, 2.0, 3.0]) * 1e-3
    zero = np.zeros(3)
    moved = np.asarray(displacement(jnp.asarray(x), jnp.asarray(zero)))

    def like(a: np.ndarray, b: np.ndarray) -> bool:
        return np.allclose(a, b, rtol=1e-3, atol=1e-5)

    if not (like(moved, x) or like(moved, T @ x)):
        raise InputError(
            f"displacement of {x.tolist()} is {moved.tolist()}, which is neither that vector (real coordinates) nor "
            f"box @ it (fractional coordinates) for box {T.tolist()}: pass the box the displacement was made with"
        )
    is_fractional = not like(moved, x)
    vectors = np.eye(3) if is_fractional else T.T
    a, b, c = (bool(np.abs(displacement(jnp.asarray(v), jnp.asarray(zero))).max() < 1e-2) for v in vectors)
    return is_fractional, (a, b, c)


def _matrix(box: Any) -> Any:
    """[3, 3] from a side, [3] sides or a matrix."""
    if box.ndim == 2:
        return box
    return box * np.eye(3) if isinstance(box, np.ndarray) else box * jnp.eye(3, dtype=box.dtype)
