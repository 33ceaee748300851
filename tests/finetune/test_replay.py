"""Replay: diverse subsets, labels by the model itself, a second head that starts as a copy."""

import dataclasses

import numpy as np
import pytest
from ase.build import bulk

from equijax import data, testing
from equijax.config import Compute, Embedding
from equijax.errors import InputError
from equijax.finetune import replay
from equijax.forcefield import ForceField

CHARGE = (Embedding("total_charge", 3, classes=5, offset=2),)


@pytest.fixture
def model(student) -> ForceField:
    return student


def test_pseudo_labels_are_the_model_s_own(model):
    old = data.Labelled(testing.rattled(), energy=1.0, forces=np.ones((8, 3)), weight=0.5, source="x:0")
    other = data.Labelled(testing.rattled("Si", "diamond", a=5.4), source="x:1")
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
    with pytest.raises(InputError, match="x:7: atom 0 of element Cu"):
        replay.pseudo_label(model, [copper])
    constants = model.variables["constants"] | {"atomic_energies": np.full((1, 3), np.nan)}
    broken = ForceField(model.config, {**model.variables, "constants": constants}, {}, None, model.pool)
    with pytest.raises(InputError, match="x:8: the starting model gives a non-finite"):
        replay.pseudo_label(broken, [data.Labelled(testing.rattled(), energy=1.0, source="x:8")])


def test_new_heads_predict_what_the_copied_head_does(model):
    rng = np.random.default_rng(0)
    two = replay.add_head(model.config, model.variables, name="new")
    params = dict(two[1]["params"])
    for name in (n for n in params if n.startswith("readouts_")):  # let the heads differ
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
    with pytest.raises(InputError, match="head 'new' exists already"):
        replay.add_head(start.config, start.variables, name="new")
    with pytest.raises(InputError, match="head to copy None: expected one of Default, new"):
        replay.add_head(start.config, start.variables, name="fourth")
    assert model.variables["params"]["readouts_0"]["linear"].shape == (4, 1)
    assert dataclasses.replace(two[0], heads=("Default",)) == model.config


@pytest.mark.parametrize(
    "options", [{"readout": "NonLinearBiasReadoutBlock"}, {"embeddings": CHARGE, "embedding_readout": True}]
)
def test_heads_that_cannot_be_copied_are_refused(options):
    model = testing.random_forcefield(testing.random_config(channels=4, lmax=0, species=(11, 17), **options))
    with pytest.raises(InputError, match="no head can be added to .*readout"):
        replay.add_head(model.config, model.variables, name="new")
