"""Hyper-parameters of a MACE model from its torch file: every one is read or checked, none is assumed.

A value this package does not support raises `UnsupportedModel` that names it; an attribute nobody here has heard of
does too, unless it is switched off (None, False or empty).
"""

import dataclasses
import math
import re
from typing import Any

import e3nn_jax as e3nn
import numpy as np

from convert.errors import UnreadableModel, UnsupportedModel, shorten
from convert.families import family
from convert.modules import TorchModel
from equijax import couplings
from equijax.config import INTERACTIONS, ModelConfig

MODELS = {"mace.modules.models.ScaleShiftMACE": True, "mace.modules.models.MACE": False}  # class -> scale_shift
BASES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
TRANSFORMS = {"AgnesiTransform": "agnesi", "SoftTransform": "soft", None: "none"}
MAX_L = 6
MAX_INTERACTIONS = 100
GATES = {
    "torch.nn.functional.silu": "silu", "torch.tanh": "tanh", "torch.nn.functional.tanh": "tanh", "torch.abs": "abs",
    "torch._C._VariableFunctionsClass.tanh": "tanh", "torch._C._VariableFunctionsClass.abs": "abs", None: "none",
}  # fmt: skip
KNOWN_CLASSES = frozenset({
    *MODELS, *(f"mace.modules.blocks.{name}" for name in INTERACTIONS),
    *(f"mace.modules.radial.{name}" for name in (*BASES, *filter(None, TRANSFORMS), "PolynomialCutoff", "ZBLBasis")),
    *(f"mace.modules.blocks.{name}" for name in (
        "LinearNodeEmbeddingBlock", "RadialEmbeddingBlock", "AtomicEnergiesBlock", "EquivariantProductBasisBlock",
        "LinearReadoutBlock", "NonLinearReadoutBlock", "ScaleShiftBlock")),
    "mace.modules.irreps_tools.reshape_irreps", "mace.modules.symmetric_contraction.SymmetricContraction",
    "mace.modules.symmetric_contraction.Contraction", "e3nn.o3._linear.Linear",
    "e3nn.o3._tensor_product._tensor_product.TensorProduct",
    "e3nn.o3._tensor_product._sub.FullyConnectedTensorProduct", "e3nn.o3._spherical_harmonics.SphericalHarmonics",
    "e3nn.nn._fc.FullyConnectedNet", "e3nn.nn._fc._Layer", "e3nn.nn._activation.Activation",
    "e3nn.math._normalize_activation.normalize2mom", "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.container.ParameterList", "torch.fx.graph_module.reduce_graph_module",
})  # fmt: skip
# Attributes of mace's own classes that are read below, implied by shapes that are checked, or without effect.
KNOWN_ATTRIBUTES = frozenset({
    "heads", "apply_cutoff", "use_reduced_cg", "pair_repulsion", "out_dim", "num_basis", "r_max", "coeff", "num_heads",
    "node_attrs_irreps", "node_feats_irreps", "edge_attrs_irreps", "edge_feats_irreps", "target_irreps", "irreps_out",
    "irreps_in", "irreps", "hidden_irreps", "edge_irreps", "avg_num_neighbors", "radial_MLP", "dims", "muls", "use_sc",
    "internal_weights", "shared_weights", "num_features", "coupling_irreps", "correlation", "_size",
})  # fmt: skip
# Tensors of current mace-torch that older or other versions keep as plain attributes: numbers, lists, bare tensors.
PLAIN_NUMBERS = re.compile(
    r"atomic_numbers|r_max|num_interactions|radial_embedding\.(cutoff_fn|bessel_fn)\.(p|r_max|prefactor)"
    r"|atomic_energies_fn\.atomic_energies|scale_shift\.(scale|shift)|pair_repulsion_fn\.(p|c|a_exp|a_prefactor)"
    r"|radial_embedding\.distance_transform\.(a|q|p|alpha)"
)
# Switches whose "off" value is not None, False or empty, or that do not change the energy.
HARMLESS = frozenset({"lammps_mliap"})


def with_numbers(model: TorchModel) -> TorchModel:
    """`model` with the numbers that its version keeps as plain attributes moved to its tensors."""
    plain = {
        name: value
        for name, value in model.attributes.items()
        if PLAIN_NUMBERS.fullmatch(name) and isinstance(value, int | float | tuple) and name not in model.tensors
    }
    if not plain:
        return model
    attributes = {name: value for name, value in model.attributes.items() if name not in plain}
    return dataclasses.replace(
        model, tensors=model.tensors | {k: _numbers(k, v) for k, v in plain.items()}, attributes=attributes
    )


