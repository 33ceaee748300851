"""Hyper-parameters as frozen dataclasses that round-trip through JSON; no arrays live here."""

import dataclasses
import json
import re
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from equijax.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
INTERACTIONS = (
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
    "RealAgnosticResidualNonLinearInteractionBlock",
    "RealAgnosticAttResidualInteractionBlock",
)
RADIAL_BASES = ("bessel", "gaussian", "chebyshev")
DISTANCE_TRANSFORMS = ("none", "agnesi", "soft")
GATES = ("silu", "tanh", "abs", "none")
IRREPS = re.compile(r"((?P<mul>\d+)x)?(?P<l>\d+)(?P<parity>[eo])")
READOUTS = ("NonLinearReadoutBlock", "NonLinearBiasReadoutBlock")
EMBEDDED = {"total_charge": ("charge", 0.0), "total_spin": ("spin", 1.0)}  # name -> key of atoms.info, and default


DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Compute:
    """How to compute: what does not change a result but in its last digits.

    Raises:
      InputError: another dtype, or memory that is not positive.
    """

    dtype: str = "float64"  # of the model, "float32" or "float64"
    memory: int | None = None  # bytes a device may use; None for most of what is free
    progress: bool = False  # show a bar

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r}: expected {' or '.join(map(repr, DTYPES))}")
        if self.memory is not None and not self.memory > 0:
            raise InputError(f"memory = {self.memory} bytes: expected a positive number, or None")


@dataclass(frozen=True)
class Spline:
    """Grid of the tabulated radial functions of a specialised model: `rows` coefficients a pair of species."""

    start: float  # A
    step: float  # A
    rows: int


@dataclass(frozen=True)
class Dispersion:
    """D3 dispersion with Becke-Johnson damping, added to the network's energy: see `equijax.nn.dispersion`.

    Raises:
      InputError: a cutoff that is not positive.
    """

    functional: str  # the name that its parameters were looked up by
    s6: float
    s8: float
    a1: float
    a2: float  # Bohr
    cutoff: float  # A, of pairs and of coordination numbers

    def __post_init__(self) -> None:
        if not self.cutoff > 0:
            raise InputError(f"dispersion: cutoff = {self.cutoff} A must be positive")


