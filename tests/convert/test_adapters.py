"""Adapters that mace-torch's LoRA left in a file: folded into the weights they adapt, or refused by name."""

import dataclasses
import math

import numpy as np
import pytest

from convert.adapters import fold
from convert.errors import UnreadableModel, UnsupportedModel
from convert.mapping import source_dtype, to_flax
from convert.torch_model import TorchModel

DENSE, LINEAR = "interactions.0.conv_tp_weights.layer1", "interactions.1.linear_up"
RANK, SCALING, C = 2, 1.5, 24


def wrapped(model: TorchModel, name: str, cls: str, *, tensors: dict, attributes: dict) -> TorchModel:
    """`model` with the module `name` inside an adapter, as mace-torch saves it."""

    def moved(entries: dict) -> dict:
        inner = {n: f"{name}.base{n.removeprefix(name)}" for n in entries if f"{n}.".startswith(f"{name}.")}
        return {inner.get(n, n): value for n, value in entries.items()}

    tensors = {f"{name}.{key}": value.astype(np.float32) for key, value in tensors.items()}
    return TorchModel(
        classes=moved(model.classes) | {name: f"mace.modules.lora.{cls}", f"{name}.lora_A": "e3nn.o3._linear.Linear"},
        tensors=moved(model.tensors) | tensors,
        parameters=frozenset(moved(dict.fromkeys(model.parameters))) | frozenset(tensors),
        attributes=moved(model.attributes)
        | {f"{name}.{key}": value for key, value in attributes.items()}
        | {f"{name}.scaling": SCALING, f"{name}._cached_delta": None},
    )


@pytest.fixture(scope="module")
def adapted(mini) -> tuple[TorchModel, dict[str, np.ndarray]]:
    """The shipped model with an adapter on a radial layer and one on an equivariant layer, and their tensors."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(64, RANK)), rng.normal(size=(RANK, 64))
    down, up = rng.normal(size=2 * C * RANK), rng.normal(size=2 * RANK * C)
    width = mini.tensors[f"{DENSE}.weight"].shape
    model = wrapped(
        mini, DENSE, "LoRAFCLayer", tensors={"lora_A": a[: width[0]], "lora_B": b[:, : width[1]]}, attributes={}
    )
    paths = {
        "lora_A.instructions": tuple((l, l, (C, RANK), 1 / math.sqrt(C)) for l in (0, 1)),
        "lora_B.instructions": tuple((l, l, (RANK, C), 1 / math.sqrt(RANK)) for l in (0, 1)),
    }
    tensors = {"lora_A.weight": down, "lora_B.weight": up}
    model = wrapped(model, LINEAR, "LoRAO3Linear", tensors=tensors, attributes=paths)
    return model, {"a": a[: width[0]], "b": b[:, : width[1]], "down": down, "up": up}


def test_names_are_those_of_the_model_without_adapters(mini, adapted):
    folded = fold(adapted[0])
    assert folded.classes == mini.classes and folded.attributes == mini.attributes
    assert set(folded.tensors) == set(mini.tensors) and folded.parameters == mini.parameters
    assert fold(mini) is mini
    assert source_dtype(adapted[0]) == "float32"


def test_folded_layers_compute_what_layer_and_adapter_compute(mini, adapted):
    model, lora = adapted
    _, variables = to_flax(model)
    _, start = to_flax(mini)
    rng = np.random.default_rng(1)
    new, old = (v["params"]["interactions_0"]["radial_mlp"]["layer1"] for v in (variables, start))
    x = rng.normal(size=(5, old.shape[0]))
    np.testing.assert_allclose(x @ new, x @ old + SCALING * (x @ lora["a"]) @ lora["b"], rtol=1e-5, atol=1e-4)
    x = rng.normal(size=(5, C))
    for l in (0, 1):
        new, old = (v["params"]["interactions_1"]["linear_up"][f"l{l}"] for v in (variables, start))
        down = lora["down"].reshape(2, C, RANK)[l] / math.sqrt(C)
        up = lora["up"].reshape(2, RANK, C)[l] / math.sqrt(RANK)
        wanted = x @ old / math.sqrt(C) + SCALING * (x @ down) @ up
        np.testing.assert_allclose(x @ new / math.sqrt(C), wanted, rtol=1e-5, atol=1e-4)
    untouched = variables["params"]["interactions_0"]["linear_up"]["l0"]
    np.testing.assert_array_equal(untouched, start["params"]["interactions_0"]["linear_up"]["l0"])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({f"{DENSE}.lora_A": np.zeros((3, 3))}, DENSE),
        ({f"{LINEAR}.lora_B.weight": np.zeros(7)}, LINEAR),
        ({f"{LINEAR}.base.weight": np.zeros(())}, LINEAR),
    ],
)
def test_adapters_that_do_not_fit_are_named(adapted, change, name):
    model = dataclasses.replace(adapted[0], tensors=adapted[0].tensors | change)
    with pytest.raises(UnreadableModel, match=name):
        fold(model)


def test_incomplete_and_other_adapters_are_named(mini, adapted):
    tensors = {name: value for name, value in adapted[0].tensors.items() if name != f"{DENSE}.lora_A"}
    with pytest.raises(UnreadableModel, match="lora_A"):
        fold(dataclasses.replace(adapted[0], tensors=tensors))
    with pytest.raises(UnsupportedModel, match="merge_lora_weights"):
        fold(wrapped(mini, DENSE, "LoRADenseLinear", tensors={}, attributes={}))