def _numbers(name: str, value: object) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        array = np.asarray(None)
    if array.dtype.kind not in "iuf":
        raise UnreadableModel(f"{name} = {str(value)[:100]} is not made of numbers")
    return array


def read_config(model: TorchModel) -> ModelConfig:
    """The `ModelConfig` of a torch MACE model.

    Raises:
      UnsupportedModel: a class, option or value outside the implemented family, by name.
      UnreadableModel: the file contradicts itself or lacks something every MACE model has.
    """
    _check_classes(model)
    _check_attributes(model)
    num = int(scalar(model, "num_interactions"))
    if not 1 <= num <= MAX_INTERACTIONS:
        raise UnreadableModel(f"num_interactions = {num}, expected 1 to {MAX_INTERACTIONS}")
    blocks = [model.classes.get(f"interactions.{t}", "").rsplit(".", 1)[-1] for t in range(num)]
    if f"interactions.{num}" in model.classes or not all(b in INTERACTIONS for b in blocks):
        raise UnreadableModel(f"num_interactions = {num}, but the interaction blocks are {', '.join(blocks[:5])}")
    if len(set(blocks[1:])) > 1:
        raise UnsupportedModel(f"interaction blocks after the first differ: {', '.join(blocks[1:])}")
    hidden = str(irreps(model, "products.0.linear.irreps_out"))
    max_ell = len(irreps(model, "interactions.0.edge_attrs_irreps")) - 1
    heads = _all_of(str, "heads", attribute(model, "heads", tuple, ("Default",)))
    r_max, power = _cutoff(model)
    mlp = "interactions.0.conv_tp_weights"
    try:
        config = ModelConfig(
            species=tuple(int(z) for z in tensor(model, "atomic_numbers").tolist()),
            heads=heads,
            r_max=r_max,
            hidden_irreps=hidden,
            max_ell=max_ell,
            num_interactions=num,
            correlation=tuple(_correlation(model, t) for t in range(num)),
            interaction_first=blocks[0],
            interaction=blocks[-1],
            radial_basis=_one(model, "radial_embedding.bessel_fn", BASES),
            num_radial=_num_radial(model),
            distance_transform=_one(model, "radial_embedding.distance_transform", TRANSFORMS),
            cutoff_power=power,
            apply_cutoff=attribute(model, "radial_embedding.apply_cutoff", bool, True),
            radial_mlp=_all_of(int, f"{mlp}.hs", attribute(model, f"{mlp}.hs", tuple))[1:-1],
            readout_mlp=_readout_mlp(model, num, len(heads)),
            gate=_gate(model, num),
            avg_num_neighbors=_avg_num_neighbors(model, num),
            pair_repulsion=_pair_repulsion(model),
            zbl_power=int(scalar(model, "pair_repulsion_fn.p")) if "pair_repulsion_fn" in model.classes else power,
            scale_shift=MODELS[model.classes[""]],
            contraction_paths=tuple(_contraction_paths(model, t) for t in range(num)),
        )
    except UnreadableModel:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise UnsupportedModel(str(error)) from None
    _check_blocks(model, config)
    _check_radial(model, config)
    return config


def attribute(model: TorchModel, name: str, kind: type, default: object = ...) -> Any:
    """The attribute `name`, which must be of type `kind`; `default` where old files lack it."""
    value = model.attributes.get(name, default)
    if value is ...:
        raise UnreadableModel(f"attribute {name} is missing; every MACE model has it")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UnreadableModel(f"attribute {name} is {shorten(value)}, expected {kind.__name__}")
    return value


def _all_of(kind: type, name: str, values: tuple) -> tuple:
    if not values or not all(type(value) is kind for value in values):
        raise UnreadableModel(f"attribute {name} = {str(values)[:200]} is not a non-empty list of {kind.__name__}")
    return values


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


def any_irreps(model: TorchModel, name: str, default: object = ...) -> e3nn.Irreps:
    """Irreps stored as the attribute `name`."""
    text = attribute(model, name, str, default)
    try:
        return e3nn.Irreps(text)
    except (ValueError, AssertionError):
        raise UnreadableModel(f"attribute {name} = {shorten(text)} is not an irreps string") from None


