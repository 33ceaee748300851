"""Files written by mace-torch, converted and compared with mace-torch; and the way back."""

import io
import os
import re
import zipfile

import jax
import numpy as np
import pytest
import torch
from e3nn import o3
from mace import modules
from mace.calculators import MACECalculator
from mace.modules.lora import inject_LoRAs

from convert import __main__ as cli
from convert import mapping, verify
from convert.errors import UnsupportedModel
from convert.to_torch import expand_u, use_reduced_basis, write_torch
from convert.torch_model import read_model
from equijax import checkpoint, couplings
from equijax.adapters import lora
from equijax.finetune import replay

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # e3nn 0.4.4 and mace call torch.load the old way
    pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning"),
]

NAMES = ("", "Residual", "Density", "DensityResidual", "ResidualNonLinear", "AttResidual")
BLOCKS = {name: f"RealAgnostic{name}InteractionBlock" for name in NAMES}
CHARGE = {"type": "categorical", "per": "graph", "num_classes": 9, "offset": 4, "emb_dim": 6}
VARIANTS = {
    "mp-0a": {"first": "Residual", "later": "Residual"},
    "0b3": {"first": "Density", "later": "DensityResidual", "distance_transform": "Agnesi", "pair_repulsion": True},
    "reduced": {"first": "", "later": "Residual", "max_ell": 3, "correlation": 3, "reduced": True},
    "L2": {"hidden_irreps": "4x0e+4x1o+4x2e", "first": "Residual", "later": "DensityResidual"},
    "L0": {"hidden_irreps": "8x0e", "first": "DensityResidual", "later": "Density", "num_polynomial_cutoff": 6},
    "three": {"num_interactions": 3, "correlation": [3, 2, 1], "gate": torch.tanh},
    "one": {"num_interactions": 1, "radial_type": "gaussian"},
    "heads": {"heads": ["pbe", "scan"], "gate": torch.abs, "radial_MLP": [16, 12]},
    "plain": {"cls": "MACE", "distance_transform": "Soft", "pair_repulsion": True},
    "chebyshev": {"radial_type": "chebyshev", "distance_transform": "Agnesi"},
    "raw-cutoff": {"apply_cutoff": False, "first": "Density", "later": "DensityResidual", "gate": None},
    "mh-1": {
        "first": "ResidualNonLinear",
        "later": "ResidualNonLinear",
        "edge_irreps": o3.Irreps("4x0e+4x1o"),
        "use_edge_irreps_first": True,
        "apply_cutoff": False,
        "use_agnostic_product": True,
        "heads": ["pbe", "scan"],
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        "readout_cls": modules.NonLinearBiasReadoutBlock,
        "correlation": 3,
    },
    "omol": {
        "first": "ResidualNonLinear",
        "later": "ResidualNonLinear",
        "num_interactions": 3,
        "apply_cutoff": False,
        "hidden_irreps": "8x0e+8x1o+8x2e",
        "edge_irreps": o3.Irreps("4x0e+4x1o+4x2e"),
        "use_last_readout_only": True,
        "embedding_specs": {"total_charge": CHARGE, "total_spin": CHARGE | {"num_classes": 5, "offset": 0}},
        "use_embedding_readout": True,
    },
    "narrow": {"edge_irreps": o3.Irreps("4x0e+4x1o"), "first": "Density", "later": "DensityResidual"},
    "attention": {"first": "AttResidual", "later": "AttResidual", "edge_irreps": o3.Irreps("4x0e+4x1o")},
    "so3": {"use_so3": True, "hidden_irreps": "8x0e+8x1e", "later": "ResidualNonLinear"},
    "continuous": {
        "num_interactions": 1,
        "later": "ResidualNonLinear",
        "first": "ResidualNonLinear",
        "embedding_specs": {"total_charge": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}},
    },
}


