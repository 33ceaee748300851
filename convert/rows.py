"""One table of the tensors of a torch MACE model and of the Flax arrays they are, read both ways.

Almost every tensor is a flat or merely reshaped concatenation of Flax arrays, so a row is a torch name, the Flax paths
and their shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from equijax.config import ModelConfig
from equijax.nn import convolution
from equijax.nn.attention import DOWN, UNITS
from equijax.nn.nonlinear import DENSITY_MLP, gate_widths

FlaxPath = tuple[str, ...]


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
        rows += BLOCKS.get(config.interaction_name(t), _interaction_rows)(config, t) + _product_rows(config, t)
        rows += _readout_rows(config, t)
    if config.scale_shift:
        rows += [_row(f"scale_shift.{name}", f"constants/{name}", H) for name in ("scale", "shift")]
    return rows + _radial_rows(config) + _embedding_rows(config)


def readout_index(config: ModelConfig, t: int) -> int:
    """Position of the readout after interaction t among those of the torch model."""
    return 0 if config.last_readout_only else t


def _readout_rows(config: ModelConfig, t: int) -> list[Row]:
    C, H = config.channels, len(config.heads)
    M, torch, flax = H * config.readout_mlp, f"readouts.{readout_index(config, t)}", f"params/readouts_{t}"
    if not 0 < t == config.num_interactions - 1:
        return [] if config.last_readout_only else [_row(f"{torch}.linear.weight", f"{flax}/linear", C, H)]
    rows = [
        _row(f"{torch}.linear_1.weight", f"{flax}/linear_1", C, M),
        _row(f"{torch}.linear_2.weight", f"{flax}/linear_2", M, H),
    ]
    if config.readout == "NonLinearBiasReadoutBlock":
        rows += [
            _row(f"{torch}.linear_mid.weight", f"{flax}/linear_mid", M, M),
            _row(f"{torch}.linear_mid.bias", f"{flax}/bias_mid", M),
            _row(f"{torch}.linear_2.bias", f"{flax}/bias_2", H),
        ]
    return rows


def _row(torch: str, path: str, *shape: int) -> Row:
    return Row(torch, ((tuple(path.split("/")), shape),))


def _by_degree(torch: str, path: str, *, shapes: list[tuple[int, ...]]) -> Row:
    return Row(torch, tuple(((*path.split("/"), f"l{l}"), shape) for l, shape in enumerate(shapes)))


def _convolution_rows(config: ModelConfig, t: int, *, linear: str, widths: tuple[int, ...]) -> list[Row]:
    """The linear maps before and after the convolution; the latter is torch's `linear`, to `widths` channels per l."""
    C, E, paths = config.channels, config.edge_width(t), convolution.paths(config, t)
    torch, flax = f"interactions.{t}", f"params/interactions_{t}"
    per_l = [(sum(p.l3 == l for p in paths), E, width) for l, width in enumerate(widths)]
    return [
        _by_degree(f"{torch}.linear_up.weight", f"{flax}/linear_up", shapes=[(C, E)] * (config.input_lmax(t) + 1)),
        _by_degree(f"{torch}.{linear}.weight", f"{flax}/linear", shapes=per_l),
    ]


def _interaction_rows(config: ModelConfig, t: int) -> list[Row]:
    C, Z, B = config.channels, len(config.species), config.num_radial
    lmax, name = config.input_lmax(t), config.interaction_name(t)
    torch, flax = f"interactions.{t}", f"params/interactions_{t}"
    skip_lmax = min(lmax, config.output_lmax(t)) if "Residual" in name else config.max_ell
    rows = _convolution_rows(config, t, linear="linear", widths=(C,) * (config.max_ell + 1))
    rows.append(_by_degree(f"{torch}.skip_tp.weight", f"{flax}/skip_tp", shapes=[(C, Z, C)] * (skip_lmax + 1)))
    rows += _radial_mlp_rows(config, t, sizes=(B, *config.radial_mlp), flax=f"{flax}/radial_mlp/layer")
    if "Density" in name:
        rows.append(_row(f"{torch}.density_fn.layer0.weight", f"{flax}/density", B, 1))
    return rows


def _radial_mlp_rows(config: ModelConfig, t: int, *, sizes: tuple[int, ...], flax: str) -> list[Row]:
    torch, count = f"interactions.{t}.conv_tp_weights.layer", len(convolution.paths(config, t))
    shapes = [*zip(sizes, sizes[1:], strict=False), (sizes[-1], count, config.edge_width(t))]
    return [_row(f"{torch}{i}.weight", f"{flax}{i}", *shape) for i, shape in enumerate(shapes)]


