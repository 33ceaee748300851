"""Folds the low-rank adapters that mace-torch's `--lora` left in a model into the weights they adapt."""

from typing import Any

import numpy as np

from convert.errors import UnreadableModel, UnsupportedModel, shorten
from convert.torch_model import TorchModel, attribute

LORA = "mace.modules.lora."
# Each wraps the layer `base`, beside `lora_A` and `lora_B`: a layer of a radial MLP, or an equivariant linear layer.
WRAPPERS = {f"{LORA}LoRAFCLayer": False, f"{LORA}LoRAO3Linear": True}  # class -> equivariant


def fold(model: TorchModel) -> TorchModel:
    """`model` without adapters: weights W + s A B, and every wrapped layer under the name of its wrapper.

    Source: mace-torch, `mace.modules.lora`, whose merge computes the same.

    Raises:
      UnreadableModel: an adapter that does not fit its layer.
      UnsupportedModel: an adapter of a layer that is not in these models.
    """
    wrappers = {name: cls for name, cls in model.classes.items() if cls.startswith(LORA)}
    merged = {}
    for name, cls in wrappers.items():
        if cls not in WRAPPERS:
            raise UnsupportedModel(
                f"{shorten(name)}: adapters of class {shorten(cls)} are not supported; fold them in with "
                "mace.modules.lora.merge_lora_weights(model), torch.save the model and convert that"
            )
        merged[f"{name}.weight"] = _merged(model, name, equivariant=WRAPPERS[cls])
    if not wrappers:
        return model

    def unwrapped(entries: dict[str, Any]) -> dict[str, Any]:
        return {new: value for name, value in entries.items() if (new := _unwrapped(name, wrappers)) is not None}

    return TorchModel(
        classes=unwrapped(model.classes),
        tensors=unwrapped(model.tensors) | merged,
        parameters=frozenset(unwrapped(dict.fromkeys(model.parameters))),
        attributes=unwrapped(model.attributes),
    )


def _unwrapped(name: str, wrappers: dict[str, str]) -> str | None:
    """The name without the `base` of a wrapper; None for what belongs to the wrapper itself."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        if ".".join(parts[:i]) in wrappers:
            return ".".join(parts[:i] + parts[i + 1 :]) if parts[i : i + 1] == ["base"] else None
    return name


def _merged(model: TorchModel, name: str, *, equivariant: bool) -> np.ndarray:
    """W + s A B in float64, rounded to the type of W as mace-torch does."""
    keys = [f"{name}.base.weight", *(f"{name}.lora_{x}{'.weight' if equivariant else ''}" for x in "AB")]
    scaling = model.attributes.get(f"{name}.scaling")
    if not isinstance(scaling, float) or not all(key in model.tensors for key in keys):
        raise UnreadableModel(f"{shorten(name)}: an adapter needs a scaling and the tensors {', '.join(keys)[:400]}")
    base, a, b = (model.tensors[key].astype(np.float64) for key in keys)
    try:
        delta = _equivariant(model, name, a=a, b=b) if equivariant else a @ b
        merged = base + scaling * delta.reshape(base.shape)
    except (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError) as error:
        shapes = ", ".join(str(x.shape) for x in (base, a, b))
        raise UnreadableModel(f"{shorten(name)}: adapter tensors of shapes {shapes} do not fit: {error}") from None
    return merged.astype(model.tensors[keys[0]].dtype)


def _equivariant(model: TorchModel, name: str, *, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A B of every path of an e3nn linear layer, in its own normalisation.

    A path is (irrep in, irrep out, (fan-in, fan-out), weight); the layer multiplies its block by the weight.
    """
    layers = ("base", "lora_A", "lora_B")
    base, down, up = (attribute(model, f"{name}.{layer}.instructions", kind=tuple) for layer in layers)
    first = {i: (block, middle, weight) for (i, middle, _, weight), block in _blocks(down, a)}
    second = {(i, j): (block, weight) for (i, j, _, weight), block in _blocks(up, b)}
    deltas = []
    for i, j, shape, weight in base:
        delta = np.zeros(shape)
        if i in first and (first[i][1], j) in second:
            left, middle, weight_in = first[i]
            right, weight_out = second[middle, j]
            delta = left @ right * (weight_in * weight_out / weight)
        deltas.append(delta.reshape(-1))
    return np.concatenate(deltas)


def _blocks(paths: Any, weights: np.ndarray) -> list[tuple[tuple, np.ndarray]]:
    """Paths of a linear layer with the matrices that its flat weights hold in their order."""
    ends = np.cumsum([rows * columns for _, _, (rows, columns), _ in paths])
    pieces = np.split(weights, ends[:-1])
    return [(path, piece.reshape(path[2])) for path, piece in zip(paths, pieces, strict=True)]
