"""Replay: diverse subsets, labels by the model itself, a second head that starts as a copy."""

import dataclasses

import numpy as np
import pytest
from ase.build import bulk

from equijax import data, graph, testing
from equijax.config import Compute
from equijax.data import select
from equijax.data.items import prepare, size_of
from equijax.finetune import loader, replay
from equijax.forcefield import ForceField


@pytest.fixture
def model(student) -> ForceField:
    return student


def test_farthest_points_cover_before_they_repeat():
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
    points = np.concatenate([corners + 0.01 * i for i in range(3)])
    chosen = select.farthest(points, 4, seed=2)
    assert {i % 4 for i in chosen} == {0, 1, 2, 3}
    assert sorted(select.farthest(np.zeros((5, 2)), 5)) == list(range(5))
    with pytest.raises(ValueError, match="13 structures asked for, 12 available"):
        select.farthest(points, 13)


def test_pick_takes_one_of_each_material():
    images = [testing.rattled(seed=i) for i in range(6)] + [bulk("Si", a=5.4), bulk("Na", a=4.2)]
    structures = [data.Labelled(atoms) for atoms in images]
    assert {6, 7} < set(select.pick(structures, 3))
    drawn = select.pick(structures, 3, how="random", seed=1)
    assert drawn == select.pick(structures, 3, how="random", seed=1) and len(set(drawn)) == 3
    with pytest.raises(ValueError, match="pick 'nearest': expected"):
        select.pick(structures, 3, how="nearest")


def test_descriptors_do_not_see_order_or_orientation():
    atoms = testing.rattled(repeat=(2, 1, 1))
    turned = atoms[np.random.default_rng(0).permutation(len(atoms))]
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    a, b, other = select.descriptors([atoms, turned, testing.rattled(seed=3)])
    np.testing.assert_allclose(a, b, atol=1e-9)
    assert np.abs(a - other).max() > 1e-3


def test_pseudo_labels_are_the_model_s_own(model):
    old = data.Labelled(testing.rattled(), energy=1.0, forces=np.ones((8, 3)), weight=0.5, source="x:0")
    other = data.Labelled(testing.rattled("Si", "diamond", 5.4), source="x:1")
    found = replay.pseudo_label(model, [old, other], tangents=2)
    expected = model.evaluate([old.atoms, other.atoms], compute=Compute())
    for s, e in zip(found, expected, strict=True):
        assert s.energy == e.energy
        np.testing.assert_array_equal(s.forces, e.forces)
        np.testing.assert_array_equal(s.stress, e.stress)
    assert (found[0].weight, found[0].source) == (0.5, "x:0")
    step, s = 1e-3, found[1]
    moved = [s.atoms.copy() for _ in range(2)]
    for atoms, sign in zip(moved, (1, -1), strict=True):
        atoms.positions += sign * step * s.tangents[:, 1]
    plus, minus = (f.forces for f in model.evaluate(moved, compute=Compute()))
    np.testing.assert_allclose(s.hvp[:, 1], -(plus - minus) / (2 * step), atol=1e-6)


def test_failed_pseudo_labels_are_an_error(model):
    copper = data.Labelled(bulk("Cu"), energy=1.0, source="x:7")
    with pytest.raises(ValueError, match="x:7: atom 0 of element Cu"):
        replay.pseudo_label(model, [copper])
    constants = model.variables["constants"] | {"atomic_energies": np.full((1, 3), np.nan)}
    broken = ForceField(model.config, {**model.variables, "constants": constants}, {}, pool=model.pool)
    with pytest.raises(ValueError, match="x:8: the starting model gives a non-finite"):
        replay.pseudo_label(broken, [data.Labelled(testing.rattled(), energy=1.0, source="x:8")])


def test_new_heads_predict_what_the_copied_head_does(model):
    rng = np.random.default_rng(0)
    two = replay.add_head(model.config, model.variables, name="new")
    params = dict(two[1]["params"])
    for name in ("readouts_0", "readouts_1"):  # let the heads differ
        params[name] = {k: w * (1 + 0.3 * rng.normal(size=w.shape)) for k, w in params[name].items()}
    constants = {**two[1]["constants"], "scale": np.array([1.0, 1.7]), "shift": np.array([0.1, -0.2])}
    start = ForceField(two[0], {**two[1], "params": params, "constants": constants}, {})
    third = ForceField(*replay.add_head(start.config, start.variables, name="third", like="new"), {})
    assert third.config.heads == ("Default", "new", "third")

    def energies(ff):
        return ff.evaluate([testing.rattled()], compute=Compute())[0].energy

    assert abs(energies(start.with_head("new")) - energies(start.with_head("Default"))) > 1e-3
    for head, like in (("Default", "Default"), ("new", "new"), ("third", "new")):
        assert energies(third.with_head(head)) == pytest.approx(energies(start.with_head(like)), abs=1e-9)
    with pytest.raises(ValueError, match="head 'new' exists already"):
        replay.add_head(start.config, start.variables, name="new")
    with pytest.raises(ValueError, match="head to copy None: expected one of Default, new"):
        replay.add_head(start.config, start.variables, name="fourth")
    assert model.variables["params"]["readouts_0"]["linear"].shape == (4, 1)
    assert dataclasses.replace(two[0], heads=("Default",)) == model.config


def test_training_batches_with_replay_share_a_shape_that_evaluation_leaves_alone(folder, student):
    """Salt with one or two cells of silicon of different sizes beside it, in any combination: one compiled step."""
    salt = prepare(data.read_structures(folder / "train.extxyz"), student.config)
    labelled = data.read_structures(folder / "other.extxyz")
    larger = [dataclasses.replace(s, atoms=s.atoms.repeat((2, 1, 1)), forces=None, energy=None) for s in labelled]
    again = prepare([*labelled, *larger], student.config)
    energies = student.variables["constants"]["atomic_energies"]
    training = loader.TrainingSet(student.config, energies, salt, replay=again, batch_size=1, replay_size=2)
    loader.settle(training, 3)
    needed = {graph.round_up(size_of([salt[0], a, b], student.config)) for a in again for b in again if a is not b}
    assert len(needed) > 1
    for items in (salt, again):
        loader.evaluation_graphs(training, items)
    batches = [batch for number in range(3) for batch in loader.epoch(training, number)]
    assert len({(b.graph.nodes.positions.shape, b.graph.senders.shape) for b in batches}) == 1
