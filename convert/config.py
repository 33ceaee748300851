"""Reads the hyper-parameters of a MACE model from its torch file; none is assumed. `convert.checks` has the rest."""

import dataclasses
import re

import e3nn_jax as e3nn
import numpy as np

from convert.errors import UnreadableModel, UnsupportedModel, shorten
from convert.torch_model import TorchModel, attribute, expect, expect_constant, scalar, tensor
from equijax.config import EMBEDDED, INTERACTIONS, READOUTS, Embedding, ModelConfig

MODELS = {"mace.modules.models.ScaleShiftMACE": True, "mace.modules.models.MACE": False}  # class -> scale_shift
BASES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
TRANSFORMS = {"AgnesiTransform": "agnesi", "SoftTransform": "soft", None: "none"}
MAX_L = 6
MAX_INTERACTIONS = 100
GATES = {
    "torch.nn.functional.silu": "silu",
    "torch.tanh": "tanh",
    "torch.nn.functional.tanh": "tanh",
    "torch.abs": "abs",
    "torch._C._VariableFunctionsClass.tanh": "tanh",
    "torch._C._VariableFunctionsClass.abs": "abs",
    None: "none",
}
# Tensors of current mace-torch that older or other versions keep as plain attributes: numbers, lists, bare tensors.
PLAIN_NUMBERS = re.compile(
    r"atomic_numbers|r_max|num_interactions|radial_embedding\.(cutoff_fn|bessel_fn)\.(p|r_max|prefactor)"
    r"|atomic_energies_fn\.atomic_energies|scale_shift\.(scale|shift)|pair_repulsion_fn\.(p|c|a_exp|a_prefactor)"
    r"|radial_embedding\.distance_transform\.(a|q|p|alpha)"
)


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
    channels = irreps(model, "products.0.linear.irreps_out")[0].mul
    widths = tuple(edge_irreps(model, t)[0].mul for t in range(num))
    last_only = attribute(model, "use_last_readout_only", kind=bool, default=False)
    last = f"readouts.{0 if last_only else num - 1}"
    if last not in model.classes or f"readouts.{1 if last_only else num}" in model.classes:
        raise UnreadableModel(f"use_last_readout_only = {last_only} and {num} interactions, but other readouts")
    heads = _all_of(str, "heads", values=attribute(model, "heads", kind=tuple, default=("Default",)))
    r_max, power = _cutoff(model)
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
            radial_basis=_one(model, "radial_embedding.bessel_fn", table=BASES),
            num_radial=_num_radial(model),
            distance_transform=_one(model, "radial_embedding.distance_transform", table=TRANSFORMS),
            cutoff_power=power,
            apply_cutoff=attribute(model, "radial_embedding.apply_cutoff", kind=bool, default=True),
            radial_mlp=_radial_mlp(model, blocks),
            readout_mlp=_readout_mlp(model, last, num_heads=len(heads)) if num > 1 else 0,  # the only readout is linear
            gate=_gate(model, last) if num > 1 else "none",
            avg_num_neighbors=_avg_num_neighbors(model, num),
            pair_repulsion=_pair_repulsion(model),
            zbl_power=int(scalar(model, "pair_repulsion_fn.p")) if "pair_repulsion_fn" in model.classes else power,
            scale_shift=MODELS[model.classes[""]],
            contraction_paths=tuple(_contraction_paths(model, t) for t in range(num)),
            edge_channels=() if set(widths) == {channels} else widths,
            readout=_readout(model, last) if num > 1 else READOUTS[0],
            agnostic_product=attribute(model, "products.0.use_agnostic_product", kind=bool, default=False),
            last_readout_only=last_only,
            so3=attribute(model, "use_so3", kind=bool, default=False),
            embeddings=_embeddings(model),
            embedding_readout="embedding_readout" in model.classes,
        )
    except UnreadableModel:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise UnsupportedModel(str(error)) from None
    return config


def any_irreps(model: TorchModel, name: str, *, default: object = ...) -> e3nn.Irreps:
    """Irreps stored as the attribute `name`."""
    text = attribute(model, name, kind=str, default=default)
    try:
        return e3nn.Irreps(text)
    except (ValueError, AssertionError):
        raise UnreadableModel(f"attribute {name} = {shorten(text)} is not an irreps string") from None


def irreps(model: TorchModel, name: str) -> e3nn.Irreps:
    """Irreps stored as the attribute `name`, ordered l = 0, 1, ... with one multiplicity.

    Their parity is natural, (-1)^l; that of a model with `use_so3` is even.
    """
    return _uniform(model, name, found=any_irreps(model, name))


def edge_irreps(model: TorchModel, t: int) -> e3nn.Irreps:
    """Irreps of node features in the convolution of interaction t: in old files those that come in."""
    name = f"interactions.{t}.edge_irreps"
    if model.attributes.get(name) is None:
        return irreps(model, f"interactions.{t}.node_feats_irreps")
    return irreps(model, name)


