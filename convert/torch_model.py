"""Flattens the module tree of a torch file to named tensors, class names and plain attributes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.archive import Tensor, read_archive
from convert.errors import Budget, UnreadableModel, UnsupportedModel, one_line, shorten
from convert.families import family, form_of_dict
from convert.records import Global, Instance

MAX_DEPTH = 50
MAX_NAME = 200  # characters of one component of a name
# What is counted against the budget, in bytes: a tree that shares parts unfolds, and they are counted once a name.
NAME_BYTES = 256  # the entry of a module, tensor or attribute, beside its name
VALUE_BYTES = 64  # a plain value in an attribute
NUMBER_BYTES = 48  # an element of a tensor in float64, with the copies that its conversion makes
MAX_PLAIN = 200  # elements of a tensor that is an attribute and no buffer, such as atomic_numbers of old files

# Attributes of every torch module and of compiled code, which hold no hyper-parameters.
_MACHINERY = frozenset(
    """
    training _parameters _buffers _modules _non_persistent_buffers_set _is_full_backward_hook _backward_hooks
    _backward_pre_hooks _forward_hooks _forward_hooks_with_kwargs _forward_pre_hooks _forward_hooks_always_called
    _forward_pre_hooks_with_kwargs _state_dict_hooks _state_dict_pre_hooks _load_state_dict_pre_hooks
    _load_state_dict_post_hooks __codegen__ _profiling_str _prof_str
    """.split()
)
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
      UnreadableModel: damaged or hostile.
      UnsupportedModel: a known kind of file that is no whole model (a checkpoint, a state_dict, compiled code).
    """
    with one_line():
        budget = Budget(path.stat().st_size)
        top = read_archive(path, budget)
        try:
            return flatten(top, budget)
        except (UnreadableModel, UnsupportedModel) as error:
            raise type(error)(f"{path}: {error}") from None


def flatten(top: object, budget: Budget | None = None) -> TorchModel:
    """`TorchModel` of the recorded top-level object of a file.

    Args:
      top: from `convert.archive.read_archive`.
      budget: what the model may take; None: that of a small file.

    Raises:
      UnreadableModel: `top` is not a torch module, or its tree is damaged.
      UnsupportedModel: `top` is something else that is known.
    """
    if not isinstance(top, Instance) or "_modules" not in top.state:
        raise _not_a_module(top)
    model = TorchModel({}, {}, frozenset(), {})
    parameters: set[str] = set()
    _walk(top, (), model=model, parameters=parameters, budget=budget or Budget())
    return TorchModel(model.classes, model.tensors, frozenset(parameters), model.attributes)


def _not_a_module(top: object) -> UnreadableModel | UnsupportedModel:
    found, form = shorten(top), None
    if isinstance(top, dict):
        keys = [key for key in top if isinstance(key, str)]
        found = f"a dict with keys {', '.join(shorten(key, 40) for key in keys[:6])}"
        form = form_of_dict(keys, tensors=bool(top) and all(isinstance(value, Tensor) for value in top.values()))
    elif isinstance(top, list | tuple) and top and all(isinstance(x, Instance) and "_modules" in x.state for x in top):
        form = "several models"
    elif isinstance(top, Instance):
        found, form = shorten(top.cls), top.cls
    known = family(form) if form else None
    return UnsupportedModel(f"{known} ({found})") if known else UnreadableModel(f"no torch module, but {found}")


def _walk(module: Instance, path: tuple[str, ...], *, model: TorchModel, parameters: set[str], budget: Budget) -> None:
    """Enter a module and all below it under their names; every name is paid for before it is made."""
    name = ".".join(path)
    if len(path) > MAX_DEPTH:
        raise UnreadableModel(f"module tree deeper than {MAX_DEPTH} at {shorten(name)}")
    budget.spend(NAME_BYTES + len(name))
    model.classes[name] = module.cls
    if module.cls.startswith(_COMPILED):
        return
    prefix = f"{name}." if name else ""
    entry = NAME_BYTES + len(prefix) + MAX_NAME
    for kind in ("_parameters", "_buffers"):
        for key, value in _children(module, name, kind=kind, budget=budget).items():
            if not isinstance(value, Tensor):
                raise UnreadableModel(f"{prefix}{key} is {shorten(value)}, expected a tensor")
            budget.spend(entry + NUMBER_BYTES * value.array.size)
            model.tensors[prefix + key] = value.array
            if kind == "_parameters":
                parameters.add(prefix + key)
    for key, value in module.state.items():
        budget.spend(VALUE_BYTES)
        if isinstance(key, str) and len(key) <= MAX_NAME and key not in _MACHINERY:
            budget.spend(entry)
            model.attributes[prefix + key] = _plain(value, budget)
    for key, value in _children(module, name, kind="_modules", budget=budget).items():
        if not isinstance(value, Instance):
            raise UnreadableModel(f"{prefix}{key} is {shorten(value)}, expected a module")
        _walk(value, (*path, key), model=model, parameters=parameters, budget=budget)


