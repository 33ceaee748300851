"""The Flax variables of a torch MACE model, by the table of `convert.rows`.

U tensors are compressed to monomial coefficients. Everything in a file is either in the table, in `IGNORED` with the
reason, or an error.
"""

import math
import re

import numpy as np

from convert.adapters import fold
from convert.checks import checked_config
from convert.config import with_numbers
from convert.errors import UnreadableModel, UnsupportedModel, one_line, shorten
from convert.rows import FlaxPath, Row, readout_index, table
from convert.torch_model import TorchModel
from equijax import couplings
from equijax.config import ModelConfig
from equijax.nn.attention import UNITS
from equijax.nn.radial import activation_norm

IGNORED = {
    r"atomic_numbers|r_max|num_interactions": "read into the config",
    r"radial_embedding\.cutoff_fn\.(p|r_max)|pair_repulsion_fn\.p": "read into the config",
    r"radial_embedding\.bessel_fn\.(r_max|prefactor|n)": "computed from the config; checked there",
    r".*\.output_mask": "e3nn's note of which outputs have a path",
    r".*\.weights_(\d+|max)_zeroed": "mace's note of which weights are zero",
    r"pair_repulsion_fn\.(r_max|cutoff\.(p|r_max))": "unused since the covalent radii set the range of ZBL",
    r"interactions\.\d+\.conv_tp\.weight": "empty: the radial MLP provides the weights",
    r"interactions\.\d+\.equivariant_nonlin\.mul\.weight": "empty: e3nn's gate multiplies without weights",
    r".*\.bias": "empty: MACE has no biases",
}
# The couplings that a U tensor is compared with take 1 GB from so many entries a path on (max_ell 6 at degree 3, 3 at
# degree 4). Real ones have more paths than this; a small hostile file cannot.
LARGE_COUPLING, FEW_PATHS = 150_000, 30
EMPTY = re.compile(r".*\.bias|interactions\.\d+\.(conv_tp|equivariant_nonlin\.mul)\.weight")


def u_names(config: ModelConfig) -> dict[str, tuple[FlaxPath, int, int]]:
    """Torch name of every U tensor -> (Flax path, L, degree)."""
    return {
        f"products.{t}.symmetric_contractions.contractions.{L}.U_matrix_{nu}": (
            ("constants", f"products_{t}", f"contraction_l{L}", f"l{L}_nu{nu}"),
            L,
            nu,
        )
        for t in range(config.num_interactions)
        for L, counts in enumerate(config.contraction_paths[t])
        for nu in range(1, len(counts) + 1)
    }


def activation_names(config: ModelConfig) -> dict[str, FlaxPath]:
    """Torch module of each kind of normalised activation -> Flax path of its factor."""
    names = {}
    for t in range(config.num_interactions):
        block, path = config.interaction_name(t), ("constants", f"interactions_{t}")
        if "NonLinear" in block:
            continue  # `gate_names`; its MLPs are torch's own, not normalised
        hidden = len(UNITS if "Att" in block else config.radial_mlp)
        path = (*path, "silu") if "Att" in block else (*path, "radial_mlp", "silu")
        names |= {f"interactions.{t}.conv_tp_weights.layer{i}.act": path for i in range(hidden)}
    last = config.num_interactions - 1
    if last > 0:
        torch = f"readouts.{readout_index(config, last)}.non_linearity.acts.0"
        names[torch] = ("constants", f"readouts_{last}", "gate")
    return names


def gate_names(config: ModelConfig) -> dict[str, FlaxPath]:
    """Torch module of each gated non-linearity -> Flax path of the factors [2] of its activations."""
    return {
        f"interactions.{t}.equivariant_nonlin": ("constants", f"interactions_{t}", "gate")
        for t in range(config.num_interactions)
        if "NonLinear" in config.interaction_name(t)
    }


def to_flax(model: TorchModel, dtype: str | None = None) -> tuple[ModelConfig, dict]:
    """Config and Flax variables of a torch MACE model.

    Args:
      model: from `convert.torch_model.read_model`.
      dtype: "float32" or "float64" of the trained arrays; None: as in the file. Constants (U tensors, E0, radii) are
        kept in float64, where the values of a float32 file are exact.

    Raises:
      UnsupportedModel: an option outside the implemented family; missing or extra tensors, all listed.
      UnreadableModel: damaged contents.
    """
    with one_line():
        return _to_flax(complete(model), dtype)


def complete(model: TorchModel) -> TorchModel:
    """`model` as current mace-torch would write it: adapters folded in, numbers of old versions among the tensors."""
    return with_numbers(fold(model))


def _to_flax(model: TorchModel, dtype: str | None) -> tuple[ModelConfig, dict]:
    config = checked_config(model)
    rows = table(config)
    _check_names(model, {row.torch for row in rows} | set(u_names(config)))
    variables: dict = {}
    kind = np.dtype(dtype or _weights_dtype(model, rows))
    for row in rows:
        is_param = row.parts[0][0][0] == "params"
        for (path, _), array in zip(row.parts, _split(row, model.tensors[row.torch]), strict=True):
            _put(variables, path, value=array.astype(kind if is_param else np.float64))
    for name, (path, L, degree) in u_names(config).items():
        _put(variables, path, value=_compress(name, model.tensors[name], L=L, degree=degree, config=config))
    for name, path in activation_names(config).items():
        _put(variables, path, value=np.asarray(_activation_factor(model, name)))
    for name, path in gate_names(config).items():
        _put(variables, path, value=np.array([_gate_factor(model, name, kind=kind) for kind in ("scalar", "gate")]))
    return config, variables