def torch_model(
    seed=0, dtype=torch.float64, cls="ScaleShiftMACE", first="", later="Residual", reduced=False, **changes
):
    """A random mace-torch model, small in every direction."""
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    heads = changes.get("heads", ["Default"])
    options = {
        "r_max": 4.0,
        "num_bessel": 5,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "num_interactions": 2,
        "num_elements": 3,
        "hidden_irreps": "8x0e+8x1o",
        "MLP_irreps": o3.Irreps("4x0e"),
        "correlation": 2,
        "atomic_energies": np.linspace(-3.0, -1.0, 3 * len(heads)).reshape(len(heads), 3),
        "avg_num_neighbors": 11.3,
        "atomic_numbers": [8, 14, 29],
        "gate": torch.nn.functional.silu,
        "radial_MLP": [16, 16, 16],
        "use_reduced_cg": False,
        "interaction_cls_first": modules.interaction_classes[BLOCKS[first]],
        "interaction_cls": modules.interaction_classes[BLOCKS[later]],
    }
    if cls == "ScaleShiftMACE":
        options |= {"atomic_inter_scale": [0.8, 0.7][: len(heads)], "atomic_inter_shift": [0.1, 0.2][: len(heads)]}
    options |= changes
    options["hidden_irreps"] = o3.Irreps(options["hidden_irreps"])
    model = getattr(modules, cls)(**options)
    with torch.no_grad():
        for name, value in model.named_parameters():  # what starts at 0, at 1 or the same for all
            if re.search(r"alpha|beta|bias|net\.\d+\.weight|(source|target)_embedding", name):
                value.add_(0.1 * torch.randn_like(value))
    if reduced:
        pytest.importorskip("cuequivariance")
        use_reduced_basis(model)
    return model


@pytest.fixture(autouse=True)
def default_dtype():
    yield
    torch.set_default_dtype(torch.float32)


def differences(path, config, variables, head) -> dict[str, float]:
    """By quantity, the largest difference to mace-torch."""
    return {key: found.value for key, found in verify.compared(path, config, variables=variables, head=head).items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_there_and_back(variant, tmp_path):
    """Converted: the numbers of mace-torch. Converted back: the same variables, and again the numbers of mace-torch."""
    path, back = tmp_path / "model.model", tmp_path / "back.model"
    torch.save(torch_model(**VARIANTS[variant]), path)
    config, variables = mapping.to_flax(read_model(path))
    write_torch(back, config, variables=variables)
    for file in (path, back):
        for head in config.heads:
            found = differences(file, config, variables, head)
            assert all(value <= verify.LIMITS["float64"][key] for key, value in found.items()), (file.name, found)


def test_low_rank_adapters_of_mace_torch_are_folded(tmp_path):
    """A model saved in the middle of `--lora` training: mace-torch runs it with its adapters."""
    path = tmp_path / "lora.model"
    model = inject_LoRAs(torch_model(**VARIANTS["0b3"]), rank=2, alpha=3)
    torch.save(model, path)
    config, start = mapping.to_flax(read_model(path))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_" in name:
                value.copy_(0.1 * torch.randn_like(value))
    torch.save(model, path)
    found = differences(path, config, mapping.to_flax(read_model(path))[1], "Default")
    assert all(value <= verify.LIMITS["float64"][key] for key, value in found.items()), found
    assert differences(path, config, start, "Default")["energy"] > 1e-3


def test_fine_tuned_models_go_to_torch(tmp_path):
    """Adapters of every layer folded in, then a second head: mace-torch computes the numbers of the changed model."""
    torch.save(torch_model(**VARIANTS["0b3"]), tmp_path / "start.model")
    config, start = mapping.to_flax(read_model(tmp_path / "start.model"))
    adapters = lora.init_lora(start["params"], rank=2, alpha=2)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), adapters)
    merged = lora.merge(start, adapters)
    assert max(differences(tmp_path / "start.model", config, merged, "Default").values()) > 1e-3
    for name, (changed, variables) in {
        "lora": (config, merged),
        "head": replay.add_head(config, merged, name="finetuned"),
    }.items():
        write_torch(tmp_path / f"{name}.model", changed, variables=variables)
        for head in changed.heads:
            found = differences(tmp_path / f"{name}.model", changed, variables, head)
            assert all(value <= verify.LIMITS["float64"][key] for key, value in found.items()), (name, head, found)


def test_command_line_there_and_back(tmp_path, capsys):
    path, out, back = tmp_path / "a.model", tmp_path / "ckpt", tmp_path / "back.model"
    torch.save(torch_model(dtype=torch.float32), path)
    assert cli.main([str(path), str(out), "--verify"]) == 0
    assert capsys.readouterr().out.count(" ok") == 3
    assert cli.main(["--to-torch", str(out), str(back)]) == 0
    config, variables, _ = checkpoint.load(out)
    assert mapping.to_flax(read_model(back))[0] == config
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_verify_fails_on_other_weights(tmp_path):
    path, other = tmp_path / "a.model", tmp_path / "b.model"
    torch.save(torch_model(), path)
    torch.save(torch_model(seed=1), other)
    config, variables = mapping.to_flax(read_model(path))
    rows = verify.compare(other, config, variables=variables, dtype="float64")
    assert any(not row.within and "TOO LARGE" in str(row) for row in rows)


