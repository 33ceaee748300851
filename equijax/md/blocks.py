"""Blocks of compiled simulation steps, with room for neighbours made as it is needed."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax import executables
from equijax.errors import NotFinite
from equijax.md import neighbours

MAX_RERUNS = 4  # of one block of steps, each with more room for neighbours


class Lost(NotFinite):
    """A block of steps that cannot be completed; `step` is the last good one."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"after step {step}: {reason}")
        self.step = step


class Stepper(NamedTuple):
    """How a simulation goes one step further."""

    apply: Callable  # of jax_md.simulate
    neighbor_fn: neighbours.NeighborFns  # allocates a larger list where one is too small
    box_of: Callable | None = None  # state -> box, for ensembles that change it (`jax_md.simulate.npt_box`)
    arguments: Mapping[str, Any] = MappingProxyType({})  # more for `apply`, e.g. variables
    key: tuple | None = None  # plain values that say all `apply` depends on: its programs are kept for the next run


def run_blocks(
    stepper: Stepper,
    state: Any,
    *,
    neighbors: neighbours.NeighborList,
    steps: int,
    start: int = 0,
    block: int = 100,
) -> Iterator[tuple[int, Any, neighbours.NeighborList]]:
    """Run a simulation of jax_md in compiled blocks of steps; yields (step, state, neighbors) after each.

    Where the neighbour list turned out too small inside a block, the block is run again from its start with a larger
    list. With positions [B, N, 3] and everything in `state` stacked likewise, B replicas advance together.

    Args:
      stepper: see `Stepper`.
      state: of jax_md.simulate, on device.
      neighbors: list for the positions of `state`.
      steps: number of the last step.
      start: number of the step `state` is at.
      block: steps a block; the last may be shorter.

    Raises:
      Lost: positions or momenta became non-finite, or atoms outran the list within a step.
    """
    neighbor_fn, box_of, arguments = stepper.neighbor_fn, stepper.box_of, stepper.arguments
    advance, step, state = compiled_block(stepper), start, settled(state)
    while step < steps:
        length = min(block - step % block, steps - step)
        for _attempt in range(1 + MAX_RERUNS):
            new_state, new_neighbors = advance(state, neighbors, np.int32(length), dict(arguments))
            if not bool(new_neighbors.did_buffer_overflow.any()):
                break
            box = {} if box_of is None else {"box": _over_replicas(box_of, state)(state)}
            neighbors = neighbor_fn.allocate(state.position, at_least=neighbors, **box)
        else:
            raise Lost(
                step,
                f"the neighbour list overflowed {1 + MAX_RERUNS} times, each time with more room: the structure or "
                "its cell collapses; use a smaller time step, a longer barostat time or a relaxed start",
            )
        if bool(new_neighbors.outran.any()):  # which makes energies NaN: looked at first
            raise Lost(
                step, "an atom moved further than the skin within one step: use a smaller time step or more skin"
            )
        if not _finite((new_state.position, new_state.momentum)):
            raise Lost(step, "a position or momentum is not finite: use a smaller time step or a relaxed start")
        step, state, neighbors = step + length, new_state, new_neighbors
        yield step, state, neighbors


def settled(state: Any) -> Any:
    """The state as a step returns it: arrays, where jax_md's first one holds numbers of Python, none of a weak type.

    Each type that a state comes in is one more program to compile.
    """

    def array(x: Any) -> Any:
        if isinstance(x, float):
            return jnp.asarray(x, state.position.dtype)
        return jnp.asarray(x, x.dtype) if getattr(x, "weak_type", False) else x

    return jax.tree.map(array, state)


def compiled_block(stepper: Stepper) -> Callable:
    """advance(state, neighbors, length, kwargs) -> (state, neighbors), one program for any length.

    See `kept` for what becomes of it where the stepper has a key.
    """
    box_of = stepper.box_of

    def advance(state: Any, neighbors: neighbours.NeighborList, length: int, kwargs: dict) -> tuple:
        each = _over_replicas(lambda s, n: stepper.apply(s, neighbor=n, **kwargs), state)

        def body(_: jax.Array, carry: tuple) -> tuple:
            state, neighbors = carry
            state = each(state, neighbors)
            box = {} if box_of is None else {"box": _over_replicas(box_of, state)(state)}
            return state, neighbors.update(state.position, **box)

        return jax.lax.fori_loop(0, length, body, (state, neighbors))

    if stepper.key is None:
        return jax.jit(advance, compiler_options=executables.compiler_options())
    program = kept(advance, ("md_steps", stepper.key))
    return lambda *given: jax.tree.unflatten(jax.tree.structure(given[:2]), program(*given))


def kept(function: Callable, key: tuple) -> Callable[..., list]:
    """(state, neighbors, ...) -> leaves of `function` of them, by programs that are kept; see `executables.keep`.

    Those take and give arrays in plain lists: the classes of jax_md and of neighbour lists are not for a file.
    """

    def call(state: Any, neighbors: neighbours.NeighborList, *others: Any) -> list:
        leaves, tree = jax.tree.flatten((state, neighbors))

        def flat(leaves: list, *others: Any) -> list:
            return jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves), *others))

        fixed = (neighbors.slots, neighbors.near, tuple(neighbors.grid), str(jax.tree.structure(state)))
        return executables.keep(jax.jit(flat), (*key, fixed))(leaves, *others)

    return call


def _over_replicas(function: Callable, state: Any) -> Callable:
    return jax.vmap(function) if state.position.ndim == 3 else function


def _finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))
