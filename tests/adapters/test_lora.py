"""Adapters: exact at the start, low rank per path, merged = unmerged, equivariant, small, tied to their backbone."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from equijax import potential, pytrees, testing
from equijax.adapters import lora
from equijax.config import Compute
from equijax.errors import InputError
from equijax.forcefield import ForceField
from tests.adapters.samples import ROWS, trained


@pytest.fixture
def base(student) -> ForceField:
    return student


def with_params(base, params) -> ForceField:
    return ForceField(base.config, {**base.variables, "params": params}, {}, None, base.pool)


def test_nothing_changes_before_training(base):
    params = base.variables["params"]
    for start in (
        lora.init_lora(params, 2, alpha=2.0),
        lora.init_lora(params, 0.5, alpha=1.0, rows=ROWS),
        lora.init_delta(params),
    ):
        with jax.enable_x64(True):
            after = jax.jit(lora.apply)(params, start)
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(params), strict=True))


@pytest.mark.parametrize("rank", [1, 2])
def test_rank_of_every_path_and_species_is_bounded(base, rank):
    params, changed = base.variables["params"], trained(base, rank)
    merged = pytrees.paths_of(lora.merge(base.variables, changed)["params"])
    for path, before in pytrees.paths_of(params).items():
        axis = lora.layout(path, before.ndim).axis
        change = merged[path] - before
        stack = change[None] if axis is None else np.moveaxis(change, axis, 0)
        stack = stack[:, None] if stack.ndim == 2 else stack
        for i, matrix in enumerate(stack):
            bound = min(rank, *matrix.shape) if "A" in changed.arrays.get(path, {}) else min(matrix.shape)
            assert np.linalg.matrix_rank(matrix, tol=1e-10) <= bound, f"{path}[{i}]"
        if axis is not None and lora.layout(path, before.ndim).species:
            assert not stack[1].any(), f"{path}: the species that is not adapted changed"
            assert stack[0].any() and stack[2].any()


def test_merged_equals_unmerged(base):
    changed = trained(base)
    merged = lora.merge(base.variables, changed)
    with jax.enable_x64(True):
        params = jax.jit(lora.apply)(base.variables["params"], jax.tree.map(lambda x: x.astype(np.float64), changed))
    atoms = [testing.rattled()]
    a = with_params(base, merged["params"]).evaluate(atoms, compute=Compute())[0]
    b = with_params(base, jax.tree.map(np.asarray, params)).evaluate(atoms, compute=Compute())[0]
    original = base.evaluate(atoms, compute=Compute())[0]
    tolerance = testing.TOLERANCE["float64"]
    assert abs(a.energy - b.energy) <= tolerance["energy"] * len(atoms[0])
    np.testing.assert_allclose(a.forces, b.forces, rtol=0, atol=tolerance["forces"])
    assert abs(a.energy - original.energy) > 1e-3
    back = pytrees.paths_of(lora.unmerge(merged, changed))
    for path, x in pytrees.paths_of(base.variables).items():
        np.testing.assert_allclose(back[path], x, rtol=0, atol=1e-12, err_msg=path)


def test_equivariant_with_any_adapters(base):
    adapted = with_params(base, lora.merge(base.variables, trained(base, 2, scale=0.5))["params"])
    testing.assert_equivariant(
        lambda atoms: adapted.evaluate([atoms], compute=Compute())[0],
        testing.rattled(),
        tolerance=testing.TOLERANCE["float64"],
    )


def test_gradients_reach_every_adapter_and_nothing_else(base):
    start = trained(base)
    values = jax.tree.leaves(
        jax.jit(jax.grad(lambda a: _sum_of_squares(lora.apply(base.variables["params"], a))))(start)
    )
    assert len(values) == len(jax.tree.leaves(start)) and all(np.any(v) for v in values)


def _sum_of_squares(tree):
    return sum((x**2).sum() for x in jax.tree.leaves(tree))


def test_parameters_of_the_published_shape():
    """MACE-MP-0b3-medium by its shapes: below a tenth of what is adapted at rank 4, for all species or for two."""
    params = published_shapes()
    total = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert total == 9_063_204
    for rows in (None, (10, 16)):
        rank_4 = jax.eval_shape(lambda rows=rows: lora.init_lora(params, 4, alpha=4.0, rows=rows))
        counts = lora.count(params, rank_4)
        assert sum(c.trainable for c in counts) < 0.1 * sum(c.adapted for c in counts)
        assert all(c.trainable <= c.adapted for c in counts)
    assert sum(c.trainable for c in counts) < 60_000  # a file of a few hundred kilobytes for one material
    assert "8.06 % of the" in lora.table(params, rank_4)


def published_shapes(Z=89, C=128, U=64, B=10, M=16):
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    def per_degree(*shapes):
        return {f"l{l}": array(*s) for l, s in enumerate(shapes)}

    def radial(paths):
        return {"layer0": array(B, U), "layer1": array(U, U), "layer2": array(U, U), "layer3": array(U, paths, C)}

    def contraction(L, *paths):
        return {f"contraction_l{L}": {f"l{L}_nu{d}": array(Z, p, C) for d, p in enumerate(paths, 1)}}

    square, skip = (C, C), (C, Z, C)
    return {
        "node_embedding": array(Z, C),
        "interactions_0": {
            "linear_up": per_degree(square),
            "radial_mlp": radial(4),
            "density": array(B, 1),
            "linear": per_degree(*[(1, C, C)] * 4),
            "skip_tp": per_degree(*[skip] * 4),
        },
        "products_0": {**contraction(0, 1, 4, 23), **contraction(1, 1, 6, 51), "linear": per_degree(square, square)},
        "interactions_1": {
            "linear_up": per_degree(square, square),
            "radial_mlp": radial(10),
            "density": array(B, 1),
            "linear": per_degree(*[(p, C, C) for p in (2, 3, 3, 2)]),
            "skip_tp": per_degree(skip),
        },
        "products_1": {**contraction(0, 1, 4, 23), "linear": per_degree(square)},
        "readouts_0": {"linear": array(C, 1)},
        "readouts_1": {"linear_1": array(C, M), "linear_2": array(M, 1)},
    }


def test_default_targets_are_everything_but_density(base):
    paths = set(pytrees.paths_of(base.variables["params"]))
    assert paths - set(pytrees.select(paths, lora.TARGETS)) == {p for p in paths if p.endswith("density")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: lora.init_lora(p, 2, alpha=2.0, targets=("linear_up", "readouts_0")),
            r"match no parameter: 'linear_up'; there",
        ),
        (lambda p: lora.init_lora(p, 0, alpha=2.0), "rank 0: expected"),
        (lambda p: lora.init_lora(p, 2.5, alpha=2.0), "rank 2.5: expected"),
        (lambda p: lora.init_lora(p, 2, alpha=2.0, rows=(3,)), r"species rows \(3,\): expected"),
        (lambda p: pytrees.labels(p, {".*": "a", "node_embedding": "b"}), "node_embedding matches 2 rules"),
        (lambda p: pytrees.labels(p, {"interactions_0": "a"}), "matches no rule"),
        (lambda p: pytrees.labels(p, {".*": "a", "embedding": "b"}), "match no parameter: 'embedding'"),
        (lambda p: pytrees.freeze_labels(p, (".*",)), "nothing is left to train"),
        (lambda p: pytrees.freeze_labels(p, ("product_0",)), "match no parameter: 'product_0'"),
    ],
)
def test_patterns_and_options_that_make_no_sense(base, call, message):
    with pytest.raises(InputError, match=message):
        call(base.variables["params"])


def test_labels_partition_the_optimizer(base):
    params = potential.cast(base.variables["params"], np.float32)
    labels = pytrees.freeze_labels(params, ("interactions_0", r".*/skip_tp"))
    tx = optax.multi_transform({"trainable": optax.adamw(0.1, weight_decay=0.1), "frozen": optax.set_to_zero()}, labels)
    updates, _ = tx.update(jax.tree.map(np.ones_like, params), tx.init(params), params)
    for path, label in pytrees.paths_of(labels).items():
        assert (label == "frozen") == (path.startswith("interactions_0") or "/skip_tp/" in path)
        assert np.any(pytrees.paths_of(updates)[path]) == (label == "trainable"), path


def test_adapters_of_another_architecture(base):
    other = dataclasses.replace(trained(base), arrays={"interactions_7/linear_up/l0": {"delta": np.zeros((1, 4, 4))}})
    with pytest.raises(InputError, match="interactions_7/linear_up/l0"):
        lora.apply(base.variables["params"], other)
    with pytest.raises(InputError, match="stack of 2 matrices; this model needs 3"):
        lora.apply(base.variables["params"], dataclasses.replace(trained(base), rows=None))