def test_published_shape(tmp_path):
    """89 elements, 128 channels and the path counts of the published files."""
    path = tmp_path / "big.model"
    model = torch_model(
        dtype=torch.float32,
        first="Density",
        later="DensityResidual",
        r_max=6.0,
        num_bessel=10,
        max_ell=3,
        hidden_irreps="128x0e+128x1o",
        MLP_irreps=o3.Irreps("16x0e"),
        correlation=3,
        num_elements=89,
        atomic_numbers=list(range(1, 90)),
        atomic_energies=np.zeros(89),
        radial_MLP=[64, 64, 64],
        distance_transform="Agnesi",
        pair_repulsion=True,
    )
    torch.save(model, path)
    config, variables = mapping.to_flax(read_model(path))
    assert config.contraction_paths == (((1, 4, 23), (1, 6, 51)), ((1, 4, 23),))
    count = sum(a.size for a in jax.tree.leaves(variables["params"]))
    assert count == sum(p.numel() for p in model.parameters()) == 9_063_204


def test_couplings_have_the_sign_of_e3nn():
    torch.set_default_dtype(torch.float64)
    degrees = [(a, b, c) for a in range(5) for b in range(5) for c in range(abs(a - b), min(a + b, 4) + 1)]
    for l1, l2, l3 in degrees:
        theirs = o3.wigner_3j(l1, l2, l3).numpy() * np.sqrt(2 * l3 + 1)
        np.testing.assert_allclose(couplings.clebsch_gordan(l1, l2, l3), theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("L", "degree"), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)])
def test_expanded_u_compresses_to_itself(L, degree):
    c = np.random.default_rng(0).normal(size=(len(couplings.monomials(2, L, degree=degree).component), 4))
    np.testing.assert_allclose(couplings.compress_u(expand_u(c, 2, L=L, degree=degree), 2, L=L), c, rtol=0, atol=1e-14)


def test_models_outside_the_family_are_refused_by_name(tmp_path):
    path = tmp_path / "a.model"
    for changes, name in (
        ({"edge_irreps": o3.Irreps("4x0e")}, "edge_irreps"),
        ({"embedding_specs": {"elec_temp": CHARGE}}, "elec_temp"),
        ({"embedding_specs": {"total_charge": CHARGE | {"per": "node"}}}, "total_charge"),
        ({"keep_last_layer_irreps": True}, "skip_tp number of paths"),
    ):
        torch.save(torch_model(**changes), path)
        with pytest.raises(UnsupportedModel, match=name):
            mapping.to_flax(read_model(path))


def as_saved_on_cuda(data: bytes) -> bytes:
    """A torch file whose tensors say that they were on the first GPU."""
    out, old, new = io.BytesIO(), b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content.replace(old, new) if name.endswith(".pkl") else content)
    return out.getvalue()


def test_file_saved_on_cuda_is_verified_without_one(tmp_path, monkeypatch, capsys):
    """The tensors of the modules and those in e3nn's compiled code, which torch loads apart."""
    save, count = torch.jit.save, []

    def on_cuda(module, file):
        plain = io.BytesIO()
        save(module, plain)
        count.append(file.write(as_saved_on_cuda(plain.getvalue())))

    monkeypatch.setattr(torch.jit, "save", on_cuda)
    torch.save(torch_model(), tmp_path / "plain.model")
    monkeypatch.undo()
    (tmp_path / "cuda.model").write_bytes(as_saved_on_cuda((tmp_path / "plain.model").read_bytes()))
    with pytest.raises(NotImplementedError, match="CUDA"):  # what mace-torch does with such a file
        MACECalculator(model_paths=tmp_path / "cuda.model", device="cpu")
    assert count and cli.main([str(tmp_path / "cuda.model"), str(tmp_path / "out"), "--verify"]) == 0
    assert capsys.readouterr().out.count(" ok") == 3


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_float32_files_are_verified_in_proportion(tmp_path, scale):
    """Energies of 1e6 eV/atom in float32 numbers: rounding is no fault, other weights are."""
    model = torch_model(dtype=torch.float32, atomic_inter_scale=[0.8 * scale])
    torch.save(model, tmp_path / "a.model")
    config, variables = mapping.to_flax(read_model(tmp_path / "a.model"))
    assert all(row.within for row in verify.compare(tmp_path / "a.model", config, variables=variables, dtype="float32"))
    changed = jax.tree.map(lambda w: w * (1 + 1e-4), variables["params"])
    rows = verify.compare(tmp_path / "a.model", config, variables={**variables, "params": changed}, dtype="float32")
    assert not all(row.within for row in rows)