def _nonlinear_rows(config: ModelConfig, t: int) -> list[Row]:
    C, Z, E, widths = config.channels, len(config.species), config.edge_width(t), gate_widths(config)
    lmax = config.input_lmax(t)
    torch, flax = f"interactions.{t}", f"params/interactions_{t}"
    rows = _convolution_rows(config, t, linear="linear_1", widths=widths)
    rows += [_row(f"{torch}.{name}_embedding.weight", f"{flax}/edges/{name}", Z, C) for name in ("source", "target")]
    rows += [_row(f"{torch}.{name}", f"{flax}/{name}") for name in ("alpha", "beta")]
    skip = min(lmax, config.output_lmax(t))
    for name, own, shapes in (
        ("skip_tp", "skip_tp", [(C, C)] * (skip + 1)),
        ("linear_res", "linear_res", [(E, width) for width in widths[: lmax + 1]]),
        ("linear_2", "linear_out", [(C, C)] * (config.max_ell + 1)),
    ):
        rows.append(_by_degree(f"{torch}.{name}.weight", f"{flax}/{own}", shapes=shapes))
    count = len(convolution.paths(config, t)) * E
    for name, own, sizes in (
        ("conv_tp_weights", "radial_mlp", (*config.radial_mlp, count)),
        ("density_fn", "density_mlp", (*DENSITY_MLP, 1)),
    ):
        rows += _normed_mlp_rows(
            f"{torch}.{name}.net", f"{flax}/edges/{own}", sizes=(config.num_radial + 2 * C, *sizes)
        )
    return rows


def _normed_mlp_rows(torch: str, flax: str, *, sizes: tuple[int, ...]) -> list[Row]:
    """Linear, LayerNorm and silu are modules 3i, 3i + 1 and 3i + 2 of torch's sequence; weights are [out, in]."""
    rows = []
    for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        rows += [
            _row(f"{torch}.{3 * i}.weight", f"{flax}/layer{i}", fan_out, fan_in),
            _row(f"{torch}.{3 * i}.bias", f"{flax}/bias{i}", fan_out),
        ]
        if i < len(sizes) - 2:
            rows += [
                _row(f"{torch}.{3 * i + 1}.weight", f"{flax}/scale{i}", fan_out),
                _row(f"{torch}.{3 * i + 1}.bias", f"{flax}/offset{i}", fan_out),
            ]
    return rows


def _attention_rows(config: ModelConfig, t: int) -> list[Row]:
    C, lmax = config.channels, config.input_lmax(t)
    torch, flax = f"interactions.{t}", f"params/interactions_{t}"
    rows = _convolution_rows(config, t, linear="linear", widths=(C,) * (config.max_ell + 1))
    skip = min(lmax, config.output_lmax(t))
    return [
        *rows,
        _by_degree(f"{torch}.skip_linear.weight", f"{flax}/skip_tp", shapes=[(C, C)] * (skip + 1)),
        _by_degree(f"{torch}.linear_down.weight", f"{flax}/linear_down", shapes=[(C, DOWN)]),
        *_radial_mlp_rows(config, t, sizes=(config.num_radial + 2 * DOWN, *UNITS), flax=f"{flax}/radial"),
    ]


def _embedding_rows(config: ModelConfig) -> list[Row]:
    torch, flax, C = "joint_embedding", "params/joint_embedding", config.channels
    rows = []
    for spec in config.embeddings:
        module, own, E = f"{torch}.embedders.{spec.name}", f"{flax}/{spec.name}", spec.width
        if spec.classes:
            rows.append(_row(f"{module}.weight", f"{own}_table", spec.classes, E))
            continue
        for layer, fan_in in ((0, 1), (2, E)):
            rows.append(_row(f"{module}.{layer}.weight", f"{own}_layer{layer}", E, fan_in))
            rows += [_row(f"{module}.{layer}.bias", f"{own}_bias{layer}", E)] if spec.bias else []
    if config.embeddings:
        rows.append(_row(f"{torch}.project.0.weight", f"{flax}/project", C, sum(s.width for s in config.embeddings)))
    if config.embedding_readout:
        rows.append(_row("embedding_readout.linear.weight", "params/embedding_readout/linear", C, len(config.heads)))
    return rows


def _product_rows(config: ModelConfig, t: int) -> list[Row]:
    C, Z, nu_max = config.channels, config.product_species, config.correlation[t]
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


# Blocks with tensors of their own; all others have those of `_interaction_rows`.
BLOCKS: dict[str, Callable[[ModelConfig, int], list[Row]]] = {
    "RealAgnosticResidualNonLinearInteractionBlock": _nonlinear_rows,
    "RealAgnosticAttResidualInteractionBlock": _attention_rows,
}
