"""Checks that a torch MACE model computes what the Flax model does; whatever differs is named.

A value that equijax does not have raises `UnsupportedModel` with its name; so does an attribute nobody here has heard
of, unless it is switched off (None, False or empty).
"""

import math

import e3nn_jax as e3nn

from convert.config import BASES, MODELS, TRANSFORMS, any_irreps, irreps, read_config
from convert.errors import UnreadableModel, UnsupportedModel, shorten
from convert.families import family
from convert.torch_model import TorchModel, attribute, expect, expect_constant, tensor
from equijax import couplings
from equijax.config import INTERACTIONS, ModelConfig

KNOWN_CLASSES = frozenset(
    {
        *MODELS,
        *(f"mace.modules.blocks.{name}" for name in INTERACTIONS),
        *(
            f"mace.modules.radial.{name}"
            for name in (*BASES, *filter(None, TRANSFORMS), "PolynomialCutoff", "ZBLBasis")
        ),
        *(
            f"mace.modules.blocks.{name}"
            for name in (
                "LinearNodeEmbeddingBlock",
                "RadialEmbeddingBlock",
                "AtomicEnergiesBlock",
                "EquivariantProductBasisBlock",
                "LinearReadoutBlock",
                "NonLinearReadoutBlock",
                "ScaleShiftBlock",
            )
        ),
        "mace.modules.irreps_tools.reshape_irreps",
        "mace.modules.symmetric_contraction.SymmetricContraction",
        "mace.modules.symmetric_contraction.Contraction",
        "e3nn.o3._linear.Linear",
        "e3nn.o3._tensor_product._tensor_product.TensorProduct",
        "e3nn.o3._tensor_product._sub.FullyConnectedTensorProduct",
        "e3nn.o3._spherical_harmonics.SphericalHarmonics",
        "e3nn.nn._fc.FullyConnectedNet",
        "e3nn.nn._fc._Layer",
        "e3nn.nn._activation.Activation",
        "e3nn.math._normalize_activation.normalize2mom",
        "torch.nn.modules.container.ModuleList",
        "torch.nn.modules.container.ParameterList",
        "torch.fx.graph_module.reduce_graph_module",
    }
)
# Attributes of mace's own classes that are read below, implied by shapes that are checked, or without effect.
KNOWN_ATTRIBUTES = frozenset(
    """
    heads apply_cutoff use_reduced_cg pair_repulsion out_dim num_basis r_max coeff num_heads node_attrs_irreps
    node_feats_irreps edge_attrs_irreps edge_feats_irreps target_irreps irreps_out irreps_in irreps hidden_irreps
    edge_irreps avg_num_neighbors radial_MLP dims muls use_sc internal_weights shared_weights num_features
    coupling_irreps correlation _size
    """.split()
)
# Switches whose "off" value is not None, False or empty, or that do not change the energy.
HARMLESS = frozenset({"lammps_mliap"})


def checked_config(model: TorchModel) -> ModelConfig:
    """The `ModelConfig` of a torch MACE model all of whose options are supported.

    Raises:
      UnsupportedModel: a class, option or value outside the implemented family, by name.
      UnreadableModel: the file contradicts itself or lacks something every MACE model has.
    """
    _check_classes(model)
    _check_attributes(model)
    config = read_config(model)
    _check_blocks(model, config)
    _check_radial(model, config)
    return config


def _check_classes(model: TorchModel) -> None:
    top = model.classes[""]
    unknown = {cls: name for name, cls in model.classes.items() if cls not in KNOWN_CLASSES}
    for cls in unknown:
        if known := family(cls):
            raise UnsupportedModel(f"{known} ({shorten(cls)})")
    if top not in MODELS:
        raise UnsupportedModel(f"model class {shorten(top)} is not supported; expected one of {', '.join(MODELS)}")
    if unknown:
        listed = "; ".join(f"{shorten(name)}: {shorten(cls)}" for cls, name in list(unknown.items())[:10])
        raise UnsupportedModel(f"modules of classes that are not supported: {listed}")


def _check_attributes(model: TorchModel) -> None:
    unknown = []
    for name, value in model.attributes.items():
        module, _, key = name.rpartition(".")
        if not model.classes.get(module, "").startswith("mace.") or key in KNOWN_ATTRIBUTES | HARMLESS:
            continue
        if value not in (None, False, ()):
            unknown.append(f"{shorten(name)} = {shorten(value)}")
    if unknown:
        raise UnsupportedModel(f"options that are not supported: {'; '.join(unknown[:10])}")
    for name in ("joint_embedding", "embedding_readout"):
        if name in model.classes:
            raise UnsupportedModel(f"{name}: embeddings of charge, spin or other inputs are not supported")


