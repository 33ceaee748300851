"""Regular graphs: neighbours against ASE, padding and batching, bounded shapes, refused input."""

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list

from equijax import derivatives, graph, testing
from equijax.graph.gather import gather_senders, sum_to_senders

CONFIG = testing.random_config(channels=4)


@pytest.mark.parametrize("name", testing.structures())
def test_neighbours_agree_with_ase(name):
    atoms = testing.structures()[name]
    edges = graph.neighbour_list(atoms, CONFIG.r_max)
    i, j, S = neighbor_list("ijS", atoms, CONFIG.r_max)
    expected = sorted(zip(i, j, *S.T, strict=True))
    assert sorted(zip(edges.receivers, edges.senders, *edges.shifts.T, strict=True)) == expected
    assert np.array_equal(edges.reverse[edges.reverse], np.arange(len(i)))


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


def test_gather_and_its_transpose_are_adjoint_in_every_mode():
    g = graph.from_atoms(testing.rattled(), CONFIG)
    senders, reverse = g.senders, g.edges.reverse
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(size=(g.n_node[0], 3))
        y = rng.normal(size=(g.n_node[0], len(senders) // g.n_node[0], 3))
        gathered = gather_senders(x, senders, reverse)
        mask = g.edges.mask.reshape(y.shape[:2])
        np.testing.assert_array_equal(gathered[mask], x[senders.reshape(mask.shape)[mask]])
        expected = np.zeros_like(x)
        np.add.at(expected, senders, y.reshape(-1, 3))
        np.testing.assert_allclose(sum_to_senders(y, senders, reverse), expected, atol=1e-13)
        f = lambda x: (gather_senders(x, senders, reverse) ** 3 * y).sum()  # noqa: E731
        plain = lambda x: (x[senders].reshape(y.shape) ** 3 * y).sum()  # noqa: E731
        for derivative in (jax.grad, jax.jacfwd, jax.hessian):
            np.testing.assert_allclose(derivative(f)(x), derivative(plain)(x), atol=1e-12)
        tangents = rng.normal(size=(4, *x.shape))
        batched = jax.vmap(jax.linearize(jax.grad(f), x)[1])(tangents)
        single = [jax.jvp(jax.grad(plain), (x,), (t,))[1] for t in tangents]
        np.testing.assert_allclose(batched, single, atol=1e-12)


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


def random_structures(count: int) -> list[Atoms]:
    rng = np.random.default_rng(11)
    out = []
    for _ in range(count):
        n, kinds = int(rng.integers(1, 201)), int(rng.integers(1, 7))
        side = np.ceil(n ** (1 / 3)).astype(int)
        grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)[:n]
        a = rng.uniform(2.2, 4.0)  # A, from dense to open packing
        numbers = rng.choice(rng.choice(CONFIG.species, kinds, replace=False), n)
        out.append(
            Atoms(numbers, positions=a * grid + rng.normal(scale=0.05, size=(n, 3)), cell=[a * side] * 3, pbc=True)
        )
    return out


def test_500_different_structures_compile_at_most_20_programs():
    """One at a time and in batches through one force field: the worst and the usual case."""
    ff = testing.random_forcefield(
        testing.random_config(channels=2, radial_mlp=(4,), max_ell=0, num_interactions=1, correlation=(1,))
    )
    before = derivatives._evaluate._cache_size()
    images = random_structures(500)
    together = ff.evaluate(images)
    for i in range(0, 500, 10):
        alone = ff.evaluate([images[i]])[0]
        np.testing.assert_allclose(alone.forces, together[i].forces, atol=testing.TOLERANCE["float32"]["forces"])
    assert derivatives._evaluate._cache_size() - before <= 20


def test_500_structures_one_at_a_time_need_at_most_20_sizes():
    pool = graph.SizePool()
    for atoms in random_structures(500):
        needed = graph.size_of([(atoms, graph.neighbour_list(atoms, CONFIG.r_max))], CONFIG)
        assert pool.fit(needed).holds(needed)
    assert len(pool.sizes) <= 20


BAD = {
    "element": (Atoms("NaU", positions=[[0, 0, 0], [0, 0, 3]]), r"atom 1 of element U"),
    "overlap": (
        Atoms("NaNaCl", positions=[[0, 0, 0], [2, 0, 0], [2, 0, 0.01]]),
        r"atoms 1 and 2 \(Na, Cl\) are 0.01 A",
    ),
    "nan": (Atoms("NaCl", positions=[[0, 0, 0], [0, 0, np.nan]]), r"atom 1 at non-finite"),
    "infinite cell": (Atoms("Na", cell=[np.inf, 1, 1], pbc=True), r"cell is not finite"),
    "flat cell": (Atoms("Na", cell=[[3, 0, 0], [3, 0, 0], [0, 0, 3]], pbc=True), r"span no volume"),
    "empty": (Atoms(), r"no atoms"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    atoms, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        graph.from_atoms([bulk("Na"), atoms], CONFIG)


def test_a_batch_that_does_not_fit_is_refused():
    structures = [(a, graph.neighbour_list(a, CONFIG.r_max)) for a in [testing.rattled()]]
    with pytest.raises(ValueError, match="does not fit"):
        graph.build(structures, CONFIG, size=graph.Size(4, 100, 4, 2))