def source_dtype(model: TorchModel) -> str:
    """The type that holds the weights of the file exactly: float64 if one of them is, else float32.

    The weights are what `table` places in `params`, whether torch would train them or not; half precision is widened.
    """
    with one_line():
        model = complete(model)
        return _weights_dtype(model, table(checked_config(model)))


def _weights_dtype(model: TorchModel, rows: list[Row]) -> str:
    weights = [row.torch for row in rows if row.parts[0][0][0] == "params"]
    kinds = {model.tensors[name].dtype for name in weights if name in model.tensors}
    return np.result_type(np.float32, *(kind for kind in kinds if kind.kind == "f")).name


def _check_names(model: TorchModel, wanted: set[str]) -> None:
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in IGNORED))
    missing = sorted(wanted - set(model.tensors))
    extra = sorted(name for name in set(model.tensors) - wanted if not ignored.fullmatch(name))
    empty = {name for name in set(model.tensors) - wanted if EMPTY.fullmatch(name)}
    extra += sorted(f"{name} (not empty)" for name in empty if model.tensors[name].size)
    if missing or extra:
        listed = [", ".join(shorten(name) for name in names[:30]) or "none" for names in (missing, extra)]
        raise UnsupportedModel(f"not the tensors of this model family. Missing: {listed[0]}. Extra: {listed[1]}")


def _split(row: Row, value: np.ndarray) -> list[np.ndarray]:
    """The Flax arrays whose concatenation is `value`."""
    sizes = [math.prod(shape) for _, shape in row.parts]
    if value.size != sum(sizes):
        shapes = ", ".join(str(shape) for _, shape in row.parts)
        raise UnsupportedModel(f"{row.torch} has shape {value.shape}, expected the {sum(sizes)} values of {shapes}")
    if not np.issubdtype(value.dtype, np.floating) or not np.isfinite(value).all():
        raise UnreadableModel(f"{row.torch} has non-finite values or type {value.dtype}")
    pieces = np.split(np.ascontiguousarray(value).reshape(-1), np.cumsum(sizes)[:-1])
    return [piece.reshape(shape) for piece, (_, shape) in zip(pieces, row.parts, strict=True)]


def _compress(name: str, u: np.ndarray, *, L: int, degree: int, config: ModelConfig) -> np.ndarray:
    """Monomial coefficients [Q, paths] of a U tensor [(2L+1,) m, ..., m, paths]; torch drops the axis of L = 0."""
    m = (config.max_ell + 1) ** 2
    shape = (2 * L + 1, *[m] * degree, u.shape[-1] if u.ndim else 0)
    if u.shape not in (shape, shape[1:] if L == 0 else shape):
        raise UnsupportedModel(f"{name} has shape {u.shape}, expected {shape}")
    if not np.issubdtype(u.dtype, np.floating) or not np.isfinite(u).all():
        raise UnreadableModel(f"{name} has non-finite values or type {u.dtype}")
    if math.prod(shape[:-1]) > LARGE_COUPLING and shape[-1] < FEW_PATHS:
        raise UnsupportedModel(f"{name} of shape {shape} has fewer than {FEW_PATHS} paths, too few for its size")
    try:
        return couplings.compress_u(u.reshape(shape), config.max_ell, L=L, so3=config.so3)
    except ValueError as error:
        raise UnsupportedModel(f"{name}: {error}") from None


def _activation_factor(model: TorchModel, name: str) -> float:
    """The factor e3nn's normalize2mom multiplies an activation by."""
    if model.attributes.get(f"{name}._is_id") is True or name not in model.classes:
        return 1.0
    return _factor(model, f"{name}.cst")


def _gate_factor(model: TorchModel, name: str, *, kind: str) -> float:
    """The factor of the scalars' or the gates' activation, as mace-torch and as e3nn keep it."""
    if f"{name}._{kind}_cst" in model.attributes:
        return _factor(model, f"{name}._{kind}_cst")
    if kind == "gate" and f"{name}.act_gates.acts.0" not in model.classes:
        return activation_norm("sigmoid")  # scalars alone: nothing is gated
    return _activation_factor(model, f"{name}.act_{kind}s.acts.0")


def _factor(model: TorchModel, name: str) -> float:
    factor = model.attributes.get(name)
    if not isinstance(factor, float) or not 0.0 < factor < 1e3:
        raise UnreadableModel(f"{name} = {shorten(factor)} is not the normalisation of an activation")
    return factor


def _put(tree: dict, path: FlaxPath, *, value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    if path[-1] in tree and not np.array_equal(tree[path[-1]], value):
        raise UnsupportedModel(f"{'/'.join(path)} differs between the layers that share it: {tree[path[-1]]}, {value}")
    tree[path[-1]] = value