def _check_radial(model: TorchModel, config: ModelConfig) -> None:
    """Constants that the radial functions here compute from r_max and the number of functions."""
    name, n = "radial_embedding.bessel_fn", config.num_radial
    if config.radial_basis == "bessel":
        expect_constant(model, f"{name}.r_max", wanted=config.r_max)
        expect_constant(model, f"{name}.prefactor", wanted=math.sqrt(2.0 / config.r_max))
    elif config.radial_basis == "gaussian":
        width = -0.5 * ((n - 1) / config.r_max) ** 2 if n > 1 else math.nan
        expect(f"{name}.coeff", attribute(model, f"{name}.coeff", kind=float), wanted=width)
    else:
        expect(f"{name}.n", tensor(model, f"{name}.n").reshape(-1).tolist(), wanted=list(range(1, n + 1)))


def _check_blocks(model: TorchModel, config: ModelConfig) -> None:
    """Irreps, couplings, normalisations and activations of every block against what the Flax model computes."""
    C, Z, H, T = config.channels, len(config.species), len(config.heads), config.num_interactions
    hidden = e3nn.Irreps(config.hidden_irreps)
    expect("spherical_harmonics.normalize", model.attributes.get("spherical_harmonics.normalize"), wanted=True)
    expect(
        "spherical_harmonics.normalization",
        model.attributes.get("spherical_harmonics.normalization"),
        wanted="component",
    )
    linears = {"node_embedding.linear": ((Z, C, 0),)}
    for t in range(T):
        lmax_in, lmax_out = config.input_lmax(t), config.output_lmax(t)
        node = hidden[: lmax_in + 1]
        inter, prod = f"interactions.{t}", f"products.{t}"
        expect(f"{inter}.node_feats_irreps", irreps(model, f"{inter}.node_feats_irreps"), wanted=node)
        # edge_irreps: the narrower convolutions of newer mace-torch
        expect(f"{inter}.edge_irreps", any_irreps(model, f"{inter}.edge_irreps", default=str(node)), wanted=node)
        expect(
            f"{inter}.edge_attrs_irreps",
            irreps(model, f"{inter}.edge_attrs_irreps").dim,
            wanted=(config.max_ell + 1) ** 2,
        )
        expect(f"{inter}.target_irreps", len(irreps(model, f"{inter}.target_irreps")), wanted=config.max_ell + 1)
        expect(f"{prod}.linear.irreps_out", irreps(model, f"{prod}.linear.irreps_out"), wanted=hidden[: lmax_out + 1])
        use_sc = t > 0 or "Residual" in config.interaction_first
        expect(f"{prod}.use_sc", attribute(model, f"{prod}.use_sc", kind=bool), wanted=use_sc)
        paths = couplings.conv_paths(lmax_in, config.max_ell, out_lmax=config.max_ell)
        _check_couplings(model, f"{inter}.conv_tp", paths=paths, C=C)
        residual = "Residual" in config.interaction_name(t)
        _check_skip(model, f"{inter}.skip_tp", lmax=min(lmax_in, lmax_out) if residual else config.max_ell, C=C, Z=Z)
        linears[f"{inter}.linear_up"] = tuple((C, C, l) for l in range(lmax_in + 1))
        linears[f"{inter}.linear"] = tuple((C, C, p.l3) for p in paths)
        linears[f"{prod}.linear"] = tuple((C, C, L) for L in range(lmax_out + 1))
        _check_radial_mlp(
            model, f"{inter}.conv_tp_weights", sizes=[config.num_radial, *config.radial_mlp, len(paths) * C]
        )
        if "Density" in config.interaction_name(t):
            _check_radial_mlp(model, f"{inter}.density_fn", sizes=[config.num_radial, 1])
        if t == T - 1 and t > 0:
            linears[f"readouts.{t}.linear_1"] = ((C, H * config.readout_mlp, 0),)
            linears[f"readouts.{t}.linear_2"] = ((H * config.readout_mlp, H, 0),)
            expect(
                f"readouts.{t}.num_heads", attribute(model, f"readouts.{t}.num_heads", kind=int, default=1), wanted=H
            )
        else:
            linears[f"readouts.{t}.linear"] = ((C, H, 0),)
    for name, parts in linears.items():
        _check_linear(model, name, parts=parts)


