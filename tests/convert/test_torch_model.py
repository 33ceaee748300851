"""The module tree of a file: the shipped model, trees that unfold. No torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.errors import UnreadableModel
from convert.records import Instance
from convert.torch_model import flatten, read_model
from tests.convert.samples import MINI


def test_shipped_model_is_read():
    model = read_model(MINI)
    assert model.classes[""] == "mace.modules.models.ScaleShiftMACE"
    assert model.tensors["products.0.symmetric_contractions.contractions.1.U_matrix_3"].shape == (3, 16, 16, 16, 51)
    assert "interactions.0.linear_up.weight" in model.parameters and "r_max" not in model.parameters
    assert model.attributes["interactions.1.conv_tp.irreps_out"].startswith("24x0e+24x0e+24x1o")
    assert model.attributes["readouts.1.non_linearity.acts.0.f"] == "torch.nn.functional.silu"
    np.testing.assert_allclose(model.tensors["r_max"], 5.0)


def test_reading_imports_nothing_of_the_file():
    code = """if True:
        import sys
        from pathlib import Path
        from convert.torch_model import read_model
        read_model(Path(sys.argv[1]))
        print(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "mace", "e3nn", "opt_einsum_fx", "jax"}))
    """
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(MINI)], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_shared_module_tree_does_not_unfold_exponentially():
    """30 levels of a module that holds its child twice: 2^30 names."""
    module = Instance("torch.nn.Module", (), {"_modules": {}})
    for _ in range(30):
        module = Instance("torch.nn.Module", (), {"_modules": {"a": module, "b": module}})
    with pytest.raises(UnreadableModel, match="needs more than"):
        flatten(module)


def test_module_that_contains_itself_is_refused():
    module = Instance("torch.nn.Module", (), {})
    module.state["_modules"] = {"a": module}
    with pytest.raises(UnreadableModel, match="module tree"):
        flatten(module)
