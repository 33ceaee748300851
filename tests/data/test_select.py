"""Choice of a few structures among many."""

import numpy as np
import pytest
from ase.build import bulk

from equijax import data, testing
from equijax.data import select
from equijax.errors import InputError


def test_farthest_points_cover_before_they_repeat():
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
    points = np.concatenate([corners + 0.01 * i for i in range(3)])
    chosen = select.farthest(points, 4, seed=2)
    assert {i % 4 for i in chosen} == {0, 1, 2, 3}
    assert sorted(select.farthest(np.zeros((5, 2)), 5)) == list(range(5))
    with pytest.raises(InputError, match="13 structures asked for, 12 available"):
        select.farthest(points, 13)


def test_pick_takes_one_of_each_material():
    images = [testing.rattled(seed=i) for i in range(6)] + [bulk("Si", a=5.4), bulk("Na", a=4.2)]
    structures = [data.Labelled(atoms) for atoms in images]
    assert {6, 7} < set(select.pick(structures, 3))
    drawn = select.pick(structures, 3, how="random", seed=1)
    assert drawn == select.pick(structures, 3, how="random", seed=1) and len(set(drawn)) == 3
    with pytest.raises(InputError, match="pick 'nearest': expected"):
        select.pick(structures, 3, how="nearest")


def test_descriptors_do_not_see_order_or_orientation():
    atoms = testing.rattled(repeat=(2, 1, 1))
    turned = atoms[np.random.default_rng(0).permutation(len(atoms))]
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    a, b, other = select.descriptors([atoms, turned, testing.rattled(seed=3)])
    np.testing.assert_allclose(a, b, atol=1e-9)
    assert np.abs(a - other).max() > 1e-3