def _check_linear(model: TorchModel, name: str, *, parts: tuple[tuple[int, int, int], ...]) -> None:
    """e3nn Linear: (fan-in, fan-out, l) of each path in order, each weighted by 1/sqrt(total fan-in of its l)."""
    degrees = [ir.l for _, ir in any_irreps(model, f"{name}.irreps_in")]
    found = attribute(model, f"{name}.instructions", kind=tuple)
    try:
        rows = [(int(fan_in), int(fan_out), degrees[i], weight) for i, _, (fan_in, fan_out), weight in found]
    except (TypeError, ValueError, IndexError):
        raise UnreadableModel(f"{name}.instructions are not (in, out, shape, weight) of a linear layer") from None
    merged = {l: sum(fan for fan, _, degree, _ in rows if degree == l) for l in degrees}
    count, order = sum(a * b for a, b, _ in parts), [l for _, _, l, _ in rows]
    same = sum(a * b for a, b, _, _ in rows) == count and set(order) == {l for _, _, l in parts}
    if not same or order != sorted(order) or min(a for a, _, _, _ in rows) < 1:
        raise UnsupportedModel(f"{name}: paths {str(rows)[:200]}, expected (fan-in, fan-out, l) {str(parts)[:200]}")
    for l, fan in merged.items():
        for _, _, degree, weight in rows:
            if degree == l:
                expect(f"{name} path weight of l = {l}", weight, wanted=1.0 / math.sqrt(fan))


def _check_couplings(model: TorchModel, name: str, *, paths: tuple[couplings.Path, ...], C: int) -> None:
    """e3nn TensorProduct: the order (l3, l1, l2) of paths and their weights sqrt(2 l3 + 1)."""
    left, right, out = (
        [ir.l for _, ir in any_irreps(model, f"{name}.irreps_{side}")] for side in ("in1", "in2", "out")
    )
    try:
        found = [
            ((left[i], right[j], out[k]), mode, weight, shape)
            for i, j, k, mode, _, weight, shape in attribute(model, f"{name}.instructions", kind=tuple)
        ]
    except (TypeError, ValueError, IndexError):
        raise UnreadableModel(f"{name}.instructions are not those of a tensor product") from None
    expect(f"{name} paths (l1, l2, l3)", [f[0] for f in found], wanted=[tuple(p) for p in paths])
    for (_, _, l3), mode, weight, shape in found:
        expect(f"{name} connection", (mode, shape), wanted=("uvu", (C, 1)))
        expect(f"{name} path weight to l = {l3}", weight, wanted=math.sqrt(2 * l3 + 1))


def _check_skip(model: TorchModel, name: str, *, lmax: int, C: int, Z: int) -> None:
    """e3nn FullyConnectedTensorProduct with one-hot species: one path per l, weight sqrt((2l + 1) / (C Z))."""
    found = attribute(model, f"{name}.instructions", kind=tuple)
    expect(f"{name} number of paths", len(found), wanted=lmax + 1)
    for l, row in enumerate(found):
        if not isinstance(row, tuple) or len(row) != 7:
            raise UnreadableModel(f"{name}.instructions are not those of a tensor product")
        expect(f"{name} path {l}", (row[0], row[3], row[6]), wanted=(l, "uvw", (C, Z, C)))
        expect(f"{name} path weight of l = {l}", row[5], wanted=math.sqrt((2 * l + 1) / (C * Z)))


def _check_radial_mlp(model: TorchModel, name: str, *, sizes: list[int]) -> None:
    """e3nn FullyConnectedNet: sizes, unit variances, silu between the layers and nothing after the last."""
    expect(f"{name}.hs", list(attribute(model, f"{name}.hs", kind=tuple)), wanted=sizes)
    last = len(sizes) - 2
    for i in range(last + 1):
        layer = f"{name}.layer{i}"
        for key, value in (("h_in", sizes[i]), ("var_in", 1), ("var_out", 1)):
            expect(f"{layer}.{key}", model.attributes.get(f"{layer}.{key}"), wanted=value)
        expect(f"{layer}.act", model.attributes.get(f"{layer}.act"), wanted=None)  # a module, not a bare function
        function = model.attributes.get(f"{layer}.act.f")
        expect(f"{layer}.act", function, wanted=None if i == last else "torch.nn.functional.silu")
