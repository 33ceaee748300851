"""Fields of the graphs in this package: NamedTuples inside jraph's GraphsTuple, and what a model reads of them.

Every receiver owns K edge slots, sorted by receiver, so an edge array [N*K, ...] is also [N, K, ...]. Unused slots are
masked. The last graph of a batch is padding and may be empty.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from equijax.graph.gather import gather_senders

Array = np.ndarray | jax.Array


class Nodes(NamedTuple):
    """`GraphsTuple.nodes`."""

    positions: Array  # [N, 3] A
    slot: Array  # [N] row of `Globals.table`
    along: Array | None = None  # [N, 3] A, direction of a third derivative
    labels: Any = None  # of training data: `equijax.data.items.NodeLabels`


class Slots(NamedTuple):
    """`GraphsTuple.edges`."""

    vectors: Array  # [N*K, 3] A, receiver minus sender, formed in float64
    shifts: Array  # [N*K, 3] cell translations of the sender (integers, stored as floats)
    mask: Array  # [N*K] whether the slot is in use
    reverse: Array  # [N*K] the slot of the same pair seen from the sender


class Globals(NamedTuple):
    """`GraphsTuple.globals`."""

    cell: Array  # [G, 3, 3] A, rows are vectors
    head: Array  # [G] position among the model's heads
    table: Array  # [S] rows of `ModelConfig.species` present in the batch
    labels: Any = None  # of training data: `equijax.data.items.GraphLabels`
    embedded: Array | None = None  # [G, F] numbers of `ModelConfig.embeddings`; None of a model without
    near: Array | None = None  # [K'] a receiver's first slots, that hold all within r_max; None: all K slots do


class Topology(NamedTuple):
    """What a model reads of a graph beside its edge vectors."""

    slot: Array  # [N] row of `table`
    table: Array  # [S] rows of `ModelConfig.species`
    head: Array  # [N]
    senders: Array  # [N*K]
    reverse: Array  # [N*K]
    gather: Callable = gather_senders  # of sender values; Bloch waves replace it
    embedded: Array | None = None  # [N, F] numbers of `ModelConfig.embeddings`
    near: Array | None = None  # [K'] as in `Globals`
