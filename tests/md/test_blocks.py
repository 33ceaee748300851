"""Steps in compiled blocks: replicas, and a rerun where a list overflowed."""

from typing import Any, NamedTuple

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.md import FS, Stepper, blocks, energy_neighbor, run_blocks

jax_md = pytest.importorskip("jax_md", reason="needs the md extra")
space, simulate = jax_md.space, jax_md.simulate


def two_replicas(morse, metal, **changes):
    """Two NVE replicas after 40 steps in blocks of 20, from a list altered by `changes`."""
    atoms = ase.io.read(metal)
    T = atoms.cell.array.T
    displacement, shift = space.periodic_general(T)
    neighbor_fn, energy_fn = energy_neighbor(displacement, T, ff=morse, numbers=atoms.numbers)
    init, apply = simulate.nve(energy_fn, shift, 2.0 * FS)
    R = jnp.stack([jnp.asarray(atoms.get_scaled_positions(), jnp.float32)] * 2)
    mass = jnp.asarray(atoms.get_masses(), jnp.float32)
    neighbors = neighbor_fn.allocate(R)
    keys = jax.random.split(jax.random.PRNGKey(0))
    state = jax.vmap(lambda k, r, n: init(k, r, 0.05, mass=mass, neighbor=n))(keys, R, neighbors)
    if changes:
        neighbors = neighbors.replace(**changes)
    *_, (step, state, neighbors) = run_blocks(
        Stepper(apply, neighbor_fn), state, neighbors=neighbors, steps=40, block=20
    )
    assert step == 40
    return state, neighbors


def test_replicas_and_rerun_after_overflow(morse, metal):
    state, neighbors = two_replicas(morse, metal)
    assert state.position.shape == (2, 32, 3)
    assert not np.allclose(state.position[0], state.position[1], atol=1e-3)
    again, larger = two_replicas(morse, metal, slots=neighbors.slots // 2)
    assert larger.slots > neighbors.slots // 2
    np.testing.assert_allclose(again.position, state.position, atol=1e-5)


class State(NamedTuple):
    """Of another integrator."""

    position: jax.Array
    tau: Any
    count: Any
    key: Any


def test_a_settled_state_has_one_type_and_keeps_what_is_no_float():
    key = jax.random.key(0)
    fresh = State(jnp.zeros((2, 3), jnp.float32), 0.5, 7, key)
    later = fresh._replace(tau=jnp.asarray(0.5))
    for state in map(blocks.settled, (fresh, later)):
        assert state.tau.dtype == jnp.float32 and not state.tau.weak_type
        assert state.count == 7 and isinstance(state.count, int) and state.key is key
