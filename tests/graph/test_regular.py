"""Regular graphs: slots and their reverse, padding and batching."""

import numpy as np
import pytest

from equijax import derivatives, graph, testing
from tests.samples import CONFIG


def test_slots_are_regular_and_reversed():
    atoms = testing.rattled()
    g = graph.from_atoms(atoms, CONFIG)
    n, mask, reverse = len(atoms), g.edges.mask, g.edges.reverse
    assert np.array_equal(g.receivers.reshape(n, -1), np.arange(n)[:, None].repeat(len(mask) // n, 1))
    assert np.array_equal(np.sort(reverse), np.arange(len(mask))) and np.array_equal(
        reverse[reverse], np.arange(len(mask))
    )
    assert np.array_equal(g.senders[mask], g.receivers[reverse][mask])
    assert np.array_equal(g.edges.shifts[mask], -g.edges.shifts[reverse][mask])


def test_padding_and_batch_order_change_results_by_rounding_only():
    ff = testing.random_forcefield(CONFIG)
    images = list(testing.structures().values())
    structures = [(a, graph.neighbour_list(a, CONFIG.r_max)) for a in images]
    size = graph.round_up(graph.size_of(structures, CONFIG))
    variables = ff.device_variables("float64")

    def run(order, size):
        out = derivatives.evaluate(
            CONFIG, variables, graph=graph.build([structures[i] for i in order], CONFIG, size=size), dtype="float64"
        )
        first = np.cumsum([0, *(len(images[i]) for i in order)])
        return {i: (out.energy[g], out.forces[first[g] : first[g + 1]], out.stress[g]) for g, i in enumerate(order)}

    plain = run(range(len(images)), size)
    larger = graph.Size(size.nodes + 7, size.slots + 5, size.species + 1, size.graphs + 3)
    for other in (run(range(len(images))[::-1], larger),):
        for i, atoms in enumerate(images):
            assert abs(plain[i][0] - other[i][0]) < 1e-10 * len(atoms)
            np.testing.assert_allclose(plain[i][1], other[i][1], atol=1e-11)
            np.testing.assert_allclose(plain[i][2], other[i][2], atol=1e-12)


def test_a_batch_that_does_not_fit_is_refused():
    structures = [(a, graph.neighbour_list(a, CONFIG.r_max)) for a in [testing.rattled()]]
    with pytest.raises(ValueError, match="does not fit"):
        graph.build(structures, CONFIG, size=graph.Size(4, 100, 4, 2))
