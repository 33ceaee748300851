"""Losses: missing labels take no part, shards add up, penalties and force-constant products are what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import phonopy
import pytest
from phonopy.structure.atoms import PhonopyAtoms

from equijax import data, hessian, potential
from equijax.config import Compute
from equijax.data import phonopy_files
from equijax.data.items import Item, batch, prepare, size_of
from equijax.finetune import loss
from equijax.phonons import force_constants

PLAIN = loss.LossConfig(energy_weight=1.0, forces_weight=1.0, stress_weight=1.0)
MSE, HUBER = (dataclasses.replace(PLAIN, loss=kind) for kind in ("mse", "huber"))
ALL = dataclasses.replace(MSE, hessian_weight=1.0)


@pytest.fixture(scope="module")
def items(folder, student):
    return prepare(data.read_structures(folder / "train.extxyz"), student.config)


def labelled(items, student, size=None):
    energies = student.variables["constants"]["atomic_energies"]
    return potential.cast(batch(items, student.config, energies=energies, size=size), "float64")


def terms(student, g, options):
    variables = potential.cast(student.variables, "float64")
    function = jax.jit(lambda v, g: loss.sums(student.config, v, graph=g, options=options))
    return jax.device_get(function(variables, g))


def test_missing_labels_take_no_part_whatever_they_hold(items, student):
    with jax.enable_x64(True):
        size = size_of(items[:2], student.config)
        s = items[1].labelled
        bare = items[1]._replace(labelled=dataclasses.replace(s, energy=None, forces=None, stress=None))
        g = labelled([items[0], bare], student, size)
        broken = with_nan(g)
        options = MSE
        alone = terms(student, labelled(items[:1], student, size), options)
        assert_same(terms(student, broken, options), alone)

        variables = potential.cast(student.variables, "float64")

        def objective(params, g, variables):
            model = {**variables, "params": params}
            return loss.total(loss.sums(student.config, model, graph=g, options=options), options)

        gradient = jax.jit(jax.grad(objective))(variables["params"], broken, variables)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def with_nan(g):
    """The same batch with NaN for every label that does not exist."""

    def broken(value, mask):
        return np.where(mask.reshape(-1, *[1] * (value.ndim - 1)) > 0, value, np.nan)

    nodes, labels = g.nodes.labels, g.globals.labels
    nodes = nodes._replace(forces=broken(nodes.forces, nodes.forces_mask))
    labels = labels._replace(
        energy=broken(labels.energy, labels.energy_mask), stress=broken(labels.stress, labels.stress_mask)
    )
    return g._replace(nodes=g.nodes._replace(labels=nodes), globals=g.globals._replace(labels=labels))


def assert_same(a, b):
    for term, (numerators, count) in b.items():
        np.testing.assert_allclose(a[term][0].sum(), numerators.sum(), rtol=1e-10)
        assert a[term][1] == count


def test_shards_add_up_and_weights_scale(items, student):
    with jax.enable_x64(True):
        size = size_of(items[:2], student.config)
        heavy = items[1]._replace(labelled=dataclasses.replace(items[1].labelled, weight=3.0))
        options = HUBER
        one, other = (terms(student, labelled([i], student, size), options) for i in (items[0], items[1]))
        both = terms(student, labelled([items[0], heavy], student, size), options)
        for term, (numerators, count) in both.items():
            np.testing.assert_allclose(numerators.sum(), one[term][0].sum() + 3 * other[term][0].sum(), rtol=1e-10)
            assert count == one[term][1] + other[term][1]


def test_force_constant_term_compares_hessian_products(items, student):
    atoms = items[0].labelled.atoms
    tangents = np.random.default_rng(0).normal(size=(2, len(atoms), 3))
    expected = np.moveaxis(hessian.hvp(student, atoms, tangents=tangents), 0, 1)
    with jax.enable_x64(True):
        for shift in (0.0, 0.5):
            s = data.Labelled(atoms, tangents=np.moveaxis(tangents, 0, 1), hvp=expected + shift)
            found = terms(student, labelled([Item(s, items[0].edges)], student), ALL)["hvp"]
            np.testing.assert_allclose(found[0].sum() / found[1], shift**2, atol=1e-12)
            assert found[1] == 2 * 3 * len(atoms)


def test_supercells_waves_and_forces_share_a_batch(items, student, tmp_path):
    """Reference: the model's own force constants, so that the loss is that of the shift put into each label."""
    cell = PhonopyAtoms(numbers=[11, 17], cell=2.8 * (1 - np.eye(3)), scaled_positions=[[0, 0, 0], [0.45, 0.5, 0.5]])
    phonon = phonopy.Phonopy(cell, np.array([[2, 0, 0], [0, 1, 1], [0, -1, 1]]), primitive_matrix=np.eye(3))
    force_constants.force_constants(student, phonon, full=True)
    phonon.save(tmp_path / "phonopy_params.yaml", settings={"force_constants": True})
    reference = phonopy_files.force_constants(tmp_path / "phonopy_params.yaml")
    (whole,), (waves,) = (make(reference, 3, seed=1) for make in (phonopy_files.products, phonopy_files.waves))
    assert len(waves.atoms) == 2 and len(whole.atoms) == 8 and np.abs(waves.q).max() > 0
    shifted = [dataclasses.replace(s, hvp=s.hvp + shift) for s, shift in ((whole, 0.5), (waves, 0.3 - 0.4j))]
    with jax.enable_x64(True):
        g = labelled([items[0], *prepare(shifted, student.config)], student)
        assert g.nodes.labels.hvp.shape[1:] == (3, 2, 3)
        numerators, count = (found := terms(student, g, ALL))["hvp"]
        assert count == 3 * 3 * (8 + 2 * 2)
        np.testing.assert_allclose(numerators[:3], [0, 3 * 3 * 8 * 0.25, 3 * 3 * 2 * 0.25], rtol=1e-5, atol=1e-9)
        alone = student.evaluate([items[0].labelled.atoms], compute=Compute())[0]
        np.testing.assert_allclose(
            found["forces"][0][0], ((alone.forces - items[0].labelled.forces) ** 2).sum(), rtol=1e-6
        )

        variables = jax.tree.map(jnp.asarray, potential.cast(student.variables, "float64"))

        @jax.jit
        def total(scale):
            params = jax.tree.map(lambda w: w * scale, variables["params"])
            model = {**variables, "params": params}
            options = loss.LossConfig("mse", 0.0, 0.0, 0.0, 1.0)
            return loss.sums(student.config, model, graph=g, options=options)["hvp"].numerators.sum()

        slope = jax.jit(jax.grad(total))(1.0)
        np.testing.assert_allclose(slope, (total(1 + 1e-5) - total(1 - 1e-5)) / 2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", loss.PENALTIES)
def test_penalties(kind):
    d = jnp.array([-3.0, -0.005, 0.0, 0.02])
    expected = {"mse": d**2, "mae": jnp.abs(d)}.get(kind, optax.huber_loss(d, delta=0.01))
    np.testing.assert_allclose(loss.PENALTIES[kind](d, 0.01), expected, rtol=1e-5)


def test_universal_loss_softens_on_large_forces(items, student):
    with jax.enable_x64(True):
        huge = dataclasses.replace(items[0].labelled, forces=np.full((8, 3), 200.0))  # norm 346: factor 0.1
        g = labelled([items[0]._replace(labelled=huge)], student)
        huber, universal = (
            terms(student, g, dataclasses.replace(PLAIN, loss=k))["forces"][0].sum() for k in ("huber", "universal")
        )
        np.testing.assert_allclose(universal / huber, 0.1, rtol=1e-3)


@pytest.mark.parametrize("change", [{"loss": "mes"}, {"forces_weight": -1.0}])
def test_impossible_options_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(map(str, change.values())))):
        loss.LossConfig(**change)
