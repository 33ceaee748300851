"""A committee against mace-torch's calculator of the same members: names, shapes and values."""

import jax
import numpy as np
import pytest

from convert.to_torch import build
from equijax import testing
from equijax.adapters import committee, lora

torch = pytest.importorskip("torch")
mace_calculators = pytest.importorskip("mace.calculators")

MEMBERS = 3
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # e3nn 0.4.4 and mace call torch.load the old way
    pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning"),
]


def test_same_results_as_mace_torch():
    base = testing.random_forcefield(testing.random_config(channels=4, max_ell=2, radial_mlp=(16,), species=(11, 17)))
    start = lora.init_lora(base.variables["params"], 1, alpha=1.0)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda x: 0.1 * rng.normal(size=(MEMBERS, *x.shape)), start)
    ours = committee.gather(base, adapters)
    models = [build(base.config, one.variables) for one in ours.members]
    theirs = mace_calculators.MACECalculator(models=models, device="cpu", default_dtype="float64")
    atoms, mine = testing.rattled(), ours.calculator()
    for calculator in (mine, theirs):
        calculator.calculate(atoms, ["energy"])
    assert set(theirs.results) == set(mine.results)
    assert {"energy_comm", "energy_var", "forces_comm", "stress_var"} <= set(mine.implemented_properties)
    values = {name: (mine.results[name], theirs.results[name]) for name in mine.results}
    values["hessian"] = mine.get_hessian(atoms), theirs.get_hessian(atoms)
    values["descriptors"] = mine.get_descriptors(atoms), theirs.get_descriptors(atoms)
    for name, (found, expected) in values.items():
        assert np.shape(found) == np.shape(expected), name
        limit = 1e-9 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit, err_msg=name)
    assert len(mine.get_hessian(atoms)) == MEMBERS and mine.results["forces_var"].max() > 1e-6
