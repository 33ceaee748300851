"""The force field: evaluated in order, digits that float32 keeps, heads by name."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from equijax import checkpoint, load, testing
from equijax.config import Compute
from equijax.forcefield import ForceField
from equijax.potential import Evaluated
from equijax.testing import random_config, random_forcefield, rattled
from tests.samples import ONE, attached, folded, moved

FF = testing.random_forcefield(testing.random_config(channels=2, num_radial=3, radial_mlp=(8, 8), readout_mlp=4, **ONE))


@pytest.mark.parametrize("kind", ["far", "unwrapped"])
def test_float32_does_not_depend_on_where_atoms_are(kind):
    """Calculator and batches, energy, forces and stress: to the rounding of float32 at the origin."""
    atoms = testing.rattled()
    for evaluate in (lambda a: FF.evaluate([a])[0], single):
        here, there = evaluate(atoms), evaluate(moved(atoms, kind))
        for name, tolerance in {"energy": 1e-5, "forces": 1e-5, "stress": 1e-7}.items():
            np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=0, atol=tolerance, err_msg=name)


def single(atoms: Atoms) -> Evaluated:
    """The calculator's results."""
    atoms.calc = FF.calculator("float32")
    energies = atoms.get_potential_energies()
    return Evaluated(atoms.get_potential_energy(), energies, atoms.get_forces(), atoms.get_stress())


@pytest.mark.parametrize("kind", ["plain", "specialised"])
def test_large_isolated_energies_lose_nothing_in_float32(kind):
    """E0 of a heavy element, -1e5 eV, is known to eV / 10^6 in the float32 calculator, batches and dynamics alike."""
    constants = {**FF.variables["constants"], "atomic_energies": FF.variables["constants"]["atomic_energies"] - 1e5}
    ff = type(FF)(FF.config, {**FF.variables, "constants": constants}, {})
    reference, heavy = (FF, ff) if kind == "plain" else (folded(f, (11, 17)) for f in (FF, ff))
    atoms = testing.rattled()
    expected = reference.evaluate([atoms], compute=Compute())[0].energy - 8e5
    found = heavy.evaluate([atoms])[0].energy
    atoms.calc = heavy.calculator("float32")
    for energy in (found, atoms.get_potential_energy(), atoms.get_potential_energies().sum()):
        assert abs(energy - expected) / 8 < 1e-5


def test_isolated_atom_has_its_reference_energy(ff):
    out = ff.evaluate([Atoms("Na")], compute=Compute())[0]
    far = ff.evaluate([Atoms("Na2", positions=[[0, 0, 0], [0, 0, 50.0]])], compute=Compute("float64"))[0]
    assert not out.forces.any()
    np.testing.assert_allclose(far.energy, 2 * out.energy, rtol=1e-14)


def test_heads_are_chosen_by_name():
    ff = testing.random_forcefield(
        testing.random_config(channels=2, max_ell=1, radial_mlp=(8, 8), heads=("pbe", "r2scan"))
    )
    energies = {
        head: attached(ff.with_head(head), testing.rattled()).get_potential_energy() for head in ff.config.heads
    }
    assert energies["pbe"] != energies["r2scan"]
    for use in (lambda: ff.head_index, ff.calculator, lambda: ff.evaluate([testing.rattled()])):
        with pytest.raises(ValueError, match="head None: expected one of pbe, r2scan"):
            use()
    with pytest.raises(ValueError, match="head 'hf': expected one of pbe, r2scan"):
        ff.with_head("hf")


def test_heads_share_arrays_and_are_loaded_by_name(tmp_path):
    ff = testing.random_forcefield(
        testing.random_config(channels=2, max_ell=1, radial_mlp=(8, 8), heads=("pbe", "r2scan"))
    )
    checkpoint.save(tmp_path / "a", ff.config, variables=ff.variables, metadata={})
    chosen = load(tmp_path / "a", head="r2scan")
    assert (chosen.head, chosen.head_index, chosen.with_head("pbe").head_index) == ("r2scan", 1, 0)
    assert chosen.with_head("pbe").device_variables() is chosen.device_variables()
    with pytest.raises(ValueError, match="head 'hf': expected one of pbe, r2scan"):
        load(tmp_path / "a", head="hf")


def test_force_fields_can_be_keys(ff):
    """They hold dicts of arrays: each is equal to itself alone."""
    assert {ff: 1}[ff] == 1 and ff != ff.with_head("Default")


@pytest.fixture(scope="module")
def ff():
    return random_forcefield(
        random_config(
            channels=2, lmax=0, max_ell=1, correlation=(1, 1), num_radial=3, radial_mlp=(8, 8), species=(11, 14, 17)
        )
    )


def mixed():
    """Sizes, coordinations and elements in no order, a bad one in between."""
    broken = bulk("Si", cubic=True)
    broken.positions[3] = np.nan
    return [rattled(), bulk("Si", a=5.4), broken, rattled("Si", "diamond", a=5.2), bulk("Na", "bcc", a=4.1) * (2, 1, 1)]


def test_results_in_order_and_bad_structure_reported(ff):
    images = mixed()
    results = ff.evaluate(images, compute=Compute(), errors="report")
    assert "structure 2" in results[2].error and "non-finite position" in results[2].error
    for i in (0, 1, 3, 4):
        alone = ff.evaluate([images[i]], compute=Compute())[0]
        assert results[i].energy == pytest.approx(alone.energy, abs=1e-9)
        np.testing.assert_allclose(results[i].forces, alone.forces, atol=1e-9)
    with pytest.raises(ValueError, match="structure 2"):
        ff.evaluate(images)
    with pytest.raises(ValueError, match="expected 'raise' or 'report'"):
        ff.evaluate(images, errors="ignore")


def test_non_finite_result_is_reported_and_stays_alone(ff):
    images = [rattled("Si", "diamond", a=5.2), rattled()]
    good = ff.evaluate(images)[0]
    constants = {**ff.variables["constants"], "atomic_energies": np.array([[1.0, 1.0, np.nan]])}
    broken = ForceField(ff.config, {**ff.variables, "constants": constants}, {})
    silicon, salt = broken.evaluate(images, errors="report")
    assert "structure 1 (Cl4Na4): the potential returned a non-finite" in salt.error
    np.testing.assert_array_equal(silicon.forces, good.forces)
    with pytest.raises(FloatingPointError, match="structure 1"):
        broken.evaluate(images)