def irreps(model: TorchModel, name: str) -> e3nn.Irreps:
    """Irreps stored as the attribute `name`, ordered l = 0, 1, ... with natural parity and one multiplicity."""
    found = any_irreps(model, name)
    natural = [ir.l for _, ir in found] == list(range(len(found))) and all(ir.p == (-1) ** ir.l for _, ir in found)
    if not natural or len({mul for mul, _ in found}) != 1 or len(found) > MAX_L + 1:
        raise UnsupportedModel(
            f"{name} = {str(found)[:200]}: expected 0e+1o+2e+... up to l = {MAX_L} with one multiplicity"
        )
    return found


def expect(name: str, found: object, wanted: object) -> None:
    """Raise unless a value of the file is the only one supported."""
    same = found == wanted
    if isinstance(wanted, float) and isinstance(found, int | float):
        same = math.isclose(found, wanted, rel_tol=1e-6)
    if not same:
        raise UnsupportedModel(f"{name} = {str(found)[:300]} is not supported; expected {str(wanted)[:300]}")


def _expect_constant(model: TorchModel, name: str, wanted: float) -> None:
    """As `expect` for a one-element tensor, which a file of lower precision holds rounded.

    A number of at most 11 significant bits (8: bfloat16) went through half precision; r_max was rounded before it too.
    """
    found = scalar(model, name)
    mantissa = math.frexp(found)[0]
    bits = next((bits for bits in (8, 11) if (mantissa * 2**bits).is_integer()), 20)
    if not math.isclose(found, wanted, rel_tol=2.0 ** (1 - bits)):
        raise UnsupportedModel(f"{name} = {found} is not supported; expected {wanted}")


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


def _one(model: TorchModel, name: str, table: dict) -> str:
    """Table value for the class of module `name` (None where there is no such module)."""
    cls = model.classes.get(name)
    key = cls.rsplit(".", 1)[-1] if cls else None
    if key not in table:
        raise UnsupportedModel(f"{name} is {shorten(cls)}; expected one of {', '.join(map(str, table))}")
    return table[key]


def _cutoff(model: TorchModel) -> tuple[float, int]:
    r_max = scalar(model, "r_max")
    expect("class of radial_embedding.cutoff_fn", model.classes.get("radial_embedding.cutoff_fn"),
           "mace.modules.radial.PolynomialCutoff")  # fmt: skip
    _expect_constant(model, "radial_embedding.cutoff_fn.r_max", r_max)
    power = scalar(model, "radial_embedding.cutoff_fn.p")
    if power != int(power) or power < 1:
        raise UnsupportedModel(f"radial_embedding.cutoff_fn.p = {power}; expected a positive integer")
    return r_max, int(power)


def _num_radial(model: TorchModel) -> int:
    number = attribute(model, "radial_embedding.out_dim", int)
    if not 1 <= number <= 1000:
        raise UnsupportedModel(f"radial_embedding.out_dim = {number} radial functions; expected 1 to 1000")
    return number


def _pair_repulsion(model: TorchModel) -> bool:
    """mace-torch adds ZBL where the attribute `pair_repulsion` exists, whatever its value."""
    switch, function = "pair_repulsion" in model.attributes, "pair_repulsion_fn" in model.classes
    if switch != function:
        raise UnreadableModel(f"pair_repulsion is {switch} but module pair_repulsion_fn is {function}")
    return function


def _correlation(model: TorchModel, t: int) -> int:
    prefix = f"products.{t}.symmetric_contractions.contractions"
    degrees = set()
    for L in range(20):
        if f"{prefix}.{L}" in model.classes:
            degrees.add(sum(f"{prefix}.{L}.U_matrix_{nu}" in model.tensors for nu in range(1, 10)))
    if len(degrees) != 1 or not 1 <= max(degrees) <= 4:
        raise UnsupportedModel(f"{prefix}: U tensors of degrees {sorted(degrees)}; expected one degree from 1 to 4")
    return degrees.pop()


def _contraction_paths(model: TorchModel, t: int) -> tuple[tuple[int, ...], ...]:
    prefix = f"products.{t}.symmetric_contractions"
    degrees = range(1, _correlation(model, t) + 1)
    outputs = range(len(irreps(model, f"{prefix}.irreps_out")))
    return tuple(tuple(_paths(model, f"{prefix}.contractions.{L}.U_matrix_{nu}") for nu in degrees) for L in outputs)


