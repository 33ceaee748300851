"""Committees: members are models of one adapter, the mean is a potential, the calculator has mace-torch's names."""

import jax
import numpy as np
import pytest

import equijax
from equijax import checkpoint, testing
from equijax.adapters import committee, files, lora
from equijax.config import Compute
from equijax.errors import InputError
from tests.adapters.samples import trained

EXACT = Compute("float64")


@pytest.fixture(scope="module")
def apart(student):
    """Two adapters of one backbone."""
    return [trained(student, seed=m) for m in range(2)]


@pytest.fixture(scope="module")
def several(student, apart, tmp_path_factory):
    """A committee read from its directory, with isolated-atom energies of its own."""
    path = tmp_path_factory.mktemp("committee") / "committee"
    stacked = jax.tree.map(lambda *x: np.stack(x), *apart)
    energies = student.variables["constants"]["atomic_energies"] + np.array([0.0, 0.0, 1.5])
    committee.save(path, stacked, base=student, energies=energies, document={"calibration": {}})
    with pytest.raises(InputError, match="is a committee, no single model"):
        checkpoint.load(path)
    with pytest.raises(InputError, match="holds a committee of 2"):
        files.attach(student, path / "adapters")
    assert committee.load_any(path).metadata["committee"]["members"] == 2
    return equijax.load_committee(path), energies


def test_members_are_models_of_one_adapter_and_their_mean_is_a_potential(student, apart, several):
    together, energies = several
    atoms = testing.rattled()
    (each,) = together.evaluate_members([atoms], compute=EXACT)
    merged = [lora.merge(student.variables, one, energies=energies) for one in apart]
    alone = [equijax.ForceField(student.config, variables, {}) for variables in merged]
    for m, one in enumerate(alone):
        (found,) = one.evaluate([atoms], compute=EXACT)
        np.testing.assert_allclose(each.energy[m], found.energy, rtol=0, atol=1e-11)
        np.testing.assert_allclose(each.node_energy[m], found.energies, rtol=0, atol=1e-11)
        np.testing.assert_allclose(each.forces[m], found.forces, rtol=0, atol=1e-11)
        np.testing.assert_allclose(each.stress[m], found.stress, rtol=0, atol=1e-12)
        for name, own in (("params", one.variables), ("params", together.members[m].variables)):
            jax.tree.map(np.testing.assert_array_equal, own[name], merged[m][name])
    (mean,) = together.evaluate([atoms], compute=EXACT)
    np.testing.assert_allclose(mean.energy, each.energy.mean(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(mean.forces, each.forces.mean(0), rtol=0, atol=1e-11)
    assert each.forces.std(0).max() > 1e-3


def test_calculator_has_the_names_and_shapes_of_mace_torch(several):
    together, _ = several
    atoms = testing.rattled()
    (each,) = together.evaluate_members([atoms], compute=EXACT)
    atoms.calc = together.calculator()
    assert atoms.get_potential_energy() == pytest.approx(each.energy.mean(), abs=1e-11)
    assert atoms.calc.get_property("energy_var", atoms) == pytest.approx(np.var(each.energy), abs=1e-11)
    results = atoms.calc.results
    shapes = {name: np.shape(results[name]) for name in results if name.endswith(("_comm", "_var"))}
    assert shapes == {
        "energy_comm": (2,),
        "energy_var": (),
        "forces_comm": (2, 8, 3),
        "forces_var": (8, 3),
        "stress_comm": (2, 3, 3),
        "stress_var": (3, 3),
    }
    assert set(shapes) < set(atoms.calc.implemented_properties)
    np.testing.assert_allclose(results["forces_var"], each.forces.var(0), rtol=0, atol=1e-11)
    np.testing.assert_allclose(results["forces"], each.forces.mean(0), rtol=0, atol=1e-11)
    assert {"energy_var", "forces_comm"}.isdisjoint(atoms.calc.export_properties())
    with pytest.raises(InputError, match="a committee cannot be specialised"):
        together.specialise({"Na"})
