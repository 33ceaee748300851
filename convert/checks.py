"""Checks that a torch MACE model computes what the Flax model does; whatever differs is named.

A value that equijax does not have raises `UnsupportedModel` with its name; so does an attribute nobody here has heard
of, unless it is switched off (None, False or empty).
"""

import math

import e3nn_jax as e3nn

from convert import layers
from convert.config import BASES, MODELS, TRANSFORMS, edge_irreps, irreps, read_config
from convert.errors import UnsupportedModel, shorten
from convert.families import family
from convert.rows import readout_index
from convert.torch_model import TorchModel, attribute, expect, expect_constant, tensor
from equijax.config import INTERACTIONS, READOUTS, ModelConfig
from equijax.nn import convolution
from equijax.nn.attention import DOWN, UNITS
from equijax.nn.nonlinear import DENSITY_MLP, gate_widths

KNOWN_CLASSES = frozenset(
    {
        *MODELS,
        *(f"mace.modules.blocks.{name}" for name in INTERACTIONS),
        *(
            f"mace.modules.radial.{name}"
            for name in (*BASES, *filter(None, TRANSFORMS), "PolynomialCutoff", "ZBLBasis", "RadialMLP")
        ),
        *(
            f"mace.modules.blocks.{name}"
            for name in (
                "LinearNodeEmbeddingBlock",
                "RadialEmbeddingBlock",
                "AtomicEnergiesBlock",
                "EquivariantProductBasisBlock",
                "LinearReadoutBlock",
                "ScaleShiftBlock",
                *READOUTS,
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
        "mace.modules.embeddings.GenericJointEmbedding",
        *layers.GATES,
        *layers.TORCH,
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
    coupling_irreps correlation _size use_so3 use_agnostic_product use_last_readout_only use_edge_irreps_first
    irreps_nonlin hs node_feats_down_irreps embedding_specs specs base_dim _irreps_in _irreps_out irreps_scalars
    irreps_gates irreps_gated _s_start _s_len _g_start _g_len _gated_info _act_scalar _act_gate _scalar_cst _gate_cst
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
    expect("spherical_harmonics.normalize", model.attributes.get("spherical_harmonics.normalize"), wanted=True)
    expect(
        "spherical_harmonics.normalization",
        model.attributes.get("spherical_harmonics.normalization"),
        wanted="component",
    )
    layers.check_linear(model, "node_embedding.linear", parts=((Z, C, 0),))
    for name in ("use_agnostic_product", "products.0.use_agnostic_product"):
        expect(name, model.attributes.get(name, config.agnostic_product), wanted=config.agnostic_product)
    for t in range(T):
        _check_interaction(model, config, t=t)
        _check_product(model, config, t=t)
        _check_readout(model, config, t=t)
    if config.embedding_readout:
        if not config.scale_shift and H > 1:
            raise UnsupportedModel("embedding_readout of a plain MACE with several heads, which mace-torch cannot run")
        layers.check_linear(model, "embedding_readout.linear", parts=((C, H, 0),))


def _check_interaction(model: TorchModel, config: ModelConfig, *, t: int) -> None:
    name, block, C = f"interactions.{t}", config.interaction_name(t), config.channels
    lmax, width, paths = config.input_lmax(t), config.edge_width(t), convolution.paths(config, t)
    node = e3nn.Irreps(config.hidden_irreps)[: lmax + 1]
    expect(f"{name}.node_feats_irreps", irreps(model, f"{name}.node_feats_irreps"), wanted=node)
    narrow = e3nn.Irreps(str(node).replace(f"{C}x", f"{width}x"))
    expect(f"{name}.edge_irreps", edge_irreps(model, t), wanted=narrow)
    expect(
        f"{name}.edge_attrs_irreps", irreps(model, f"{name}.edge_attrs_irreps").dim, wanted=(config.max_ell + 1) ** 2
    )
    expect(f"{name}.target_irreps", len(irreps(model, f"{name}.target_irreps")), wanted=config.max_ell + 1)
    layers.check_couplings(model, f"{name}.conv_tp", paths=paths, C=width)
    layers.check_linear(model, f"{name}.linear_up", parts=tuple((C, width, l) for l in range(lmax + 1)))
    if "NonLinear" in block:
        _check_nonlinear(model, config, t=t)
        return
    layers.check_linear(model, f"{name}.linear", parts=tuple((width, C, p.l3) for p in paths))
    skip = min(lmax, config.output_lmax(t))
    sizes = [config.num_radial, *config.radial_mlp]
    if "Att" in block:
        layers.check_linear(model, f"{name}.skip_linear", parts=tuple((C, C, l) for l in range(skip + 1)))
        layers.check_linear(model, f"{name}.linear_down", parts=((C, DOWN, 0),))
        sizes = [config.num_radial + 2 * DOWN, *UNITS]
    else:
        skip = skip if "Residual" in block else config.max_ell
        layers.check_skip(model, f"{name}.skip_tp", lmax=skip, C=C, Z=len(config.species))
    layers.check_radial_mlp(model, f"{name}.conv_tp_weights", sizes=[*sizes, len(paths) * width])
    if "Density" in block:
        layers.check_radial_mlp(model, f"{name}.density_fn", sizes=[config.num_radial, 1])


def _check_nonlinear(model: TorchModel, config: ModelConfig, *, t: int) -> None:
    name, C, Z, lmax = f"interactions.{t}", config.channels, len(config.species), config.input_lmax(t)
    width, widths, paths = config.edge_width(t), gate_widths(config), convolution.paths(config, t)
    linears = {
        "source_embedding": ((Z, C, 0),),
        "target_embedding": ((Z, C, 0),),
        "skip_tp": tuple((C, C, l) for l in range(min(lmax, config.output_lmax(t)) + 1)),
        "linear_res": tuple((width, widths[l], l) for l in range(lmax + 1)),
        "linear_1": tuple((width, widths[p.l3], p.l3) for p in paths),
        "linear_2": tuple((C, C, l) for l in range(config.max_ell + 1)),
    }
    for key, parts in linears.items():
        layers.check_linear(model, f"{name}.{key}", parts=parts)
    features = config.num_radial + 2 * C
    layers.check_normed_mlp(model, f"{name}.conv_tp_weights", sizes=[features, *config.radial_mlp, len(paths) * width])
    layers.check_normed_mlp(model, f"{name}.density_fn", sizes=[features, *DENSITY_MLP, 1])
    layers.check_gate(model, f"{name}.equivariant_nonlin", C=C, lmax=config.max_ell)


def _check_product(model: TorchModel, config: ModelConfig, *, t: int) -> None:
    name, C, lmax = f"products.{t}", config.channels, config.output_lmax(t)
    hidden = e3nn.Irreps(config.hidden_irreps)
    expect(f"{name}.linear.irreps_out", irreps(model, f"{name}.linear.irreps_out"), wanted=hidden[: lmax + 1])
    expect(
        f"{name}.use_sc",
        attribute(model, f"{name}.use_sc", kind=bool),
        wanted=t > 0 or "Residual" in config.interaction_first,
    )
    agnostic = attribute(model, f"{name}.use_agnostic_product", kind=bool, default=False)
    expect(f"{name}.use_agnostic_product", agnostic, wanted=config.agnostic_product)
    layers.check_linear(model, f"{name}.linear", parts=tuple((C, C, L) for L in range(lmax + 1)))


def _check_readout(model: TorchModel, config: ModelConfig, *, t: int) -> None:
    C, H, name = config.channels, len(config.heads), f"readouts.{readout_index(config, t)}"
    if not 0 < t == config.num_interactions - 1:
        if not config.last_readout_only:
            layers.check_linear(model, f"{name}.linear", parts=((C, H, 0),))
        return
    units = H * config.readout_mlp
    linears = {"linear_1": (C, units), "linear_2": (units, H)}
    if has_bias := config.readout == "NonLinearBiasReadoutBlock":
        linears["linear_mid"] = (units, units)
    for key, shape in linears.items():
        layers.check_linear(model, f"{name}.{key}", parts=((*shape, 0),), has_bias=has_bias and key != "linear_1")
    expect(f"{name}.num_heads", attribute(model, f"{name}.num_heads", kind=int, default=1), wanted=H)
