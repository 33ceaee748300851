"""The part of a graph within r_max, of a graph that reaches farther for dispersion."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from equijax.config import ModelConfig
from equijax.errors import needed
from equijax.graph.fields import Topology
from equijax.graph.neighbours import longest_cutoff

MASKED_LENGTH = 2.0  # length of a masked edge in units of the longest cutoff: beyond it, away from r = 0


def masked_vector(config: Any, dtype: DTypeLike) -> jax.Array:
    """The vector [3] A of a masked slot, longer than any cutoff of the model."""
    return jnp.array([MASKED_LENGTH * longest_cutoff(config), 0.0, 0.0], dtype)


def within_r_max(config: ModelConfig, vectors: jax.Array, *, topology: Topology) -> tuple[jax.Array, Topology]:
    """What the network reads of a graph: a receiver's first slots, `topology.near` of them; without dispersion, all.

    A pair within r_max is among the first slots of both its atoms. A farther one may be among those of one alone, which
    leaves it without a reverse there: its slot is masked.

    Args:
      config: of the model.
      vectors: [N, K, 3] A, of all slots.
      topology: of all slots.

    Returns:
      [N, K', 3] A and their topology.

    Raises:
      InputError: the graph does not say which slots are near.
    """
    if config.dispersion is None:
        return vectors, topology
    (n, k), first = vectors.shape[:2], needed(topology.near, "dispersion needs a graph made for it").shape[0]
    own = jnp.arange(n, dtype=jnp.int32)[:, None]
    opposite = jnp.asarray(topology.reverse).reshape(n, k)[:, :first]
    there = opposite % k < first
    senders = jnp.where(there, jnp.asarray(topology.senders).reshape(n, k)[:, :first], own)
    reverse = jnp.where(there, opposite // k * first + opposite % k, own * first + jnp.arange(first, dtype=jnp.int32))
    inner = jnp.where(there[..., None], vectors[:, :first], masked_vector(config, vectors.dtype))
    return inner, topology._replace(senders=senders.reshape(-1), reverse=reverse.reshape(-1), near=None)
