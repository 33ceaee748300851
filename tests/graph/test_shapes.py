"""Shapes from a small pool: many structures, few programs."""

import numpy as np
from ase import Atoms

from equijax import graph, testing
from equijax.graph.shapes import PROGRAM_SLOTS
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


def test_500_different_structures_compile_at_most_20_programs(programs_made):
    """One at a time and in batches through one force field: the worst and the usual case."""
    ff = testing.random_forcefield(
        testing.random_config(channels=2, radial_mlp=(4,), max_ell=0, num_interactions=1, correlation=(1,))
    )
    images = random_structures(500)
    together = ff.evaluate(images)
    for i in range(0, 500, 10):
        alone = ff.evaluate([images[i]])[0]
        np.testing.assert_allclose(alone.forces, together[i].forces, atol=testing.TOLERANCE["float32"]["forces"])
    assert 0 < len(programs_made) <= 20


def test_500_structures_one_at_a_time_need_at_most_20_sizes():
    pool = graph.SizePool()
    for atoms in random_structures(500):
        needed = graph.size_of([(atoms, graph.neighbour_list(atoms, CONFIG.r_max))], CONFIG)
        assert pool.fit(needed).holds(needed)
    assert len(pool.sizes) <= 20


CRYSTALS = {"NaCl": (2, 26, 2), "MgO": (2, 56, 2), "LiF": (2, 80, 2), "Si": (2, 28, 1), "Cu": (1, 54, 1)}


def test_small_crystals_and_their_supercells_share_a_shape_each():
    """Atoms, neighbours within 5 A and species of a primitive cell; irreducible displacements of 3 x 3 x 3 of them."""
    cells, supercells = (graph.SizePool(ladders=graph.SHARED) for _ in range(2))
    for nodes, slots, species in CRYSTALS.values():
        cells.fit(graph.Size(nodes, slots, species, 2))
        supercells.fit(graph.Size(27 * nodes, slots, species, 2), work=species)
    assert cells.sizes == [graph.Size(2, 96, 4, 2)]
    assert supercells.sizes == [graph.Size(64, 96, 4, 2)]


def test_a_coarse_shape_that_is_used_often_is_left_for_a_fine_one():
    pool, needed = graph.SizePool(ladders=graph.SHARED), graph.Size(64, 30, 2, 2)
    used = [pool.fit(needed) for _ in range(400)]
    coarse, fine = dict.fromkeys(used)
    assert coarse.slots == 96 and fine == graph.round_up(needed)
    assert used == sorted(used, key=lambda size: -size.cost) and pool.sizes == [coarse, fine]
    assert sum(size.cost - needed.cost for size in used if size is coarse) < 1.1 * PROGRAM_SLOTS


def test_small_structures_use_the_shape_of_a_larger_one_until_one_of_their_own_pays():
    pool, cell = graph.SizePool(ladders=graph.SHARED), graph.Size(2, 26, 2, 2)
    supercell = pool.fit(graph.Size(54, 26, 2, 2))
    assert {pool.fit(cell) for _ in range(20)} == {supercell}
    assert pool.fit(cell, work=1000).cost < supercell.cost
