"""The name table and the variables: the shipped model, dtypes, damaged contents."""

import random
import re
import zipfile

import jax
import numpy as np
import pytest

from convert import archive
from convert.errors import UnreadableModel, UnsupportedModel
from convert.mapping import _compress, source_dtype, table, to_flax, u_names
from convert.torch_model import flatten, read_model
from convert.unpickle import interpret
from equijax import potential, testing
from tests.convert.samples import MINI, changed


@pytest.fixture(scope="module")
def initial(mini):
    """What the Flax model itself makes of the config."""
    return potential.init_variables(to_flax(mini)[0])


def test_variables_have_the_shapes_of_the_flax_model(mini, initial):
    config, variables = to_flax(mini)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, initial)
    assert (config.channels, config.hidden_lmax, len(config.species)) == (24, 1, 33)
    assert config.contraction_paths == (((1, 4, 23), (1, 6, 51)), ((1, 4, 23),))


def test_constants_of_the_file_are_those_of_the_flax_model(mini, initial):
    """Radial constants, radii, ZBL, activation factors and U tensors, each computed independently by the model."""
    _, variables = to_flax(mini)
    ours = {k: v for k, v in variables["constants"].items() if k not in ("scale", "shift", "atomic_energies")}
    for path, value in jax.tree_util.tree_leaves_with_path(ours):
        expected = initial["constants"]
        for key in path:
            expected = expected[key.key]
        if "products" in path[0].key:  # the order of paths may differ: compare what it does not change
            value, expected = value @ value.T, expected @ expected.T
        # e3nn estimates activation factors from random numbers: 2e-3; everything else is float32
        rtol = 3e-3 if path[-1].key in ("silu", "gate") else 1e-6
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_every_value_of_the_file_is_placed_once(mini):
    config, variables = to_flax(mini)
    count = sum(a.size for a in jax.tree.leaves(variables["params"]))
    assert count == sum(mini.tensors[name].size for name in mini.parameters)
    last = mini.tensors["interactions.1.conv_tp_weights.layer3.weight"][5, 7 * 24 : 8 * 24]
    np.testing.assert_array_equal(variables["params"]["interactions_1"]["radial_mlp"]["layer3"][5, 7], last)
    degree2 = mini.tensors["products.0.symmetric_contractions.contractions.1.weights.0"]
    np.testing.assert_array_equal(variables["params"]["products_0"]["contraction_l1"]["l1_nu2"], degree2)


@pytest.mark.parametrize(("dtype", "params"), [(None, "float32"), ("float64", "float64"), ("float32", "float32")])
def test_dtype(mini, dtype, params):
    _, variables = to_flax(mini, dtype)
    assert {a.dtype.name for a in jax.tree.leaves(variables["params"])} == {params}
    assert {a.dtype.name for a in jax.tree.leaves(variables["constants"])} == {"float64"}


def test_frozen_parameters_and_devices_change_nothing(mini, tmp_path):
    """mace-torch up to 0.3.5, its calculator and other trainers save every parameter with requires_grad=False.

    Without --save_cpu, training on a GPU leaves its device beside every storage.
    """
    with zipfile.ZipFile(MINI) as file, zipfile.ZipFile(tmp_path / "frozen.model", "w") as frozen:
        for name in file.namelist():
            frozen.writestr(name, freeze(file.read(name)) if name.endswith("data.pkl") else file.read(name))
    found = read_model(tmp_path / "frozen.model")
    assert found.parameters == mini.parameters and len(found.parameters) > 20
    assert source_dtype(found) == "float32"
    jax.tree.map(np.testing.assert_array_equal, to_flax(found)[1], to_flax(mini)[1])


def freeze(stream: bytes) -> bytes:
    """`stream` as from a GPU, with requires_grad (True before the hooks, an empty OrderedDict) of all tensors off."""
    moved = stream.replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00mps")
    assert moved != stream
    frozen, count = re.subn(rb"\x88(?=(?:c|h|j)[^.]{0,40}?\)R)", b"\x89", moved)
    assert count > 20
    return frozen


@pytest.mark.parametrize(
    ("weights", "others", "wanted"),
    [("f4", "f8", "float32"), ("f8", "f4", "float64"), ("f2", "f4", "float32"), ("f2", "f8", "float32")],
)
def test_dtype_is_that_of_the_weights(mini, weights, others, wanted):
    """Buffers of another type change neither the type nor the weights; half precision is widened."""
    half = {n: a.astype("f2").astype(weights) for n, a in mini.tensors.items() if n in mini.parameters}
    rest = {n: a.astype(others) for n, a in mini.tensors.items() if n not in mini.parameters and a.dtype.kind == "f"}
    model = changed(mini, tensors=half | rest)
    variables = to_flax(model)[1]
    assert source_dtype(model) == wanted
    assert {a.dtype.name for a in jax.tree.leaves(variables["params"])} == {wanted}
    total = sum(float(a.astype("f8").sum()) for a in jax.tree.leaves(variables["params"]))
    assert total == pytest.approx(sum(float(a.astype("f8").sum()) for a in half.values()), rel=1e-9)


def test_one_wide_weight_keeps_its_digits(mini):
    name = "interactions.0.linear_up.weight"
    value = mini.tensors[name].astype("f8") + 1e-12
    _, variables = to_flax(changed(mini, tensors={name: value}))
    np.testing.assert_array_equal(variables["params"]["interactions_0"]["linear_up"]["l0"].reshape(-1), value)


def test_missing_and_extra_tensors_are_all_listed(mini):
    drop = {"interactions.1.linear.weight", "radial_embedding.distance_transform.q"}
    extra = {"surprise": np.zeros(3), "interactions.0.linear.bias": np.ones(2, np.float32)}
    with pytest.raises(UnsupportedModel) as caught:
        to_flax(changed(mini, drop=drop, tensors=extra))
    missing, _, rest = str(caught.value).partition("Extra:")
    assert all(name in missing for name in drop) and all(name in rest for name in extra)


def test_table_has_every_name_once(mini):
    config, _ = to_flax(mini)
    rows = table(config)
    names = [row.torch for row in rows] + list(u_names(config))
    paths = [path for row in rows for path, _ in row.parts] + [path for path, _, _ in u_names(config).values()]
    assert len(set(names)) == len(names) and len(set(paths)) == len(paths)


def test_large_couplings_need_many_paths():
    """A few bytes can describe a U tensor whose comparison would take gigabytes."""
    wide = testing.random_config(max_ell=5, contraction_paths=(((1,),), ((1,),)))
    with pytest.raises(UnsupportedModel, match="paths"):
        _compress("U_matrix_3", np.broadcast_to(np.float32(0), (11, 36, 36, 36, 2)), L=5, degree=3, config=wide)


def test_damaged_pickle_never_crashes_the_mapping():
    """Flipped bytes that survive reading: names and hyper-parameters are wrong, and the answer is always an error."""
    with zipfile.ZipFile(MINI) as file:
        pristine = file.read("mini/data.pkl")
        storages = archive._Storages(file, archive._entries(file), "mini/", "<")
        rng = random.Random(2)
        for _ in range(60):
            data = bytearray(pristine)
            for _ in range(rng.choice([1, 2, 4])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            try:
                to_flax(flatten(interpret(bytes(data), storages.load, builders=archive._BUILDERS)))
            except (UnreadableModel, UnsupportedModel) as error:
                assert len(str(error)) < 5000
