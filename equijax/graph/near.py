"""The part of a graph within r_max, of a graph that reaches farther for dispersion."""

import jax
import jax.numpy as jnp

from equijax.errors import needed
from equijax.graph.fields import Topology


def nearest(vectors: jax.Array, topology: Topology, *, unused: jax.Array) -> tuple[jax.Array, Topology]:
    """A receiver's first slots, `topology.near` of them, as a graph of their own.

    A pair within r_max is among the first slots of both its atoms. A farther one may be among those of one alone, which
    leaves it without a reverse there: its slot is masked.

    Args:
      vectors: [N, K, 3] A, of all slots.
      topology: of all slots.
      unused: [3] A, the vector of masked slots.

    Returns:
      [N, K', 3] A and their topology.

    Raises:
      InputError: the graph does not say which slots are near.
    """
    (n, k), first = vectors.shape[:2], needed(topology.near, "dispersion needs a graph made for it").shape[0]
    own = jnp.arange(n, dtype=jnp.int32)[:, None]
    opposite = jnp.asarray(topology.reverse).reshape(n, k)[:, :first]
    there = opposite % k < first
    senders = jnp.where(there, jnp.asarray(topology.senders).reshape(n, k)[:, :first], own)
    reverse = jnp.where(there, opposite // k * first + opposite % k, own * first + jnp.arange(first, dtype=jnp.int32))
    inner = jnp.where(there[..., None], vectors[:, :first], unused)
    return inner, topology._replace(senders=senders.reshape(-1), reverse=reverse.reshape(-1), near=None)
