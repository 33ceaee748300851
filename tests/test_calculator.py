"""The ASE calculator: ASE's own consistency checks, relaxation, dynamics, caching, units."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS

from equijax import derivatives, testing
from equijax.config import Compute
from equijax.descriptors import descriptors
from equijax.errors import InputError
from tests.samples import attached


def test_forces_and_stress_are_the_derivatives_of_the_energy(ff):
    atoms = attached(ff, testing.rattled()[:3] * (2, 1, 1))
    forces = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-4), atol=1e-7)


def test_energies_sum_to_the_energy(ff):
    atoms = attached(ff, testing.rattled())
    assert atoms.get_potential_energy() == pytest.approx(atoms.get_potential_energies().sum(), rel=1e-13)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_changes_recompute_and_questions_do_not(ff, monkeypatch):
    calls = []
    evaluate = derivatives.evaluate
    monkeypatch.setattr(derivatives, "evaluate", lambda *a, **k: calls.append(1) or evaluate(*a, **k))
    atoms = attached(ff, testing.rattled())
    values = [atoms.get_potential_energy()]
    atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energy()
    assert len(calls) == 1
    changes = (
        lambda: atoms.positions.__iadd__(0.1 * np.eye(3)[0] * (np.arange(len(atoms)) == 0)[:, None]),
        lambda: atoms.set_cell(atoms.cell * 1.01, scale_atoms=True),
        lambda: atoms.numbers.__setitem__(0, 17),
    )
    for n, change in enumerate(changes, start=2):
        change()
        values.append(atoms.get_potential_energy())
        assert len(calls) == n
    assert len(set(values)) == 4


def test_relaxes_and_runs_dynamics(ff):
    atoms = attached(ff, bulk("NaCl", "rocksalt", a=5.2))
    atoms.rattle(0.02, seed=1)
    first = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-5, steps=10)
    assert atoms.get_potential_energy() < first
    thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
    Langevin(
        atoms, 1 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False, rng=np.random.default_rng(0)
    ).run(5)
    assert np.isfinite(atoms.positions).all()


def test_kept_neighbours_change_no_number(ff):
    """Along a walk through other cells, a deformation and a change of elements: as by a new calculator each step."""
    rng, atoms = np.random.default_rng(0), attached(ff, testing.rattled())
    elements = atoms.numbers[:2].copy()

    def agree() -> int:
        fresh = attached(ff, atoms)
        np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(atoms.get_stress(), fresh.get_stress(), rtol=0, atol=1e-12)
        assert atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy(), rel=1e-13)
        return atoms.calc.neighbours.made

    for _ in range(5):
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        assert agree() == 1
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.01 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.numbers[:2] = elements[::-1]
    assert agree() == 1
    atoms.positions[0] += atoms.cell.array[1]
    assert agree() == 2
    atoms.wrap()
    assert agree() == 3


def test_precision_is_chosen_and_agrees(ff):
    atoms = testing.rattled()
    double, single = attached(ff, atoms, dtype="float64"), attached(ff, atoms, dtype="float32")
    difference = abs(double.get_potential_energy() - single.get_potential_energy()) / len(atoms)
    assert 0 < difference < testing.TOLERANCE["float32"]["energy"]
    with pytest.raises(ValueError, match="dtype 'half'"):
        ff.calculator(dtype="half")


@pytest.mark.parametrize("pbc", [(True, True, False), False])
def test_stress_of_a_slab_and_of_a_molecule_in_a_box(ff, pbc):
    """Over the volume of the cell with its vacuum, the same from both routes and from differences of the energy."""
    slab = testing.rattled()
    slab.set_cell([5.6, 5.6, 15.0])
    slab.pbc = pbc
    found = attached(ff, slab).get_stress(voigt=False)
    np.testing.assert_allclose(ff.evaluate([slab], compute=Compute())[0].stress, found, rtol=0, atol=1e-12)
    energies = []
    for strain in (1e-4, -1e-4):
        moved = slab.copy()
        moved.set_cell(slab.cell.array @ np.diag([1 + strain, 1, 1]), scale_atoms=True)
        energies.append(attached(ff, moved).get_potential_energy())
    assert found[0, 0] == pytest.approx((energies[0] - energies[1]) / (2e-4 * slab.cell.volume), rel=1e-5)


def test_stress_of_a_molecule_is_refused(ff):
    with pytest.raises(PropertyNotImplementedError, match="three cell vectors"):
        attached(ff, Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 2.4]])).get_stress()
    flat = [Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 2.4]]), Atoms("Na", cell=[5, 5, 0], pbc=(1, 1, 0))]
    assert all(np.isnan(found.stress).all() for found in ff.evaluate(flat))


def test_stresses_of_atoms_sum_to_the_stress(student):
    atoms = attached(student, testing.rattled())
    parts = atoms.get_stresses()
    assert parts.shape == (len(atoms), 6) and np.ptp(parts, axis=0).min() > 1e-6
    np.testing.assert_allclose(parts.sum(0), atoms.get_stress(), rtol=0, atol=1e-14)
    with pytest.raises(PropertyNotImplementedError, match="three cell vectors"):
        attached(student, Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 2.4]])).get_stresses()


def test_hessian_has_the_rows_of_mace_torch(student):
    """[3N, N, 3] of differences of forces, of the structure given or else the last."""
    atoms = attached(student, testing.rattled()[:3])
    found, step = atoms.calc.get_hessian(atoms), 1e-4  # A
    assert found.shape == (9, 3, 3)
    change = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 2] += sign * step
        change.append(attached(student, moved).get_forces())
    np.testing.assert_allclose(found[5], (change[1] - change[0]) / (2 * step), rtol=0, atol=1e-5)
    atoms.get_potential_energy()
    np.testing.assert_array_equal(atoms.calc.get_hessian(), found)
    with pytest.raises(InputError, match="give the calculator one"):
        student.calculator().get_hessian()


def test_descriptors_and_results_have_the_names_of_mace_torch(student):
    atoms = attached(student, testing.rattled())
    expected = descriptors(student, [atoms], invariants_only=False)[0]
    np.testing.assert_array_equal(atoms.calc.get_descriptors(atoms, invariants_only=False, num_layers=-1), expected)
    np.testing.assert_array_equal(
        atoms.calc.get_descriptors(atoms, num_layers=1), descriptors(student, [atoms])[0][:, :4]
    )
    atoms.get_potential_energy()
    e0 = student.variables["constants"]["atomic_energies"][0, [student.config.species.index(z) for z in atoms.numbers]]
    results = atoms.calc.results
    np.testing.assert_allclose(results["node_energy"] + e0, results["energies"], rtol=0, atol=1e-12)
    assert "node_energy" not in atoms.calc.export_properties()
