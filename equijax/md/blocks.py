"""Blocks of compiled simulation steps, with room for neighbours made as it is needed."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
    _, neighbor_fn, box_of, arguments = stepper
    advance = compiled_block(stepper.apply, box_of)
    step = start
    while step < steps:
        length = min(block - step % block, steps - step)
        for _attempt in range(1 + MAX_RERUNS):
            new_state, new_neighbors = advance(state, neighbors, length, dict(arguments))
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


def compiled_block(apply_fn: Callable, box_of: Callable | None) -> Callable:
    """advance(state, neighbors, length, kwargs) -> (state, neighbors), one program for any length."""

    @partial(jax.jit, compiler_options=executables.compiler_options())
    def advance(state: Any, neighbors: neighbours.NeighborList, length: int, kwargs: dict) -> tuple:
        each = _over_replicas(lambda s, n: apply_fn(s, neighbor=n, **kwargs), state)

        def body(_: jax.Array, carry: tuple) -> tuple:
            state, neighbors = carry
            state = each(state, neighbors)
            box = {} if box_of is None else {"box": _over_replicas(box_of, state)(state)}
            return state, neighbors.update(state.position, **box)

        return jax.lax.fori_loop(0, length, body, (state, neighbors))

    return advance


def _over_replicas(function: Callable, state: Any) -> Callable:
    return jax.vmap(function) if state.position.ndim == 3 else function


def _finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))
