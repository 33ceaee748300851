"""Padded graphs of labelled structures: masks, batches within budgets, messages."""

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk

from equijax import data, graph, potential, testing
from equijax.data import select
from equijax.data.items import batch, plan, prepare, size_of
from equijax.errors import InputError
from tests.data.samples import CONFIG, E0, VARIABLES, frame, written


def test_messages_name_file_and_frame_of_the_user(tmp_path):
    images = [frame(None, {"energy": 1.0}) for _ in range(5)]
    images[4].symbols[3] = "U"
    path = written(tmp_path / "a.extxyz", *images)
    for index, number in (("3:", 1), ("-1", 0), ("::-2", 0)):
        found = data.read_file(path, index=index).structures
        assert found[number].source == f"frame 4 of {path}"
    close = [data.Labelled(ase.Atoms("Na2", [[0, 0, 0], [0, 0, 0.01]]), source=f"frame {i} of x") for i in (3, 9)]
    model = testing.random_forcefield(CONFIG)
    with pytest.raises(InputError, match=r"^frame 4 of .*a.extxyz: atom 3 of element U"):
        data.predictions(model, found)
    with pytest.raises(InputError, match="^frame 3 of x: atoms 0 and 1"):
        select.pick(close, 1)
    with pytest.raises(InputError, match="head 'c' is not one of the model's: a, b; rename it, or .* --head-key none"):
        data.predictions(model, [data.Labelled(testing.rattled(), head="c")])


def test_batch_masks_what_is_missing():
    forces = np.ones((8, 3))
    forces[2] = np.nan
    structures = [
        data.Labelled(testing.rattled(), -20.0, forces, 0.1 * np.eye(3), weight=2.0),
        data.Labelled(
            testing.rattled("Si", "diamond", a=5.4), head="b", tangents=np.ones((8, 2, 3)), hvp=np.ones((8, 2, 3))
        ),
    ]
    items = prepare(structures, CONFIG)
    size = graph.Size(24, size_of(items, CONFIG).slots, 4, 5)
    g = batch(items, CONFIG, energies=E0, size=size)
    labels, nodes = g.globals.labels, g.nodes.labels
    np.testing.assert_allclose(labels.energy, [-20.0 + 4 * 1.0 + 4 * 3.0, 0, 0, 0, 0])
    np.testing.assert_array_equal(labels.energy_mask, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(labels.stress_mask, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(labels.weight, [2, 1, 0, 0, 0])
    np.testing.assert_array_equal(g.globals.head[:2], [0, 1])
    np.testing.assert_array_equal(np.flatnonzero(nodes.forces_mask), [0, 1, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(np.flatnonzero(nodes.hvp_mask), np.arange(8, 16))
    assert np.isfinite(nodes.forces).all() and nodes.tangents.shape == (24, 2, 3)
    e0 = potential.isolated_energies(CONFIG, VARIABLES, graph=g)
    assert e0[8:16].sum() == pytest.approx(8 * 2.0)


def test_plan_keeps_to_its_budgets():
    items = prepare([data.Labelled(testing.rattled(seed=i, repeat=(1 + i % 3, 1, 1))) for i in range(9)], CONFIG)
    cost = max(size_of([item], CONFIG).cost for item in items)
    batches = plan(items, 3, slots=cost, rng=np.random.default_rng(0))
    assert sorted(i for b in batches for i in b) == list(range(9))
    assert batches == plan(items, 3, slots=cost, rng=np.random.default_rng(0)) != plan(items, 3, slots=cost)
    assert all(len(b) <= 3 and size_of([items[i] for i in b], CONFIG).cost <= cost for b in batches)
    assert plan(items, 3, slots=1) == [[i] for i in range(9)]  # one structure at least


def test_structures_the_model_cannot_describe():
    copper = data.Labelled(bulk("Cu"), source="x.xyz:4")
    with pytest.raises(ValueError, match="x.xyz:4: atom 0 of element Cu"):
        prepare([copper], CONFIG)
    with pytest.raises(ValueError, match="x.xyz:4: head 'c' is not one of the model's: a, b"):
        prepare([data.Labelled(bulk("Si"), source="x.xyz:4", head="c")], CONFIG)
