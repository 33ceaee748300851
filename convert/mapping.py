"""One table that maps the tensors of a torch MACE model to the Flax variables, both ways.

Almost every tensor is a flat or merely reshaped concatenation of Flax arrays, so a row is a torch name, the Flax paths
and their shapes. U tensors are compressed to monomial coefficients. Everything in a file is either in the table, in
`IGNORED` with the reason, or an error.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from convert.adapters import fold
from convert.checks import checked_config
from convert.config import with_numbers
from convert.errors import UnreadableModel, UnsupportedModel, one_line, shorten
from convert.torch_model import TorchModel
from equijax import couplings
from equijax.config import ModelConfig

FlaxPath = tuple[str, ...]

IGNORED = {
    r"atomic_numbers|r_max|num_interactions": "read into the config",
    r"radial_embedding\.cutoff_fn\.(p|r_max)|pair_repulsion_fn\.p": "read into the config",
    r"radial_embedding\.bessel_fn\.(r_max|prefactor|n)": "computed from the config; checked there",
    r".*\.output_mask": "e3nn's note of which outputs have a path",
    r".*\.weights_(\d+|max)_zeroed": "mace's note of which weights are zero",
    r"pair_repulsion_fn\.(r_max|cutoff\.(p|r_max))": "unused since the covalent radii set the range of ZBL",
    r"interactions\.\d+\.conv_tp\.weight": "empty: the radial MLP provides the weights",
    r".*\.bias": "empty: MACE has no biases",
}
# The couplings that a U tensor is compared with take 1 GB from so many entries a path on (max_ell 6 at degree 3, 3 at
# degree 4). Real ones have more paths than this; a small hostile file cannot.
LARGE_COUPLING, FEW_PATHS = 150_000, 30
EMPTY = re.compile(r".*\.bias|interactions\.\d+\.conv_tp\.weight")


@dataclass(frozen=True)
class Row:
    """A torch tensor, and the Flax arrays (path, shape) whose concatenation it is."""

    torch: str
    parts: tuple[tuple[FlaxPath, tuple[int, ...]], ...]


def table(config: ModelConfig) -> list[Row]:
    """All tensors of the model but the U tensors: params in `params`, constants in `constants`."""
    C, Z, H = config.channels, len(config.species), len(config.heads)
    rows = [
        _row("node_embedding.linear.weight", "params/node_embedding", Z, C),
        _row("atomic_energies_fn.atomic_energies", "constants/atomic_energies", H, Z),
    ]
    for t in range(config.num_interactions):
        rows += _interaction_rows(config, t) + _product_rows(config, t)
        if t == config.num_interactions - 1 and t > 0:
            M = H * config.readout_mlp
            rows += [
                _row(f"readouts.{t}.linear_1.weight", f"params/readouts_{t}/linear_1", C, M),
                _row(f"readouts.{t}.linear_2.weight", f"params/readouts_{t}/linear_2", M, H),
            ]
        else:
            rows.append(_row(f"readouts.{t}.linear.weight", f"params/readouts_{t}/linear", C, H))
    if config.scale_shift:
        rows += [_row(f"scale_shift.{name}", f"constants/{name}", H) for name in ("scale", "shift")]
    return rows + _radial_rows(config)


def _row(torch: str, path: str, *shape: int) -> Row:
    return Row(torch, ((tuple(path.split("/")), shape),))


def _by_degree(torch: str, path: str, *, shapes: list[tuple[int, ...]]) -> Row:
    return Row(torch, tuple(((*path.split("/"), f"l{l}"), shape) for l, shape in enumerate(shapes)))


def _interaction_rows(config: ModelConfig, t: int) -> list[Row]:
    C, Z, B = config.channels, len(config.species), config.num_radial
    lmax, name = config.input_lmax(t), config.interaction_name(t)
    torch, flax = f"interactions.{t}", f"params/interactions_{t}"
    paths = couplings.conv_paths(lmax, config.max_ell, out_lmax=config.max_ell)
    per_l = [(sum(p.l3 == l for p in paths), C, C) for l in range(config.max_ell + 1)]
    skip_lmax = min(lmax, config.output_lmax(t)) if "Residual" in name else config.max_ell
    rows = [
        _by_degree(f"{torch}.linear_up.weight", f"{flax}/linear_up", shapes=[(C, C)] * (lmax + 1)),
        _by_degree(f"{torch}.linear.weight", f"{flax}/linear", shapes=per_l),
        _by_degree(f"{torch}.skip_tp.weight", f"{flax}/skip_tp", shapes=[(C, Z, C)] * (skip_lmax + 1)),
    ]
    sizes = (B, *config.radial_mlp)
    for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        rows.append(_row(f"{torch}.conv_tp_weights.layer{i}.weight", f"{flax}/radial_mlp/layer{i}", fan_in, fan_out))
    last = len(sizes) - 1
    rows.append(
        _row(f"{torch}.conv_tp_weights.layer{last}.weight", f"{flax}/radial_mlp/layer{last}", sizes[-1], len(paths), C)
    )
    if "Density" in name:
        rows.append(_row(f"{torch}.density_fn.layer0.weight", f"{flax}/density", B, 1))
    return rows


def _product_rows(config: ModelConfig, t: int) -> list[Row]:
    C, Z, nu_max = config.channels, len(config.species), config.correlation[t]
    rows = []
    for L, counts in enumerate(config.contraction_paths[t]):
        for nu, paths in enumerate(counts, start=1):
            # torch numbers the weights from the highest degree down, which has a name of its own
            weight = "weights_max" if nu == nu_max else f"weights.{nu_max - 1 - nu}"
            rows.append(
                _row(
                    f"products.{t}.symmetric_contractions.contractions.{L}.{weight}",
                    f"params/products_{t}/contraction_l{L}/l{L}_nu{nu}",
                    Z,
                    paths,
                    C,
                )
            )
    shapes = [(C, C)] * (config.output_lmax(t) + 1)
    return [*rows, _by_degree(f"products.{t}.linear.weight", f"params/products_{t}/linear", shapes=shapes)]


def _radial_rows(config: ModelConfig) -> list[Row]:
    torch, flax = "radial_embedding.distance_transform", "constants/radial"
    rows = []
    if config.radial_basis != "chebyshev":
        name = f"{config.radial_basis}_weights"
        rows.append(_row(f"radial_embedding.bessel_fn.{name}", f"{flax}/{name}", config.num_radial))
    names = {"none": (), "soft": ("alpha",), "agnesi": ("a", "q", "p")}[config.distance_transform]
    rows += [_row(f"{torch}.{name}", f"{flax}/{name}") for name in names]
    if names:
        rows.append(_row(f"{torch}.covalent_radii", f"{flax}/covalent_radii", 119))
    if config.pair_repulsion:
        shapes = {"c": (4,), "a_exp": (), "a_prefactor": (), "covalent_radii": (119,)}
        rows += [_row(f"pair_repulsion_fn.{k}", f"constants/zbl/{k}", *shape) for k, shape in shapes.items()]
    return rows


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
    if config.radial_mlp:
        for t in range(config.num_interactions):
            path = ("constants", f"interactions_{t}", "radial_mlp", "silu")
            names |= {f"interactions.{t}.conv_tp_weights.layer{i}.act": path for i in range(len(config.radial_mlp))}
    last = config.num_interactions - 1
    if last > 0:
        names[f"readouts.{last}.non_linearity.acts.0"] = ("constants", f"readouts_{last}", "gate")
    return names


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
        _put(variables, path, value=_compress(name, model.tensors[name], lmax=config.max_ell, L=L, degree=degree))
    for name, path in activation_names(config).items():
        _put(variables, path, value=np.asarray(_activation_factor(model, name)))
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
    extra += [f"{name} (not empty)" for name, a in model.tensors.items() if EMPTY.fullmatch(name) and a.size]
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


def _compress(name: str, u: np.ndarray, *, lmax: int, L: int, degree: int) -> np.ndarray:
    """Monomial coefficients [Q, paths] of a U tensor [(2L+1,) m, ..., m, paths]; torch drops the axis of L = 0."""
    m = (lmax + 1) ** 2
    shape = (2 * L + 1, *[m] * degree, u.shape[-1] if u.ndim else 0)
    if u.shape not in (shape, shape[1:] if L == 0 else shape):
        raise UnsupportedModel(f"{name} has shape {u.shape}, expected {shape}")
    if not np.issubdtype(u.dtype, np.floating) or not np.isfinite(u).all():
        raise UnreadableModel(f"{name} has non-finite values or type {u.dtype}")
    if math.prod(shape[:-1]) > LARGE_COUPLING and shape[-1] < FEW_PATHS:
        raise UnsupportedModel(f"{name} of shape {shape} has fewer than {FEW_PATHS} paths, too few for its size")
    try:
        return couplings.compress_u(u.reshape(shape), lmax, L=L)
    except ValueError as error:
        raise UnsupportedModel(f"{name}: {error}") from None


def _activation_factor(model: TorchModel, name: str) -> float:
    """The factor e3nn's normalize2mom multiplies an activation by."""
    if model.attributes.get(f"{name}._is_id") is True or name not in model.classes:
        return 1.0
    factor = model.attributes.get(f"{name}.cst")
    if not isinstance(factor, float) or not 0.0 < factor < 1e3:
        raise UnreadableModel(f"{name}.cst = {shorten(factor)} is not the normalisation of an activation")
    return factor


def _put(tree: dict, path: FlaxPath, *, value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    if path[-1] in tree and not np.array_equal(tree[path[-1]], value):
        raise UnsupportedModel(f"{'/'.join(path)} differs between the layers that share it: {tree[path[-1]]}, {value}")
    tree[path[-1]] = value
