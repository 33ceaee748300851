"""Shapes from a small pool: many structures, few programs."""

import numpy as np
from ase import Atoms

from equijax import derivatives, graph, testing
from tests.samples import CONFIG


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
