"""D3(BJ) dispersion against simple-dftd3, its derivatives against other routes, and where it is kept."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.units import Bohr, Hartree

from equijax import checkpoint, dispersion, folding, load, specialise, testing
from equijax.config import Compute
from equijax.errors import InputError, MissingExtra
from tests.samples import CHEAP, check_second_derivatives, low_symmetry

dftd3 = pytest.importorskip("dftd3.interface", reason="needs the d3 extra and dftd3")
pytest.importorskip("torch_dftd", reason="needs the d3 extra")

EXACT, TOLERANCE = Compute("float64"), testing.TOLERANCE["float64"]
CUTOFF_A = 9.0  # few pairs; no shell of neighbours of these structures is near it
SPECIES = (1, 6, 8, 11, 14, 17)


@pytest.fixture(scope="module")
def plain():
    return testing.random_forcefield(testing.random_config(**CHEAP | {"species": SPECIES, "r_max": 3.5}))


@pytest.fixture(scope="module")
def both(plain):
    """The model with dispersion, of radii and moments with all digits.

    torch-dftd keeps eight digits of 4/3 R and of sqrt(sqrt(Z) <r^4> / <r^2> / 2), simple-dftd3 R and the moments.
    """
    ff = plain.with_dispersion("pbe", cutoff=CUTOFF_A)
    tables, z = ff.variables["constants"]["dispersion"], np.array(SPECIES)
    moments = np.round(2 * tables["q"] ** 2 / np.sqrt(z), 4)
    exact = {
        "radius": 4 / 3 * np.round(0.75 * tables["radius"] * Bohr, 2) / Bohr,
        "q": np.sqrt(0.5 * moments * np.sqrt(z)),
    }
    for name, values in exact.items():
        np.testing.assert_allclose(tables[name], values, rtol=2e-7)
        tables[name] = values
    return ff


def structures():
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.05, seed=1)
    slab = testing.rattled()[:6]
    slab.set_cell([5.6, 5.6, 25.0])
    slab.pbc = [True, True, False]
    return [ethanol, testing.rattled("Si", "diamond", a=5.43), slab, bulk("Na", "bcc", a=4.2), Atoms("O")]


def reference(atoms, spec):
    """Energy, forces and stress of simple-dftd3; a slab's vacuum is wider than the cutoff, so it may repeat there."""
    cell = {"lattice": atoms.cell.array / Bohr, "periodic": np.ones(3, bool)} if atoms.pbc.any() else {}
    model = dftd3.DispersionModel(atoms.numbers, atoms.positions / Bohr, **cell)
    model.set_realspace_cutoff(*[spec.cutoff / Bohr] * 3)
    damping = dftd3.RationalDampingParam(s6=spec.s6, s8=spec.s8, a1=spec.a1, a2=spec.a2, s9=0.0, alp=14.0)
    found = model.get_dispersion(damping, grad=True)
    stress = found["virial"] * Hartree / atoms.get_volume() if cell else np.full((3, 3), np.nan)
    return found["energy"] * Hartree, -found["gradient"] * Hartree / Bohr, stress


def test_energy_forces_and_stress_are_those_of_simple_dftd3(plain, both):
    images = structures()
    found = (ff.evaluate(images, compute=EXACT) for ff in (both, plain))
    for atoms, a, b in zip(images, *found, strict=True):
        energy, forces, stress = reference(atoms, both.config.dispersion)
        np.testing.assert_allclose(a.energy - b.energy, energy, rtol=0, atol=TOLERANCE["energy"] * len(atoms))
        np.testing.assert_allclose(a.forces - b.forces, forces, rtol=0, atol=TOLERANCE["forces"])
        if atoms.pbc.any():
            np.testing.assert_allclose(a.stress - b.stress, stress, rtol=0, atol=TOLERANCE["stress"])


def test_parameters_and_tables_are_those_of_mace_torch():
    spec = dispersion.parameters("PBE")
    assert (spec.functional, spec.s6, spec.s8, spec.a1, spec.a2) == ("pbe", 1.0, 0.7875, 0.4289, 4.4407)
    assert spec.cutoff == 40 * Bohr
    tables = dispersion.tables((6, 1))
    assert tables["c6"].shape == (2, 2, 5, 5) and (tables["reference"] < dispersion.NOBODY).sum(1).tolist() == [5, 2]
    np.testing.assert_array_equal(tables["c6"], np.einsum("yzba->zyab", tables["c6"]))


def test_dynamical_matrices(both):
    check_second_derivatives(both, low_symmetry())


def test_a_specialised_model_keeps_it(both):
    """All species of the structures but one: rows of the tables move."""
    config = folding.shrink(both.config, SPECIES[1:], step=specialise.STEPS_A[0])
    folded = folding.fold(both.config, both.variables, small=config)
    for name, values in folded["dispersion"].items():
        whole = both.variables["constants"]["dispersion"][name]
        np.testing.assert_array_equal(values, whole[1:, 1:] if name == "c6" else whole[1:])
    assert config.dispersion == both.config.dispersion


def test_it_is_stored_with_the_model(both, tmp_path, monkeypatch):
    """torch-dftd is needed to add it, not to load and use it."""
    checkpoint.save(tmp_path / "model", both.config, variables=both.variables, metadata={})
    monkeypatch.setattr(dispersion, "PACKAGE", "not-installed")
    with pytest.raises(MissingExtra, match=r"equijax\[d3\]"):
        dispersion.parameters("pbe")
    found = load(tmp_path / "model")
    assert found.config == both.config
    for a, b in zip(*(ff.evaluate(structures(), compute=EXACT) for ff in (found, both)), strict=True):
        assert a.energy == b.energy


def test_what_is_refused(plain, both):
    for ff, functional, cutoff, message in (
        (both, "pbe", 9.0, "has dispersion already, of pbe"),
        (plain, "mine", 9.0, "no Becke-Johnson damping for the functional 'mine'"),
        (plain, "pbe", 3.0, "shorter than r_max"),
        (plain, "pbe", -1.0, "must be positive"),
        (testing.pair_forcefield(lambda r: r, 3.0, species=(14,)), "pbe", 9.0, "added to a MACE, not to a PairConfig"),
    ):
        with pytest.raises(InputError, match=message):
            ff.with_dispersion(functional, cutoff)
    with pytest.raises(InputError, match=r"no coefficients for the atomic numbers \[95, 96\]"):
        dispersion.tables((14, 96, 95))
    config, variables = dispersion.without(both.config, both.variables)
    assert config == plain.config and "dispersion" not in variables["constants"]