def _uniform(model: TorchModel, name: str, *, found: e3nn.Irreps) -> e3nn.Irreps:
    so3 = model.attributes.get("use_so3") is True
    ordered = [(ir.l, ir.p) for _, ir in found] == [(l, 1 if so3 else (-1) ** l) for l in range(len(found))]
    if not ordered or len({mul for mul, _ in found}) != 1 or len(found) > MAX_L + 1:
        wanted = "of use_so3 0e+1e+2e" if so3 else "0e+1o+2e"
        raise UnsupportedModel(
            f"{name} = {str(found)[:200]}: expected {wanted}+... up to l = {MAX_L} with one multiplicity"
        )
    return found


def _all_of(kind: type, name: str, *, values: tuple) -> tuple:
    if not values or not all(type(value) is kind for value in values):
        raise UnreadableModel(f"attribute {name} = {str(values)[:200]} is not a non-empty list of {kind.__name__}")
    return values


def _one(model: TorchModel, name: str, *, table: dict) -> str:
    """Table value for the class of module `name` (None where there is no such module)."""
    cls = model.classes.get(name)
    key = cls.rsplit(".", 1)[-1] if cls else None
    if key not in table:
        raise UnsupportedModel(f"{name} is {shorten(cls)}; expected one of {', '.join(map(str, table))}")
    return table[key]


def _cutoff(model: TorchModel) -> tuple[float, int]:
    r_max = scalar(model, "r_max")
    expect(
        "class of radial_embedding.cutoff_fn",
        model.classes.get("radial_embedding.cutoff_fn"),
        wanted="mace.modules.radial.PolynomialCutoff",
    )
    expect_constant(model, "radial_embedding.cutoff_fn.r_max", wanted=r_max)
    power = scalar(model, "radial_embedding.cutoff_fn.p")
    if power != int(power) or power < 1:
        raise UnsupportedModel(f"radial_embedding.cutoff_fn.p = {power}; expected a positive integer")
    return r_max, int(power)


def _num_radial(model: TorchModel) -> int:
    number = attribute(model, "radial_embedding.out_dim", kind=int)
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


def _radial_mlp(model: TorchModel, blocks: list[str]) -> tuple[int, ...]:
    """Hidden units; those of blocks with attention are fixed."""
    chosen = next((t for t, block in enumerate(blocks) if "Att" not in block), 0)
    name = f"interactions.{chosen}.conv_tp_weights.hs"
    return _all_of(int, name, values=attribute(model, name, kind=tuple))[1:-1]


def _readout(model: TorchModel, last: str) -> str:
    cls = model.classes.get(last, "").rsplit(".", 1)[-1]
    if cls not in READOUTS:
        raise UnsupportedModel(f"{last} is {shorten(cls)}; expected one of {', '.join(READOUTS)}")
    return cls


def _readout_mlp(model: TorchModel, last: str, *, num_heads: int) -> int:
    width = irreps(model, f"{last}.linear_1.irreps_out")
    if len(width) != 1 or width.dim % num_heads:
        raise UnsupportedModel(f"{last}.linear_1.irreps_out = {width}: expected {num_heads} times scalars")
    return width.dim // num_heads


def _gate(model: TorchModel, last: str) -> str:
    function = model.attributes.get(f"{last}.non_linearity.acts.0.f")
    if function not in GATES:
        raise UnsupportedModel(
            f"{last}.non_linearity is {shorten(function)}; expected one of {', '.join(map(str, GATES))}"
        )
    return GATES[function]


def _embeddings(model: TorchModel) -> tuple[Embedding, ...]:
    """The numbers of a structure that the model embeds, from its `embedding_specs`."""
    given = model.attributes.get("embedding_specs")
    if (given is not None) != ("joint_embedding" in model.classes):
        raise UnreadableModel(f"embedding_specs = {shorten(given)}, but joint_embedding is another")
    if given is None:
        return ()
    out = []
    for name, given in dict(attribute(model, "embedding_specs", kind=tuple)).items():
        spec = dict(given) if isinstance(given, tuple) else {}
        kind, per = spec.get("type"), spec.get("per")
        known = {"type", "per", "num_classes", "emb_dim", "offset", "in_dim", "use_bias", "key"}
        if set(spec) - known or name not in EMBEDDED or per != "graph" or kind not in ("categorical", "continuous"):
            raise UnsupportedModel(
                f"embedding of {shorten(name)} ({shorten(kind)}, one for each {shorten(per)}): expected categorical or "
                f"continuous numbers of a whole structure, {' or '.join(EMBEDDED)}"
            )
        classes = spec["num_classes"] if kind == "categorical" else 0
        bias = bool(spec.get("use_bias", True)) if kind == "continuous" else True
        out.append(Embedding(name, int(spec["emb_dim"]), int(classes), int(spec.get("offset", 0)), bias))
    return tuple(out)


def _avg_num_neighbors(model: TorchModel, num: int) -> float:
    values = {attribute(model, f"interactions.{t}.avg_num_neighbors", kind=float) for t in range(num)}
    if len(values) != 1:
        raise UnsupportedModel(f"interactions.*.avg_num_neighbors differ: {sorted(values)}")
    return values.pop()