@dataclass(frozen=True)
class Embedding:
    """A number of a whole structure that enters the model: see `EMBEDDED`.

    Raises:
      InputError: another name, or sizes that are not positive.
    """

    name: str  # a key of `EMBEDDED`
    width: int
    classes: int = 0  # whole numbers -offset .. classes - offset - 1, a row of a table each; 0: any number, by an MLP
    offset: int = 0
    bias: bool = True  # of the MLP

    def __post_init__(self) -> None:
        _one_of("embedding", self.name, allowed=tuple(EMBEDDED))
        if self.width < 1 or self.classes < 0:
            raise InputError(f"embedding of {self.name}: width {self.width} and classes {self.classes} are too small")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shape of a MACE model and is not an array (Batatia et al., NeurIPS 2022).

    `correlation` and `contraction_paths` have one entry per interaction; `contraction_paths[t][L][nu - 1]` is the
    number of coupling paths of degree nu to output degree L, which depends on how the U tensors were generated.
    """

    species: tuple[int, ...]  # [Z] atomic numbers, in the order of every per-element array
    heads: tuple[str, ...]  # [H]
    r_max: float  # cutoff, A
    hidden_irreps: str
    max_ell: int
    num_interactions: int
    correlation: tuple[int, ...]
    interaction_first: str
    interaction: str
    radial_basis: str
    num_radial: int
    distance_transform: str
    cutoff_power: int
    apply_cutoff: bool
    radial_mlp: tuple[int, ...]
    readout_mlp: int
    gate: str
    avg_num_neighbors: float
    pair_repulsion: bool
    zbl_power: int
    scale_shift: bool
    contraction_paths: tuple[tuple[tuple[int, ...], ...], ...]
    spline: Spline | None = None  # of a model that `equijax.specialise` made
    edge_channels: tuple[int, ...] = ()  # multiplicity in the convolution of each interaction; (): `channels`
    readout: str = "NonLinearReadoutBlock"  # after the last of several interactions
    agnostic_product: bool = False  # whether all species share the weights of the symmetric contraction
    last_readout_only: bool = False
    so3: bool = False  # all irreps even: couplings that change sign under inversion are allowed too
    embeddings: tuple[Embedding, ...] = ()
    embedding_readout: bool = False  # whether the embedded atoms have an energy of their own
    dispersion: Dispersion | None = None

    def __post_init__(self) -> None:
        _one_of("interaction_first", self.interaction_first, allowed=INTERACTIONS)
        _one_of("interaction", self.interaction, allowed=INTERACTIONS)
        _one_of("radial_basis", self.radial_basis, allowed=RADIAL_BASES)
        _one_of("distance_transform", self.distance_transform, allowed=DISTANCE_TRANSFORMS)
        _one_of("gate", self.gate, allowed=GATES)
        _one_of("readout", self.readout, allowed=READOUTS)
        if len(set(self.species)) != len(self.species) or not self.species:
            raise InputError(f"species {self.species} must be a non-empty list of distinct atomic numbers")
        if not self.heads or len(set(self.heads)) != len(self.heads):
            raise InputError(f"heads {self.heads} must be a non-empty list of distinct names")
        if not self.r_max > 0:
            raise InputError(f"r_max = {self.r_max} A must be positive")
        if self.num_interactions < 1 or len(self.correlation) != self.num_interactions:
            raise InputError(
                f"correlation {self.correlation} must have one entry for each of the "
                f"{self.num_interactions} interactions"
            )
        for mul, l, parity in _irreps(self.hidden_irreps):
            if parity != ("e" if self.so3 else "eo"[l % 2]) or mul != self.channels:
                raise InputError(
                    f"hidden_irreps {self.hidden_irreps!r}: need the same multiplicity of irreps of "
                    f"{'even (0e, 1e, 2e' if self.so3 else 'natural (0e, 1o, 2e'}, ...) parity, one of each l"
                )
        if [part.l for part in _irreps(self.hidden_irreps)] != list(range(self.hidden_lmax + 1)):
            raise InputError(f"hidden_irreps {self.hidden_irreps!r} must hold every l from 0 up, once")
        if len(self.edge_channels) not in (0, self.num_interactions) or min(self.edge_channels, default=1) < 1:
            raise InputError(
                f"edge_channels {self.edge_channels}: expected none, or a positive number for each of the "
                f"{self.num_interactions} interactions"
            )
        if self.dispersion is not None and self.dispersion.cutoff < self.r_max:
            raise InputError(f"dispersion: cutoff = {self.dispersion.cutoff} A is shorter than r_max = {self.r_max} A")
        if self.embedding_readout and not self.embeddings or self.last_readout_only and self.num_interactions == 1:
            raise InputError("a readout of embeddings needs embeddings; last_readout_only needs two interactions")

    @property
    def channels(self) -> int:
        """Multiplicity C of every hidden irrep."""
        return _irreps(self.hidden_irreps)[0].mul

    @property
    def hidden_lmax(self) -> int:
        return len(_irreps(self.hidden_irreps)) - 1

    def edge_width(self, t: int) -> int:
        """Multiplicity of every irrep in the convolution of interaction `t`."""
        return self.edge_channels[t] if self.edge_channels else self.channels

    @property
    def product_species(self) -> int:
        """Species that have contraction weights of their own."""
        return 1 if self.agnostic_product else len(self.species)

    def input_lmax(self, t: int) -> int:
        """Largest l of the node features that enter interaction `t`."""
        return 0 if t == 0 else self.hidden_lmax

    def output_lmax(self, t: int) -> int:
        """Largest l of the node features that leave interaction `t`: the last one keeps scalars only."""
        return 0 if t == self.num_interactions - 1 else self.hidden_lmax

    def interaction_name(self, t: int) -> str:
        return self.interaction_first if t == 0 else self.interaction

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)


class Irreps(NamedTuple):
    """Some copies of one irreducible representation of O(3)."""

    mul: int
    l: int
    parity: str  # "e" or "o"


def _irreps(text: str) -> list[Irreps]:
    """ "128x0e+128x1o" as `Irreps`; not by e3nn_jax, with which come sympy and half of scipy."""
    found = [IRREPS.fullmatch(part.strip()) for part in text.split("+")]
    if None in found:
        raise InputError(f"hidden_irreps {text!r}: expected terms such as 128x0e, joined by +")
    return [Irreps(int(m["mul"] or 1), int(m["l"]), m["parity"]) for m in found if m]


def _one_of(name: str, value: str, *, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} = {value!r} is not supported; expected one of {', '.join(allowed)}")


def from_dict(cls: type[T], values: dict) -> T:
    """Build the frozen dataclass `cls` from the dict that `dataclasses.asdict` and JSON make of it.

    Raises:
      InputError: names missing from or foreign to the dataclass, all of them listed.
    """
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing, extra = sorted(required - set(values)), sorted(set(values) - names)
    if missing or extra:
        raise InputError(f"{cls.__name__}: missing options {missing}, unknown options {extra}")
    return cls(**{k: _build(hints[k], v) for k, v in values.items()})


def _build(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType) and value is not None:
        (hint,) = (h for h in typing.get_args(hint) if h is not types.NoneType)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(hint, value)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_build(typing.get_args(hint)[0], v) for v in value)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
