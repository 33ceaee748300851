"""Options, classes and tensors that are not supported are named."""

import re

import numpy as np
import pytest

from convert.errors import UnreadableModel, UnsupportedModel
from convert.mapping import to_flax
from convert.torch_model import Opaque
from tests.convert.samples import changed

SYMMETRIC = "products.0.symmetric_contractions.contractions.0"


LINEAR = ((0, 0, (24, 24), 0.3),)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_so3", True),
        ("use_agnostic_product", True),
        ("use_last_readout_only", True),
        ("interactions.1.edge_irreps", "8x0e"),
        ("embedding_specs", Opaque("dict")),
        ("brand_new_option", 3),
        ("products.0.cueq_config", Opaque("CueqConfig")),
        ("interactions.0.linear_up.instructions", LINEAR),
        ("interactions.0.conv_tp_weights.layer1.var_in", 2),
        ("interactions.1.conv_tp_weights.layer0.act.f", "torch.tanh"),
        ("interactions.0.edge_attrs_irreps", "1x0e+1x1e+1x2e+1x3e"),
        ("products.0.linear.irreps_out", "24x0e+24x1e"),
        ("spherical_harmonics.normalization", "norm"),
        ("spherical_harmonics.normalize", False),
        ("readouts.1.non_linearity.acts.0.f", "torch.relu"),
        ("readouts.1.linear_1.irreps_out", "16x0e+4x1o"),
        ("products.1.use_sc", False),
        ("radial_embedding.out_dim", 10**12),
        ("heads", ()),
        ("interactions.0.skip_tp.instructions", ()),
        ("radial_embedding.out_dim", 2**127),
        ("interactions.0.conv_tp_weights.hs", (8, 2**127, 64)),
    ],
)
def test_unsupported_options_are_named(mini, name, value):
    with pytest.raises(
        (UnsupportedModel, UnreadableModel), match=re.sub(r"\.instructions|\.acts\.0\.f|\.f$", "", name)
    ):
        to_flax(changed(mini, attributes={name: value}))


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("", "mace.modules.models.AtomicDipolesMACE"),
        ("interactions.0.conv_tp_weights", "torch.nn.modules.sparse.EmbeddingBag"),
        ("readouts.1", "mace.modules.blocks.GeneralNonLinearBiasReadoutBlock"),
        ("radial_embedding.distance_transform", "mace.modules.radial.BesselBasis"),
    ],
)
def test_unsupported_classes_are_named(mini, name, cls):
    with pytest.raises(UnsupportedModel, match=cls.rsplit(".", 1)[-1]):
        to_flax(changed(mini, classes={name: cls}))


@pytest.mark.parametrize(
    ("name", "cls", "missing"),
    [
        ("interactions.1", "mace.modules.blocks.RealAgnosticAttResidualInteractionBlock", "skip_linear"),
        ("interactions.1", "mace.modules.blocks.RealAgnosticResidualNonLinearInteractionBlock", "source_embedding"),
        ("readouts.1", "mace.modules.blocks.NonLinearBiasReadoutBlock", "linear_2 bias"),
        ("joint_embedding", "mace.modules.embeddings.GenericJointEmbedding", "embedding_specs"),
        ("embedding_readout", "mace.modules.blocks.LinearReadoutBlock", "readout of embeddings"),
    ],
)
def test_blocks_without_what_is_theirs_are_refused(mini, name, cls, missing):
    with pytest.raises((UnsupportedModel, UnreadableModel), match=missing):
        to_flax(changed(mini, classes={name: cls}))


@pytest.mark.parametrize("precision", [np.float16, "bfloat16"])
def test_constants_in_half_precision_are_recognised(mini, precision):
    """A float16 or bfloat16 file holds r_max and the prefactor rounded; another prefactor is still refused."""

    def rounded(array):
        if precision == "bfloat16":
            return ((array.astype("f4").view("u4") + 0x8000) & 0xFFFF0000).view("f4")
        return array.astype(precision)

    floats = {n: rounded(a) for n, a in mini.tensors.items() if a.dtype.kind == "f" and "U_matrix" not in n}
    _, variables = to_flax(changed(mini, tensors=floats))
    weights = variables["params"]["interactions_0"]["linear_up"]["l0"].reshape(-1)
    np.testing.assert_array_equal(weights, floats["interactions.0.linear_up.weight"].astype("f4"))
    name = "radial_embedding.bessel_fn.prefactor"
    with pytest.raises(UnsupportedModel, match=name):
        to_flax(changed(mini, tensors=floats | {name: 1.05 * floats[name]}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("radial_embedding.cutoff_fn.r_max", np.float32(4.0)),
        ("radial_embedding.bessel_fn.prefactor", np.float32(1)),
        ("radial_embedding.cutoff_fn.p", np.float32(5.5)),
        ("scale_shift.scale", np.ones(2, np.float32)),
        ("node_embedding.linear.weight", np.full(792, np.nan, np.float32)),
        ("num_interactions", np.int64(3)),
        ("num_interactions", np.int64(2**62)),
        ("num_interactions", np.float64(1e300)),
        ("r_max", np.float64(1e300)),
        (f"{SYMMETRIC}.U_matrix_2", np.float32(1)),
        (f"{SYMMETRIC}.U_matrix_2", np.zeros((9, 9, 4), np.float32)),
        (f"{SYMMETRIC}.U_matrix_2", np.ones((16, 16, 4), np.float32)),
    ],
)
def test_contradicting_tensors_are_named(mini, name, value):
    with pytest.raises((UnsupportedModel, UnreadableModel), match=name):
        to_flax(changed(mini, tensors={name: np.asarray(value)}))
