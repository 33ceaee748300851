"""matcalc's own calculators with ours inside, against what equijax makes of the same crystal without it."""

import matcalc
import numpy as np
import pytest

from equijax import phonons
from equijax.phonons import force_constants, third_order

pytestmark = pytest.mark.filterwarnings(
    "ignore:The symmetrize_fc.* parameter of Phono3py:DeprecationWarning",  # matcalc 0.7.0 precedes phono3py 4.10
    "ignore:Elastic strain-stress fits:RuntimeWarning",  # it fits the rounding of components that symmetry makes zero
    "ignore:.*acoustic mode.* at Gamma:UserWarning",  # in the thermal properties that it makes of all phonons
)

SUPERCELL = np.diag([2, 2, 2])


@pytest.fixture(scope="module")
def calculator(mini):
    return mini.calculator()


def test_relaxation(calculator, silicon):
    """From a cell 3 % too large, back to the one of `equijax.relax`."""
    start = silicon.copy()
    start.set_cell(silicon.cell * 1.03, scale_atoms=True)
    found = matcalc.RelaxCalc(calculator, fmax=1e-4).calc(start)
    assert found["volume"] == pytest.approx(silicon.cell.volume, rel=1e-4)
    assert found["energy"] == pytest.approx(calculator.get_potential_energy(silicon), abs=1e-6)


def test_bulk_modulus_of_the_equation_of_state_and_of_elasticity(calculator, silicon):
    """GPa, by two of its routes: energies of volumes and stresses of strains."""
    eos = matcalc.EOSCalc(calculator, relax_structure=False, max_abs_strain=0.02, n_points=7, fmax=1e-3).calc(silicon)
    elastic = matcalc.ElasticityCalc(
        calculator, relax_structure=False, units_GPa=True, norm_strains=(-0.005, 0.005), shear_strains=(-0.01, 0.01)
    ).calc(silicon)
    assert eos["bulk_modulus_bm"] == pytest.approx(elastic["bulk_modulus_vrh"], rel=0.02)
    assert 60 < eos["bulk_modulus_bm"] < 120


def test_phonons(mini, calculator, silicon):
    """Its finite displacements against exact derivatives, THz."""
    found = matcalc.PhononCalc(
        calculator, supercell_matrix=SUPERCELL, atom_disp=0.005, relax_structure=False, write_phonon=False
    ).calc(silicon)
    exact = phonons.make_phonon(silicon, SUPERCELL)
    force_constants.force_constants(mini, exact)
    qpoints = np.random.default_rng(0).uniform(-0.5, 0.5, (5, 3))
    theirs, ours = (p.run_qpoints(qpoints).frequencies for p in (found["phonon"], exact))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=0.01)


def test_third_order_phonons(mini, calculator, silicon):
    """Thermal conductivity by its finite displacements and by exact derivatives, W/mK; both far from converged."""
    mesh, kelvin = (5, 5, 5), 300.0
    found = matcalc.Phonon3Calc(
        calculator,
        fc2_supercell=SUPERCELL,
        fc3_supercell=SUPERCELL,
        mesh_numbers=mesh,
        relax_structure=False,
        t_min=kelvin,
        t_max=kelvin,
        t_step=kelvin,
    ).calc(silicon)
    exact = third_order.make_phono3py(silicon, SUPERCELL)
    third_order.force_constants(mini, exact)
    exact.mesh_numbers = mesh
    exact.init_phph_interaction()
    exact.run_thermal_conductivity(temperatures=[kelvin])
    ours = exact.thermal_conductivity.kappa[..., :3].mean()
    assert float(found["thermal_conductivity"]) == pytest.approx(ours, rel=0.05)
