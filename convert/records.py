"""What `convert.unpickle` makes of the names in a file: labels, records of calls, and plain data for a few."""

from collections.abc import Callable
from dataclasses import dataclass, field

from convert.errors import UnreadableModel, shorten

ENTRY_BYTES = 128  # an entry copied from one collection to another
MAX_KEY = 16  # elements of a tuple that is a key
MAX_NAME = 1000  # characters of a class or function name

# Whole packages whose names may appear: they become labels, never imports.
ALLOWED_PACKAGES = frozenset({"torch", "e3nn", "mace", "numpy", "opt_einsum_fx"})
_BUILTIN_TYPES = "set frozenset slice complex bytearray object int float bool str bytes list tuple dict".split()
ALLOWED_NAMES = frozenset(
    {"collections.OrderedDict", "collections.defaultdict", "_codecs.encode", "builtins.getattr", "__builtin__.getattr"}
    | {"collections.Counter", "argparse.Namespace", "pathlib.PosixPath"}  # in training checkpoints
    | {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTIN_TYPES}
)

Builder = Callable[..., object]


@dataclass(frozen=True)
class Global:
    """A class or function named by the file, as a label."""

    module: str
    name: str

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Instance:
    """An object the file asked to build: the name of the callable, its arguments and the state set on it later."""

    cls: str
    args: tuple
    state: dict = field(default_factory=dict)
    items: list = field(default_factory=list)
    mapping: dict = field(default_factory=dict)


def copied_bytes(value: object) -> int:
    """What a copy of `value` takes, one level deep."""
    if isinstance(value, str | bytes):
        return 4 * len(value)
    return ENTRY_BYTES * len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 0


def hashable(key: object) -> object:
    """`key` if hashing it is cheap: long or nested tuples can share parts and take exponential time."""
    atoms = key if isinstance(key, tuple) else (key,)
    plain = str | bytes | int | float | Global | Instance | None
    if len(atoms) <= MAX_KEY and all(isinstance(atom, plain) for atom in atoms):
        return key
    raise UnreadableModel(f"{shorten(key)} is used as a key")


def _ordered_dict(pairs: object = ()) -> dict:
    return {hashable(key): value for key, value in pairs}  # type: ignore[attr-defined]


def _set(values: object = ()) -> set:
    return {hashable(value) for value in values}  # type: ignore[attr-defined]


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise UnreadableModel(f"bytes stored with the encoding {shorten(encoding)}, expected 'latin1'")
    return text.encode("latin1")


def _attribute(owner: object, name: object) -> Global:
    """A call of getattr is how functions of torch's C library, such as torch.tanh, are named: extends the label."""
    if not isinstance(owner, Global) or not isinstance(name, str) or not name.isidentifier():
        raise UnreadableModel(f"getattr of {shorten(name)} from {shorten(owner)}, expected a name of torch")
    known = owner.module.split(".")[0] in ALLOWED_PACKAGES and len(owner.dotted) + len(name) <= MAX_NAME
    if not known or name.startswith("__"):
        raise UnreadableModel(f"getattr of {shorten(name)} from {shorten(owner.dotted)}, expected a name of torch")
    return Global(owner.dotted, name)


BUILDERS: dict[str, Builder] = {
    "builtins.getattr": _attribute,
    "__builtin__.getattr": _attribute,
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _bytes,  # how protocol 2 writes bytes: the compiled TorchScript of e3nn modules
}
