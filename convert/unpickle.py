"""Interpreter of the pickle stream in a torch file that builds inert data and can run nothing.

A pickle is a program for a stack machine: its REDUCE, NEWOBJ and BUILD opcodes call whatever the file names. Here they
only *record* the name and the arguments (`Instance`), so that tensors and hyper-parameters can be read without torch,
mace or e3nn and without trusting the file. The standard `pickle` module is not used: its machine imports and calls, and
a twenty-byte stream can make it allocate gigabytes.

Not checked here: that the recorded classes form a MACE model; see `convert.torch_model` and `convert.mapping`.
"""

import pickletools
import warnings
from collections.abc import Callable
from typing import Any

from convert.errors import Budget, UnreadableModel, UnsupportedModel, shorten
from convert.families import family
from convert.records import (
    ALLOWED_NAMES,
    ALLOWED_PACKAGES,
    BUILDERS,
    MAX_NAME,
    Builder,
    Global,
    Instance,
    copied_bytes,
    hashable,
)

OPCODE_BYTES = 256  # the largest object one instruction makes (an empty set, with its places on the stack and in memo)
MAX_INTEGER_BITS = 128  # so that every integer has a float and a decimal form


def interpret(
    data: bytes, persistent_load: Builder, *, builders: dict[str, Builder], budget: Budget | None = None
) -> object:
    """The object described by the pickle `data`, made of dicts, lists, tuples, numbers, strings and `Instance`s.

    Args:
      data: the pickle stream.
      persistent_load: turns a persistent id (torch: the description of a storage) into a value.
      builders: dotted name -> function, for the callables whose result is data, such as
        `torch._utils._rebuild_tensor_v2`; called with the recorded arguments.
      budget: what the objects may take; None: that of a file of this size.

    Raises:
      UnreadableModel: broken stream, an opcode torch never writes, or a name outside the allow-list.
      UnsupportedModel: such a name, of a known family of models.
    """
    machine = _Machine(persistent_load, BUILDERS | builders, budget or Budget(len(data)))
    position = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # backslashes in names: refused by the allow-list
            for opcode, arg, at in pickletools.genops(data):
                position = at or 0
                if opcode.name == "STOP":
                    return machine.pop()
                machine.step(opcode.name, arg)
    except UnreadableModel as error:
        raise UnreadableModel(f"pickle byte {position}: {error}") from None
    except UnsupportedModel:
        raise
    except (ValueError, AssertionError) as error:  # how pickletools reports a broken stream
        raise UnreadableModel(f"pickle byte {position}: broken stream: {str(error)[:200]}") from None
    raise UnreadableModel("pickle stream ends without its STOP instruction")


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    """
    BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES
    BINBYTES8
    """.split()
)
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Stack, marks and memo of one pickle stream."""

    def __init__(self, persistent_load: Builder, builders: dict[str, Builder], budget: Budget) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, object] = {}
        self.budget = budget
        self.persistent_load = persistent_load
        self.builders = builders

    def step(self, name: str, arg: Any) -> None:
        """Carry out one instruction."""
        self.budget.spend(OPCODE_BYTES)
        if name in _LITERALS:
            if isinstance(arg, int) and arg.bit_length() > MAX_INTEGER_BITS:
                raise UnreadableModel(f"an integer of {arg.bit_length()} bits")
            self.stack.append(arg)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
        elif name in _STEPS:
            _STEPS[name](self, arg)
        else:
            raise UnreadableModel(f"instruction {name} is not one that torch.save writes")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise UnreadableModel("instruction needs a value the stack does not hold")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_mark(self) -> list:
        values = []
        while self.stack and self.stack[-1] is not _MARK:
            values.append(self.stack.pop())
        if not self.stack:
            raise UnreadableModel("instruction needs a mark the stack does not hold")
        self.stack.pop()
        return values[::-1]

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        """Push a memo entry."""
        if index not in self.memo:
            raise UnreadableModel(f"memo entry {index} is read before it is written")
        self.stack.append(self.memo[index])

    def name(self, module: object, name: object) -> None:
        """Push the name of a class or function, which is looked up nowhere; refused unless MACE files need it."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnreadableModel("a global name that is not text")
        if len(module) + len(name) > MAX_NAME:
            raise UnreadableModel(f"a global name of more than {MAX_NAME} characters: {shorten(module + name)}")
        dotted = f"{module}.{name}"
        if module.split(".")[0] not in ALLOWED_PACKAGES and dotted not in ALLOWED_NAMES:
            if known := family(dotted):
                raise UnsupportedModel(known)
            raise UnreadableModel(
                f"the file asks for {shorten(dotted)}, which no MACE model needs; nothing was run. "
                "Do not open this file with torch.load unless you trust its source"
            )
        self.stack.append(Global(module, name))

    def call(self, args: object, kwargs: object = None) -> None:
        """Replace a name by what its builder here makes of the arguments, or by a record of the call."""
        function = self.pop()
        if not isinstance(function, Global):
            raise UnreadableModel(f"a call of something that is not a named class or function: {shorten(function)}")
        if not isinstance(args, tuple) or (kwargs is not None and not isinstance(kwargs, dict)):
            raise UnreadableModel(f"arguments of {function.dotted} are not a tuple")
        self.budget.spend(copied_bytes(kwargs))
        builder = self.builders.get(function.dotted)
        if builder is None:
            self.stack.append(Instance(function.dotted, args, state=dict(kwargs or {})))
            return
        self.budget.spend(copied_bytes(args) + sum(map(copied_bytes, args)))
        try:
            self.stack.append(builder(*args))
        except (UnreadableModel, UnsupportedModel):
            raise
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError, UnicodeError) as error:
            raise UnreadableModel(f"{function.dotted}: arguments of the wrong form ({str(error)[:120]})") from None

    def build(self) -> None:
        """Keep the state of an object with its record."""
        state, target = self.pop(), self.top()
        if isinstance(target, dict):
            return  # an OrderedDict's own attributes, such as the version notes of a state_dict
        if not isinstance(target, Instance):
            raise UnreadableModel(f"state set on {shorten(target)}")
        parts = state if isinstance(state, tuple) else (state,)  # (__dict__, slots)
        self.budget.spend(copied_bytes(parts) + sum(map(copied_bytes, parts)))
        for part in parts:
            if isinstance(part, dict):
                target.state.update(part)
            elif part is not None:
                target.items.append(part)

    def set_items(self, values: list) -> None:
        target = self.top()
        mapping = target.mapping if isinstance(target, Instance) else target
        if not isinstance(mapping, dict) or len(values) % 2:
            raise UnreadableModel(f"key-value pairs stored in {shorten(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            mapping[hashable(key)] = value

    def append(self, values: list) -> None:
        target = self.top()
        items = target.items if isinstance(target, Instance) else target
        if not isinstance(items, list):
            raise UnreadableModel(f"elements appended to {shorten(target)}")
        items.extend(values)

    def add(self, values: list) -> None:
        target = self.top()
        if not isinstance(target, set):
            raise UnreadableModel(f"elements added to {shorten(target)}")
        target.update(hashable(v) for v in values)


def _persistent(machine: _Machine, _: object) -> None:
    machine.stack.append(machine.persistent_load(machine.pop()))


def _stack_global(machine: _Machine, _: object) -> None:
    name = machine.pop()
    machine.name(machine.pop(), name)


def _new_with_keywords(machine: _Machine, _: object) -> None:
    kwargs = machine.pop()
    machine.call(machine.pop(), kwargs)


_STEPS: dict[str, Callable] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": lambda m, _: m.stack.append(_MARK),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.stack.append(m.top()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_mark())),
    "LIST": lambda m, _: m.stack.append(m.pop_mark()),
    "DICT": lambda m, _: (values := m.pop_mark(), m.stack.append({}), m.set_items(values)),
    "FROZENSET": lambda m, _: m.stack.append(frozenset(hashable(v) for v in m.pop_mark())),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.add(m.pop_mark()),
    "BINPUT": lambda m, index: m.put(index),
    "LONG_BINPUT": lambda m, index: m.put(index),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "BINGET": lambda m, index: m.get(index),
    "LONG_BINGET": lambda m, index: m.get(index),
    "GLOBAL": lambda m, pair: m.name(*pair.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda m, _: m.call(m.pop()),
    "NEWOBJ": lambda m, _: m.call(m.pop()),
    "NEWOBJ_EX": _new_with_keywords,
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": _persistent,
}