def _paths(model: TorchModel, name: str) -> int:
    shape = tensor(model, name).shape
    if not shape or not shape[-1]:
        raise UnreadableModel(f"{name} has shape {shape}, expected coupling paths along its last axis")
    return shape[-1]


def _readout_mlp(model: TorchModel, num: int, num_heads: int) -> int:
    if num == 1:
        return 0  # the only readout is linear
    width = irreps(model, f"readouts.{num - 1}.linear_1.irreps_out")
    if len(width) != 1 or width.dim % num_heads:
        raise UnsupportedModel(f"readouts.{num - 1}.linear_1.irreps_out = {width}: expected {num_heads} times scalars")
    return width.dim // num_heads


def _gate(model: TorchModel, num: int) -> str:
    if num == 1:
        return "none"
    function = model.attributes.get(f"readouts.{num - 1}.non_linearity.acts.0.f")
    if function not in GATES:
        raise UnsupportedModel(
            f"readouts.{num - 1}.non_linearity is {shorten(function)}; expected one of {', '.join(map(str, GATES))}"
        )
    return GATES[function]


def _avg_num_neighbors(model: TorchModel, num: int) -> float:
    values = {attribute(model, f"interactions.{t}.avg_num_neighbors", float) for t in range(num)}
    if len(values) != 1:
        raise UnsupportedModel(f"interactions.*.avg_num_neighbors differ: {sorted(values)}")
    return values.pop()


def _check_radial(model: TorchModel, config: ModelConfig) -> None:
    """Constants that the radial functions here compute from r_max and the number of functions."""
    name, n = "radial_embedding.bessel_fn", config.num_radial
    if config.radial_basis == "bessel":
        _expect_constant(model, f"{name}.r_max", config.r_max)
        _expect_constant(model, f"{name}.prefactor", math.sqrt(2.0 / config.r_max))
    elif config.radial_basis == "gaussian":
        width = -0.5 * ((n - 1) / config.r_max) ** 2 if n > 1 else math.nan
        expect(f"{name}.coeff", attribute(model, f"{name}.coeff", float), width)
    else:
        expect(f"{name}.n", tensor(model, f"{name}.n").reshape(-1).tolist(), list(range(1, n + 1)))


def _check_blocks(model: TorchModel, config: ModelConfig) -> None:
    """Irreps, couplings, normalisations and activations of every block against what the Flax model computes."""
    C, Z, H, T = config.channels, len(config.species), len(config.heads), config.num_interactions
    hidden = e3nn.Irreps(config.hidden_irreps)
    expect("spherical_harmonics.normalize", model.attributes.get("spherical_harmonics.normalize"), True)
    expect("spherical_harmonics.normalization", model.attributes.get("spherical_harmonics.normalization"), "component")
    linears = {"node_embedding.linear": ((Z, C, 0),)}
    for t in range(T):
        lmax_in, lmax_out = config.input_lmax(t), config.output_lmax(t)
        node = hidden[: lmax_in + 1]
        inter, prod = f"interactions.{t}", f"products.{t}"
        expect(f"{inter}.node_feats_irreps", irreps(model, f"{inter}.node_feats_irreps"), node)
        # edge_irreps: the narrower convolutions of newer mace-torch
        expect(f"{inter}.edge_irreps", any_irreps(model, f"{inter}.edge_irreps", str(node)), node)
        expect(f"{inter}.edge_attrs_irreps", irreps(model, f"{inter}.edge_attrs_irreps").dim, (config.max_ell + 1) ** 2)
        expect(f"{inter}.target_irreps", len(irreps(model, f"{inter}.target_irreps")), config.max_ell + 1)
        expect(f"{prod}.linear.irreps_out", irreps(model, f"{prod}.linear.irreps_out"), hidden[: lmax_out + 1])
        use_sc = t > 0 or "Residual" in config.interaction_first
        expect(f"{prod}.use_sc", attribute(model, f"{prod}.use_sc", bool), use_sc)
        paths = couplings.conv_paths(lmax_in, config.max_ell, config.max_ell)
        _check_couplings(model, f"{inter}.conv_tp", paths, C)
        residual = "Residual" in config.interaction_name(t)
        _check_skip(model, f"{inter}.skip_tp", min(lmax_in, lmax_out) if residual else config.max_ell, C, Z)
        linears[f"{inter}.linear_up"] = tuple((C, C, l) for l in range(lmax_in + 1))
        linears[f"{inter}.linear"] = tuple((C, C, p.l3) for p in paths)
        linears[f"{prod}.linear"] = tuple((C, C, L) for L in range(lmax_out + 1))
        _check_radial_mlp(model, f"{inter}.conv_tp_weights", [config.num_radial, *config.radial_mlp, len(paths) * C])
        if "Density" in config.interaction_name(t):
            _check_radial_mlp(model, f"{inter}.density_fn", [config.num_radial, 1])
        if t == T - 1 and t > 0:
            linears[f"readouts.{t}.linear_1"] = ((C, H * config.readout_mlp, 0),)
            linears[f"readouts.{t}.linear_2"] = ((H * config.readout_mlp, H, 0),)
            expect(f"readouts.{t}.num_heads", attribute(model, f"readouts.{t}.num_heads", int, 1), H)
        else:
            linears[f"readouts.{t}.linear"] = ((C, H, 0),)
    for name, parts in linears.items():
        _check_linear(model, name, parts)


