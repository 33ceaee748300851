"""The potential of a graph: its vectors follow positions."""

import jax
import numpy as np

from equijax import graph, potential, testing
from tests.samples import CONFIG, moved


def test_vectors_follow_positions():
    """The graph's own vectors serve its positions; others change them, with the right derivative."""
    atoms = moved(testing.rattled(), "far")
    g = graph.from_atoms(atoms, CONFIG)
    step = np.random.default_rng(1).normal(scale=1e-3, size=g.nodes.positions.shape)
    with jax.enable_x64(True):
        vectors = np.asarray(potential.edge_vectors(CONFIG, g, positions=g.nodes.positions + step))
    r = g.nodes.positions + step
    plain = r[g.receivers] - r[g.senders] - g.edges.shifts @ atoms.cell.array
    mask = g.edges.mask
    assert mask.any()
    np.testing.assert_allclose(vectors.reshape(-1, 3)[mask], plain[mask], atol=1e-9)
