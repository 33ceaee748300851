"""Flattens the module tree of a torch file to named tensors, class names and plain attributes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.archive import Tensor, read_archive
from convert.unpickle import Global, Instance, UnreadableModel, shorten

MAX_MODULES = 20_000  # published models have about 200; a shared, nested tree can unfold exponentially
MAX_DEPTH = 50
MAX_NAME = 200  # characters of one component of a name
MAX_VALUES = 1_000_000  # plain values in all attributes together; published models have about 1e4

# Attributes of every torch module and of compiled code, which hold no hyper-parameters.
_MACHINERY = frozenset({
    "training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook",
    "_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks",
    "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "__codegen__", "_profiling_str", "_prof_str",
})  # fmt: skip
# fx graphs and scripted code: derived from the tensors and hyper-parameters beside them, never evaluated here.
_COMPILED = ("torch.fx.", "torch.jit.")


@dataclass(frozen=True)
class TorchModel:
    """A torch module without torch: everything is keyed by torch's own dotted names ("" is the model itself)."""

    classes: dict[str, str]  # module name -> dotted class name
    tensors: dict[str, np.ndarray]  # parameters and buffers
    parameters: frozenset[str]  # names in `tensors` that are parameters of torch, frozen or not
    attributes: dict[str, object]  # plain values: numbers, text, None, tuples; irreps as text; others as `Opaque`


@dataclass(frozen=True)
class Opaque:
    """A value that is not plain data, by its class name."""

    cls: str


def read_model(path: Path) -> TorchModel:
    """Reads a torch `.model` file of a whole module; nothing in it is executed.

    Raises:
      FileNotFoundError: no such file.
      UnreadableModel: damaged, hostile, or not a torch module (a checkpoint, a state_dict, a compiled model).
    """
    top = read_archive(path)
    try:
        return flatten(top)
    except UnreadableModel as error:
        raise UnreadableModel(f"{path}: {error}") from None


def flatten(top: object) -> TorchModel:
    """`TorchModel` of the recorded top-level object of a file.

    Raises:
      UnreadableModel: `top` is not a torch module, or its tree is damaged.
    """
    if not isinstance(top, Instance) or "_modules" not in top.state:
        raise UnreadableModel(f"expected a whole torch module, found {_found(top)}")
    model = TorchModel({}, {}, frozenset(), {})
    parameters: set[str] = set()
    _walk(top, "", model, parameters, _Budget(MAX_VALUES))
    return TorchModel(model.classes, model.tensors, frozenset(parameters), model.attributes)


def _found(top: object) -> str:
    if isinstance(top, dict):
        keys = ", ".join(shorten(key, 40) for key in list(top)[:6])
        return (f"a dict with keys {keys} (a training checkpoint or a state_dict does not say which model it is; "
                "convert the .model file written beside it)")  # fmt: skip
    return top.cls if isinstance(top, Instance) else shorten(top)


class _Budget:
    """Counts plain values: lists that share parts would otherwise unfold without end."""

    def __init__(self, left: int):
        self.left = left

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise UnreadableModel(f"attributes hold more than {MAX_VALUES} values")


def _walk(module: Instance, name: str, model: TorchModel, parameters: set[str], budget: _Budget) -> None:
    if name.count(".") > MAX_DEPTH or len(model.classes) >= MAX_MODULES:
        raise UnreadableModel(f"module tree deeper than {MAX_DEPTH} or above {MAX_MODULES} modules at {shorten(name)}")
    model.classes[name] = module.cls
    if module.cls.startswith(_COMPILED):
        return
    prefix = f"{name}." if name else ""
    for kind in ("_parameters", "_buffers"):
        for key, value in _children(module, name, kind).items():
            if not isinstance(value, Tensor):
                raise UnreadableModel(f"{prefix}{key} is {shorten(value)}, expected a tensor")
            model.tensors[prefix + key] = value.array
            if kind == "_parameters":
                parameters.add(prefix + key)
    for key, value in module.state.items():
        if isinstance(key, str) and len(key) <= MAX_NAME and key not in _MACHINERY:
            model.attributes[prefix + key] = _plain(value, budget)
    for key, value in _children(module, name, "_modules").items():
        if not isinstance(value, Instance):
            raise UnreadableModel(f"{prefix}{key} is {shorten(value)}, expected a module")
        _walk(value, prefix + key, model, parameters, budget)


def _children(module: Instance, name: str, kind: str) -> dict[str, object]:
    """The entries of `_parameters`, `_buffers` or `_modules` that are not None."""
    found = module.state.get(kind) or {}
    if not isinstance(found, dict) or not all(isinstance(key, str) and len(key) <= MAX_NAME for key in found):
        raise UnreadableModel(f"{kind} of module {shorten(name)} ({module.cls}) is not a dict of names")
    return {key: value for key, value in found.items() if value is not None}


def _plain(value: object, budget: _Budget, depth: int = 0) -> object:
    """`value` as plain data; collections nested deeper than e3nn's instruction lists become `Opaque`."""
    budget.spend()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Global):
        return value.dotted
    if isinstance(value, Tensor):
        return value.array.item() if value.array.size == 1 else Opaque("torch.Tensor")
    if isinstance(value, Instance) and value.cls == "e3nn.o3._irreps.Irreps":
        return _irreps(value, budget)
    if isinstance(value, Instance) and value.cls.endswith(".Instruction"):
        value = value.args  # a named tuple of e3nn: (i_in, ..., path_weight, path_shape)
    if isinstance(value, list | tuple) and depth < 4:
        return tuple(_plain(item, budget, depth + 1) for item in value)
    return Opaque(value.cls if isinstance(value, Instance) else type(value).__name__)


def _irreps(value: Instance, budget: _Budget) -> str:
    """e3nn Irreps as text, such as 128x0e+128x1o."""
    parts = []
    for entry in _items(value):
        budget.spend()
        mul, irrep = (*_items(entry), None, None)[:2]
        degree, parity = (*_items(irrep), None, None)[:2]
        if type(mul) is not int or type(degree) is not int or parity not in (1, -1):
            raise UnreadableModel(f"irreps that are not (multiplicity, (l, parity)): {shorten(mul)}, {shorten(degree)}")
        if not (0 < mul < 2**20 and 0 <= degree < 100):
            raise UnreadableModel(f"irreps of multiplicity {shorten(mul)} and degree {shorten(degree)}")
        parts.append(f"{mul}x{degree}{'e' if parity == 1 else 'o'}")
    return "+".join(parts)


def _items(value: object) -> tuple:
    """Contents of a tuple subclass: recorded as its single argument, or as plain arguments."""
    if not isinstance(value, Instance):
        raise UnreadableModel(f"irreps hold {shorten(value)}")
    return value.args[0] if len(value.args) == 1 and isinstance(value.args[0], tuple) else value.args
