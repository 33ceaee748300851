"""Structures packed in batches of few shapes."""

import itertools

import numpy as np
from ase.build import bulk

from equijax import graph
from equijax.graph import packing
from equijax.testing import rattled


def test_a_thousand_crystals_fill_few_shapes():
    """Padding included, at least 80 % of the edge slots computed belong to the structures."""
    rng = np.random.default_rng(0)
    structures = []
    for i in range(1000):
        atoms = bulk("Al", rng.choice(["fcc", "bcc", "sc", "diamond"]), a=rng.uniform(3.2, 5.5), cubic=True)
        structures.append(packing.structure(i, atoms, edges=graph.neighbour_list(atoms, 5.0)))
    pool = graph.SizePool()
    batches = list(packing.batches(iter(structures), pool, known=1, budget=packing.BATCH_SLOTS["cpu"]))
    assert sorted(s.index for batch in batches for s in batch.members) == list(range(1000))
    assert len({batch.size for batch in batches}) <= 16
    assert all(batch.size.cost <= 1.1 * packing.BATCH_SLOTS["cpu"] for batch in batches)
    needed = sum(len(s.edges.receivers) for s in structures)
    assert needed / sum(batch.size.cost for batch in batches) > 0.8


def test_a_batch_is_ready_before_the_stream_ends():
    """The first batch leaves when it is full, not when the last structure has come."""
    atoms = rattled()
    edges, taken = graph.neighbour_list(atoms, 4.0), []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield packing.structure(i, atoms, edges=edges)

    batches = packing.batches(endless(), graph.SizePool(), known=2, budget=4096)
    first, second = next(batches), next(batches)
    assert [s.index for s in (*first.members, *second.members)] == list(range(len(taken) - 1))
    assert first.size == second.size and first.size.cost <= 4096


def test_a_structure_beyond_every_shape_does_not_inflate_the_others():
    """With the pool full, a batch is halved until known shapes hold it, and one large structure gets its own shape."""
    small = [packing.structure(i, a, edges=graph.neighbour_list(a, 4.0)) for i, a in enumerate([rattled(seed=1)] * 40)]
    large = rattled(repeat=(4, 3, 3))
    pool = graph.SizePool([graph.Size(16, 32, 2, 17)] * graph.MAX_SIZES)
    batches = list(
        packing.batches(
            [*small, packing.structure(40, large, edges=graph.neighbour_list(large, 4.0))], pool, known=2, budget=4096
        )
    )
    assert sorted(s.index for b in batches for s in b.members) == list(range(41))
    (own,) = [b for b in batches if b.members[0].index == 40]
    assert len(own.members) == 1 and own.size.nodes < 2 * len(large)
    assert {b.size.nodes for b in batches if b is not own} <= {16, own.size.nodes}