def _children(module: Instance, name: str, *, kind: str, budget: Budget) -> dict[str, object]:
    """The entries of `_parameters`, `_buffers` or `_modules` that are not None; torch allows no name with a dot."""
    found = module.state.get(kind)
    if found is None:
        return {}
    budget.spend(VALUE_BYTES * len(found) if isinstance(found, dict) else 0)
    named = isinstance(found, dict) and all(isinstance(key, str) and 0 < len(key) <= MAX_NAME for key in found)
    if not named or any("." in key for key in found):
        raise UnreadableModel(f"{kind} of module {shorten(name)} ({shorten(module.cls)}) is not a dict of names")
    return {key: value for key, value in found.items() if value is not None}


def _plain(value: object, budget: Budget, *, depth: int = 0) -> object:
    """`value` as plain data; collections nested deeper than e3nn's instruction lists become `Opaque`."""
    budget.spend(VALUE_BYTES)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Global):
        return value.dotted
    if isinstance(value, Tensor) and value.array.size <= MAX_PLAIN:
        value = value.array.item() if value.array.size == 1 else value.array.tolist()
        return _plain(value, budget, depth=depth)
    if isinstance(value, Instance) and value.cls == "e3nn.o3._irreps.Irreps":
        return _irreps(value, budget)
    if isinstance(value, Instance) and value.cls.endswith(".Instruction"):
        value = value.args  # a named tuple of e3nn: (i_in, ..., path_weight, path_shape)
    if isinstance(value, dict) and all(isinstance(key, str) and len(key) <= MAX_NAME for key in value):
        value = tuple(value.items())  # such as embedding_specs
    if isinstance(value, list | tuple) and depth < 4:
        return tuple(_plain(item, budget, depth=depth + 1) for item in value)
    return Opaque(value.cls if isinstance(value, Instance) else type(value).__name__)


def _irreps(value: Instance, budget: Budget) -> str:
    """e3nn Irreps as text, such as 128x0e+128x1o."""
    parts = []
    for entry in _items(value):
        budget.spend(VALUE_BYTES)
        mul, irrep = (*_items(entry)[:2], None, None)[:2]
        degree, parity = (*_items(irrep)[:2], None, None)[:2]
        if type(mul) is not int or type(degree) is not int or type(parity) is not int or abs(parity) != 1:
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


def attribute(model: TorchModel, name: str, *, kind: type, default: object = ...) -> Any:
    """The attribute `name`, which must be of type `kind`; `default` where old files lack it."""
    value = model.attributes.get(name, default)
    if value is ...:
        raise UnreadableModel(f"attribute {name} is missing; every MACE model has it")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UnreadableModel(f"attribute {name} is {shorten(value)}, expected {kind.__name__}")
    return value


def tensor(model: TorchModel, name: str) -> np.ndarray:
    """The parameter or buffer `name`."""
    if name not in model.tensors:
        raise UnreadableModel(f"tensor {name} is missing")
    return model.tensors[name]


def scalar(model: TorchModel, name: str) -> float:
    """The value of the one-element tensor `name`."""
    value = tensor(model, name)
    if value.size != 1 or not np.isfinite(value).all():
        raise UnreadableModel(f"tensor {name} of shape {value.shape} is not one finite number")
    return float(value.reshape(()))


def expect(name: str, found: object, *, wanted: object) -> None:
    """Raise unless a value of the file is the only one supported."""
    same = found == wanted
    if isinstance(wanted, float) and isinstance(found, int | float):
        same = math.isclose(found, wanted, rel_tol=1e-6)
    if not same:
        raise UnsupportedModel(f"{name} = {str(found)[:300]} is not supported; expected {str(wanted)[:300]}")


def expect_constant(model: TorchModel, name: str, *, wanted: float) -> None:
    """As `expect` for a one-element tensor, which a file of lower precision holds rounded.

    A number of at most 11 significant bits (8: bfloat16) went through half precision; r_max was rounded before it too.
    """
    found = scalar(model, name)
    mantissa = math.frexp(found)[0]
    bits = next((bits for bits in (8, 11) if (mantissa * 2**bits).is_integer()), 20)
    if not math.isclose(found, wanted, rel_tol=2.0 ** (1 - bits)):
        raise UnsupportedModel(f"{name} = {found} is not supported; expected {wanted}")
