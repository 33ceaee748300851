"""Shuffled labelled batches in few shapes, each a function of the seed and the epoch alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import jraph
import numpy as np
from jax.sharding import Mesh

from equijax import graph, parallel, potential
from equijax.config import ModelConfig
from equijax.data.items import Item, batch, plan, prepare, size_of, without_first_order
from equijax.data.phonopy_files import ForceConstants, products, waves
from equijax.graph.fields import Globals, Nodes

Fields = TypeVar("Fields", Nodes, Globals)
EVALUATION_SLOTS = 16384  # edge slots N*K in a batch without gradients
# In edge slots. Compiling a training step often takes longer than the whole run:
WASTE = 4.0  # a known shape is reused up to this factor,
LITTLE = 2.0  # and one shape for all batches is taken up to this one on average


class Batch(NamedTuple):
    """A labelled graph (or one per device, stacked) and the structures in it."""

    graph: jraph.GraphsTuple
    names: tuple[str, ...]
    members: tuple[Item, ...] = ()


@dataclass(frozen=True)
class TrainingSet:
    """What is trained on; neighbour lists are in the items, built once."""

    config: ModelConfig
    energies: np.ndarray  # [H, Z] eV, isolated atoms
    items: Sequence[Item]
    replay: Sequence[Item] = ()
    constants: Sequence[ForceConstants] = ()  # one batch each, with fresh random tangents every epoch
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


def epoch(training: TrainingSet, number: int) -> list[Batch]:
    """The batches of one epoch, in order."""
    rng = np.random.default_rng([training.seed, number])
    groups = _groups(training, rng)
    devices = 1 if training.mesh is None else training.mesh.size
    kinds = (groups, _constants(training, number))
    chunks = [kind[i : i + devices] for kind in kinds for i in range(0, len(kind), devices)]
    chunks = [chunks[i] for i in rng.permutation(len(chunks))] if training.constants else chunks
    return [_batch(training, chunk) for chunk in chunks]


def _groups(training: TrainingSet, rng: np.random.Generator) -> list[list[Item]]:
    """Structures of each batch of an epoch, on one device.

    Replay structures are added to each; a shuffled deck is dealt and shuffled again when it is empty.
    """
    chosen = plan(training.items, training.batch_size, slots=training.slots, rng=rng)
    groups = [[training.items[i] for i in group] for group in chosen]
    deck: list[int] = []
    for group in groups:
        while len(deck) < training.replay_size:
            deck += rng.permutation(len(training.replay)).tolist()
        hand, deck = deck[: training.replay_size], deck[training.replay_size :]
        group += [training.replay[i] for i in hand]
    return groups


def _constants(training: TrainingSet, number: int) -> list[list[Item]]:
    """A batch of each reference, with the tangents of this epoch."""
    make, out = waves if training.primitive else products, []
    for i, reference in enumerate(training.constants):
        seed = int(np.random.default_rng([training.seed, number, i]).integers(2**31))
        out.append(prepare(make(reference, training.tangents, seed=seed), training.config))
    return out


def _batch(training: TrainingSet, groups: Sequence[Sequence[Item]]) -> Batch:
    """One batch: a graph a device, all padded to one shape; devices without a group get a silent copy of the first."""
    members = tuple(item for group in groups for item in group)
    names = tuple(item.labelled.source for item in members)
    needed = [size_of(group, training.config) for group in groups]
    size = shape(training.pool, largest(needed))
    if training.mesh is None:
        return Batch(labelled_graph(training, groups[0], size=size), names, members)
    graphs = [
        labelled_graph(training, groups[i], size=size)
        if i < len(groups)
        else silent(labelled_graph(training, groups[0], size=size))
        for i in parallel.mine(training.mesh)
    ]
    return Batch(parallel.stack(graphs, training.mesh), names, members)


def silent(g: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """The same graph with every label masked: it adds nothing to loss, counts or gradient."""

    def masked(fields: Fields) -> Fields:
        values = fields.labels._asdict()
        off = {k: np.zeros_like(v) for k, v in values.items() if k.endswith("_mask") and v is not None}
        return fields._replace(labels=fields.labels._replace(**off))

    return g._replace(globals=masked(g.globals), nodes=masked(g.nodes))


def labelled_graph(
    training: TrainingSet, group: Sequence[Item], *, size: graph.Size | None = None
) -> jraph.GraphsTuple:
    """One padded, labelled graph in the dtype of the run; force-constant products alone, without empty other labels."""
    g = batch(group, training.config, energies=training.energies, size=size, head=training.head)
    if all(not item.labelled.has_first_order for item in group):
        g = without_first_order(g)
    return potential.cast(g, training.dtype)


def largest(sizes: Sequence[graph.Size]) -> graph.Size:
    """The smallest shape that holds all of these."""
    return graph.Size(*(max(column) for column in zip(*sizes, strict=True)))


def shape(pool: graph.SizePool, needed: graph.Size) -> graph.Size:
    """The padded shape of a batch: the cheapest known one that is not too wasteful, or a new one."""
    known = [s for s in pool.sizes if s.holds(needed) and s.cost <= WASTE * needed.cost]
    return min(known, key=lambda s: s.cost) if known else pool.fit(needed)


def evaluation_graphs(
    training: TrainingSet, items: Sequence[Item], *, graphs: int | None = None
) -> list[jraph.GraphsTuple]:
    """A whole set in batches of up to `graphs` structures, like-coordinated ones together, in few shapes."""
    width = [size_of([item], training.config) for item in items]
    order = sorted(range(len(items)), key=lambda i: (width[i].slots, width[i].nodes))
    groups = plan(items, graphs or len(items), slots=EVALUATION_SLOTS, order=order)
    out = []
    for group in ([items[i] for i in chosen] for chosen in groups):
        size = shape(training.evaluation_pool, size_of(group, training.config))
        out.append(labelled_graph(training, group, size=size))
    return out


def settle(training: TrainingSet, epochs: int) -> None:
    """Fix the shapes of all epochs beforehand, so that they are few and a resumed run pads alike.

    One shape that holds every batch if that pads them little; else the largest first, each used for what it fits.
    """
    needed = []
    for number in range(epochs):
        groups = _groups(training, np.random.default_rng([training.seed, number]))
        needed += [graph.round_up(size_of(group, training.config)) for group in groups]
    if not needed:
        return
    everything = largest(needed)
    if everything.cost <= LITTLE * np.mean([s.cost for s in needed]):
        shape(training.pool, everything)
    for size in sorted(set(needed), key=lambda s: -s.cost):
        shape(training.pool, size)