def _check_linear(model: TorchModel, name: str, parts: tuple[tuple[int, int, int], ...]) -> None:
    """e3nn Linear: (fan-in, fan-out, l) of each path in order, each weighted by 1/sqrt(total fan-in of its l)."""
    degrees = [ir.l for _, ir in any_irreps(model, f"{name}.irreps_in")]
    found = attribute(model, f"{name}.instructions", tuple)
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
                expect(f"{name} path weight of l = {l}", weight, 1.0 / math.sqrt(fan))


def _check_couplings(model: TorchModel, name: str, paths: tuple[couplings.Path, ...], C: int) -> None:
    """e3nn TensorProduct: the order (l3, l1, l2) of paths and their weights sqrt(2 l3 + 1)."""
    left, right, out = ([ir.l for _, ir in any_irreps(model, f"{name}.irreps_{side}")]
                        for side in ("in1", "in2", "out"))  # fmt: skip
    try:
        found = [((left[i], right[j], out[k]), mode, weight, shape)
                 for i, j, k, mode, _, weight, shape in attribute(model, f"{name}.instructions", tuple)]  # fmt: skip
    except (TypeError, ValueError, IndexError):
        raise UnreadableModel(f"{name}.instructions are not those of a tensor product") from None
    expect(f"{name} paths (l1, l2, l3)", [f[0] for f in found], [tuple(p) for p in paths])
    for (_, _, l3), mode, weight, shape in found:
        expect(f"{name} connection", (mode, shape), ("uvu", (C, 1)))
        expect(f"{name} path weight to l = {l3}", weight, math.sqrt(2 * l3 + 1))


def _check_skip(model: TorchModel, name: str, lmax: int, C: int, Z: int) -> None:
    """e3nn FullyConnectedTensorProduct with one-hot species: one path per l, weight sqrt((2l + 1) / (C Z))."""
    found = attribute(model, f"{name}.instructions", tuple)
    expect(f"{name} number of paths", len(found), lmax + 1)
    for l, row in enumerate(found):
        if not isinstance(row, tuple) or len(row) != 7:
            raise UnreadableModel(f"{name}.instructions are not those of a tensor product")
        expect(f"{name} path {l}", (row[0], row[3], row[6]), (l, "uvw", (C, Z, C)))
        expect(f"{name} path weight of l = {l}", row[5], math.sqrt((2 * l + 1) / (C * Z)))


def _check_radial_mlp(model: TorchModel, name: str, sizes: list[int]) -> None:
    """e3nn FullyConnectedNet: sizes, unit variances, silu between the layers and nothing after the last."""
    expect(f"{name}.hs", list(attribute(model, f"{name}.hs", tuple)), sizes)
    last = len(sizes) - 2
    for i in range(last + 1):
        layer = f"{name}.layer{i}"
        for key, value in (("h_in", sizes[i]), ("var_in", 1), ("var_out", 1)):
            expect(f"{layer}.{key}", model.attributes.get(f"{layer}.{key}"), value)
        expect(f"{layer}.act", model.attributes.get(f"{layer}.act"), None)  # a module, not a bare function
        function = model.attributes.get(f"{layer}.act.f")
        expect(f"{layer}.act", function, None if i == last else "torch.nn.functional.silu")
