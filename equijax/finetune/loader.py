"""What the trainer eats: shuffled labelled batches in few shapes, each a function of the seed and the epoch alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jraph
import numpy as np
from jax.sharding import Mesh

from equijax import data, graph, parallel, potential
from equijax.config import ModelConfig
from equijax.finetune import trainer

EVALUATION_SLOTS = 16384  # edge slots N*K in a batch without gradients
# In edge slots. Compiling a training step often takes longer than the whole run:
WASTE = 4.0  # a known shape is reused up to this factor,
LITTLE = 2.0  # and one shape for all batches is taken up to this one on average


@dataclass(frozen=True)
class Feed:
    """The training set; neighbour lists are in the items, built once."""

    config: ModelConfig
    energies: np.ndarray  # [H, Z] eV, isolated atoms
    items: Sequence[data.Item]
    replay: Sequence[data.Item] = ()
    constants: Sequence[data.ForceConstants] = ()  # one batch each, with fresh random tangents every epoch
    batch_size: int = 2  # structures a device
    replay_size: int = 0  # replay structures added to each
    slots: int = 262144  # edge slots a device
    tangents: int = 4
    primitive: bool = False  # force constants by waves in the primitive cell instead of displacements of the supercell
    head: int = 0
    dtype: str = "float32"
    seed: int = 0
    mesh: Mesh | None = None
    pool: graph.SizePool = field(default_factory=graph.SizePool)  # shapes of training batches,
    evaluation_pool: graph.SizePool = field(default_factory=graph.SizePool)  # and of batches without gradients


def epoch(feed: Feed, number: int) -> list[trainer.Batch]:
    """The batches of one epoch, in order."""
    rng = np.random.default_rng([feed.seed, number])
    groups = [[feed.items[i] for i in g] for g in data.plan(feed.items, feed.batch_size, feed.slots, rng)]
    if feed.replay_size:
        groups = _with_replay(feed, groups, rng)
    devices = 1 if feed.mesh is None else feed.mesh.size
    chunks = [kind[i : i + devices] for kind in (groups, _products(feed, number)) for i in range(0, len(kind), devices)]
    chunks = [chunks[i] for i in rng.permutation(len(chunks))] if feed.constants else chunks
    return [_batch(feed, chunk) for chunk in chunks]


def _with_replay(feed, groups, rng):
    """Add replay structures to each group; a shuffled deck is dealt and shuffled again when it is empty."""
    deck: list[int] = []
    out = []
    for group in groups:
        while len(deck) < feed.replay_size:
            deck += rng.permutation(len(feed.replay)).tolist()
        hand, deck = deck[: feed.replay_size], deck[feed.replay_size :]
        out.append(group + [feed.replay[i] for i in hand])
    return out


def _products(feed, number):
    out = []
    for i, reference in enumerate(feed.constants):
        seed = int(np.random.default_rng([feed.seed, number, i]).integers(2**31))
        make = data.waves if feed.primitive else data.products
        out.append(data.prepare(make(reference, feed.tangents, seed=seed), feed.config))
    return out


def _batch(feed, groups):
    """One batch: a graph a device, all padded to one shape; devices without a group get a silent copy of the first."""
    members = tuple(item for group in groups for item in group)
    names = tuple(item.labelled.source for item in members)
    needed = [data.size_of(group, feed.config) for group in groups]
    size = shape(feed.pool, graph.Size(*(max(column) for column in zip(*needed, strict=True))))
    if feed.mesh is None:
        return trainer.Batch(labelled_graph(feed, groups[0], size), names, members)
    graphs = [
        labelled_graph(feed, groups[i], size) if i < len(groups) else silent(labelled_graph(feed, groups[0], size))
        for i in parallel.mine(feed.mesh)
    ]
    return trainer.Batch(parallel.stack(graphs, feed.mesh), names, members)


def silent(g: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """The same graph with every label masked: it adds nothing to loss, counts or gradient."""

    def masked(fields):
        values = fields.labels._asdict()
        off = {k: np.zeros_like(v) for k, v in values.items() if k.endswith("_mask") and v is not None}
        return fields._replace(labels=fields.labels._replace(**off))

    return g._replace(globals=masked(g.globals), nodes=masked(g.nodes))


def labelled_graph(feed: Feed, group: Sequence[data.Item], size: graph.Size | None = None) -> jraph.GraphsTuple:
    """One padded, labelled graph in the dtype of the run; force-constant products alone, without empty other labels."""
    g = data.batch(group, feed.config, feed.energies, size, feed.head)
    if all(not item.labelled.has_first_order for item in group):
        g = data.without_first_order(g)
    return potential.cast(g, feed.dtype)


def shape(pool: graph.SizePool, needed: graph.Size) -> graph.Size:
    """The padded shape of a batch: the cheapest known one that is not too wasteful, or a new one."""
    known = [s for s in pool.sizes if s.holds(needed) and s.cost <= WASTE * needed.cost]
    return min(known, key=lambda s: s.cost) if known else pool.fit(needed)


def evaluation_graphs(feed: Feed, items: Sequence[data.Item], graphs: int | None = None) -> list[jraph.GraphsTuple]:
    """A whole set in batches of up to `graphs` structures, like-coordinated ones together, in few shapes."""
    width = [data.size_of([item], feed.config) for item in items]
    order = sorted(range(len(items)), key=lambda i: (width[i].slots, width[i].nodes))
    groups = data.plan(items, graphs or len(items), EVALUATION_SLOTS, order=order)
    chosen = [[items[i] for i in group] for group in groups]
    return [labelled_graph(feed, g, shape(feed.evaluation_pool, data.size_of(g, feed.config))) for g in chosen]


def settle(feed: Feed, epochs: int) -> None:
    """Fix the shapes of all epochs beforehand, so that they are few and a resumed run pads alike.

    One shape that holds every batch if that pads them little; else the largest first, each used for what it fits.
    """
    needed = []
    for number in range(epochs):
        rng = np.random.default_rng([feed.seed, number])
        groups = [[feed.items[i] for i in g] for g in data.plan(feed.items, feed.batch_size, feed.slots, rng)]
        groups = _with_replay(feed, groups, rng) if feed.replay_size else groups
        needed += [graph.round_up(data.size_of(g, feed.config)) for g in groups]
    if not needed:
        return
    everything = graph.Size(*(max(column) for column in zip(*needed, strict=True)))
    if everything.cost <= LITTLE * np.mean([s.cost for s in needed]):
        shape(feed.pool, everything)
    for size in sorted(set(needed), key=lambda s: -s.cost):
        shape(feed.pool, size)
