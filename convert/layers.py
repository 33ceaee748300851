"""Checks of single layers of a torch model against what the Flax layers compute."""

import math

from convert.config import any_irreps
from convert.errors import UnreadableModel, UnsupportedModel
from convert.torch_model import TorchModel, attribute, expect
from equijax import couplings
from equijax.nn.nonlinear import LAYER_NORM_EPS

# Gates since mace-torch 0.3.16, and those of e3nn before.
GATES = frozenset(
    {
        "mace.modules.gate.GatedEquivariantBlock",
        "e3nn.nn._gate.Gate",
        "e3nn.nn._gate._Sortcut",
        "e3nn.nn._extract.Extract",
        "e3nn.o3._tensor_product._sub.ElementwiseTensorProduct",
    }
)
TORCH = frozenset(
    f"torch.nn.modules.{name}"
    for name in (
        "linear.Linear",
        "normalization.LayerNorm",
        "activation.SiLU",
        "container.Sequential",
        "container.ModuleDict",
        "sparse.Embedding",
    )
)
SILU, SIGMOID = "torch.nn.functional.silu", ("torch.nn.functional.sigmoid", "torch.sigmoid")


def check_linear(
    model: TorchModel, name: str, *, parts: tuple[tuple[int, int, int], ...], has_bias: bool = False
) -> None:
    """e3nn Linear: (fan-in, fan-out, l) of each path in order, each weighted by 1/sqrt(total fan-in of its l)."""
    degrees = [ir.l for _, ir in any_irreps(model, f"{name}.irreps_in")]
    found = attribute(model, f"{name}.instructions", kind=tuple)
    if has_bias:  # an instruction of its own, after the paths, with nothing going in
        expect(f"{name} bias", found[-1:], wanted=((-1, 0, (parts[0][1],), 1.0),))
        found = found[:-1]
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


def check_couplings(model: TorchModel, name: str, *, paths: tuple[couplings.Path, ...], C: int) -> None:
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


def check_skip(model: TorchModel, name: str, *, lmax: int, C: int, Z: int) -> None:
    """e3nn FullyConnectedTensorProduct with one-hot species: one path per l, weight sqrt((2l + 1) / (C Z))."""
    found = attribute(model, f"{name}.instructions", kind=tuple)
    expect(f"{name} number of paths", len(found), wanted=lmax + 1)
    for l, row in enumerate(found):
        if not isinstance(row, tuple) or len(row) != 7:
            raise UnreadableModel(f"{name}.instructions are not those of a tensor product")
        expect(f"{name} path {l}", (row[0], row[3], row[6]), wanted=(l, "uvw", (C, Z, C)))
        expect(f"{name} path weight of l = {l}", row[5], wanted=math.sqrt((2 * l + 1) / (C * Z)))


def check_radial_mlp(model: TorchModel, name: str, *, sizes: list[int]) -> None:
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


def check_normed_mlp(model: TorchModel, name: str, *, sizes: list[int]) -> None:
    """mace's RadialMLP: Linear, LayerNorm, SiLU, .. , Linear of these sizes."""
    expect(f"{name}.hs", list(attribute(model, f"{name}.hs", kind=tuple)), wanted=sizes)
    found = [model.classes.get(f"{name}.net.{i}", "").rsplit(".", 1)[-1] for i in range(3 * len(sizes))]
    wanted = ["Linear", "LayerNorm", "SiLU"] * (len(sizes) - 2) + ["Linear"]
    expect(f"layers of {name}", [cls for cls in found if cls], wanted=wanted)
    for i in range(len(sizes) - 2):
        norm = f"{name}.net.{3 * i + 1}"
        expect(
            f"{norm}.normalized_shape", attribute(model, f"{norm}.normalized_shape", kind=tuple), wanted=(sizes[i + 1],)
        )
        expect(f"{norm}.eps", attribute(model, f"{norm}.eps", kind=float), wanted=LAYER_NORM_EPS)


def check_gate(model: TorchModel, name: str, *, C: int, lmax: int) -> None:
    """silu of C scalars, and as many sigmoid gates for each degree from 1 to lmax."""
    scalars, gates, gated = (any_irreps(model, f"{name}.irreps_{kind}") for kind in ("scalars", "gates", "gated"))
    expect(f"{name}.irreps_scalars", (len(scalars), scalars.dim, scalars.lmax), wanted=(1, C, 0))
    # e3nn's gate holds one sum of all scalars, mace-torch's one a degree
    expect(f"{name}.irreps_gates", str(gates.simplify()), wanted=f"{C * lmax}x0e" if lmax else "")
    expect(f"{name}.irreps_gated", [(mul, ir.l) for mul, ir in gated], wanted=[(C, l) for l in range(1, lmax + 1)])
    if f"{name}._act_scalar" in model.attributes:
        functions = [model.attributes.get(f"{name}._act_{kind}") for kind in ("scalar", "gate")]
        expect(f"{name}._layout_is_ir_mul", model.attributes.get(f"{name}._layout_is_ir_mul"), wanted=False)
    else:
        functions = [model.attributes.get(f"{name}.act_{kind}.acts.0.f") for kind in ("scalars", "gates")]
    expect(f"{name} of scalars", functions[0], wanted=SILU)
    if lmax and functions[1] not in SIGMOID:
        raise UnsupportedModel(f"{name} of gates = {functions[1]} is not supported; expected {SIGMOID[0]}")
