"""Fixed atoms: read from constraints and selective dynamics, kept where they are by relaxations, else refused."""

import ase.io
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixScaled

from equijax import testing
from equijax.config import Compute
from equijax.constraints import free_components
from equijax.phonons import soft_modes
from equijax.phonons.options import ModesConfig
from equijax.relax import symmetric
from equijax.relax.batched import relax


def morse(r):
    return 0.3 * ((1 - jnp.exp(-1.2 * (r - 2.9))) ** 2 - 1)


FF = testing.pair_forcefield(morse, 4.6, species=(13,))


def slab(*constraints) -> Atoms:
    """Four layers of aluminium, stretched by 3 %."""
    atoms = fcc111("Al", (1, 1, 4), a=4.17, vacuum=6, periodic=True)
    atoms.set_constraint(list(constraints))
    return atoms


def test_selective_dynamics_of_a_poscar_is_read(tmp_path):
    """Also where a coordinate is fixed in a skewed cell: ASE reads those as scaled ones."""
    atoms = slab(FixAtoms([0]), FixScaled([1], (True, True, False)), FixScaled([2], (False, False, True)))
    ase.io.write(tmp_path / "POSCAR", atoms, format="vasp", direct=True)
    expected = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]], bool)
    np.testing.assert_array_equal(free_components(ase.io.read(tmp_path / "POSCAR")), expected)
    skew = slab(FixScaled([1], (True, False, False)))
    skew.set_cell(skew.cell.array + [[0, 0, 0], [0, 0, 0], [1.0, 0, 0]])
    with pytest.raises(ValueError, match="atom 1 may move along .* not Cartesian axes"):
        free_components(skew)


FIXED = {
    "atoms": slab(FixAtoms([0, 1])),
    "components": slab(FixCartesian([0, 1], (True, True, True)), FixCartesian([2], (False, False, True))),
}


@pytest.mark.parametrize("name", FIXED)
def test_fixed_atoms_stay_and_the_others_relax(name):
    """One at a time and in batches find the same structure; positions of fixed atoms agree to the last bit."""
    atoms = FIXED[name]
    atoms.positions[2:] += [[0.1, 0.05, 0.02], [-0.05, 0.1, -0.1]]
    free = free_components(atoms)
    alone, report = symmetric.relax(FF, atoms, fmax=1e-5, cell=False)
    (batched,) = relax(FF, [atoms], fmax=1e-5, steps=2000)
    assert report.converged and batched.converged
    assert report.residuals.max_free_force_eV_A <= 1e-5 < 1e-3 < report.residuals.max_force_eV_A
    for found in (alone, batched.atoms):
        np.testing.assert_array_equal(found.positions[~free], atoms.positions[~free])
        assert np.abs(found.positions - atoms.positions)[free].max() > 0.01
        assert found.constraints
    np.testing.assert_allclose(batched.atoms.positions, alone.positions, atol=1e-4)
    forces = FF.evaluate([alone], compute=Compute())[0].forces
    assert np.abs(forces[free]).max() <= 1e-5


def test_without_constraints_the_symmetry_is_kept():
    atoms, report = symmetric.relax(FF, bulk("Al", a=4.1), fmax=1e-4)
    assert report.space_group_after == "Fm-3m (225)" and "max_free_force_eV_A" not in report.document()


def test_a_cell_with_fixed_atoms_and_other_constraints_are_refused():
    fixed, bonded = slab(FixAtoms([0])), slab(FixBondLength(0, 1))
    for function in (lambda a, cell: symmetric.relax(FF, a, cell=cell), lambda a, cell: relax(FF, [a], cell=cell)):
        with pytest.raises(ValueError, match=r"constraints \(FixAtoms\): a cell is relaxed with all atoms free"):
            function(fixed, True)
        with pytest.raises(ValueError, match="FixBondLength"):
            function(bonded, False)
    with pytest.raises(ValueError, match="modes are followed with all atoms free"):
        soft_modes.search(FF, fixed, config=ModesConfig("slab", "model"))


def test_force_constants_say_that_they_ignore_fixed_atoms():
    atoms = slab(FixAtoms([0, 1]))
    with pytest.warns(UserWarning, match="2 of 4 atoms are fixed: force constants ignore that"):
        assert len(symmetric.warn_fixed(atoms)) == 1
    assert symmetric.warn_fixed(slab()) == []
    found = symmetric.static_residuals(FF, atoms)
    with pytest.raises(ValueError, match="largest force is 0"):
        symmetric.refuse_unrelaxed(found, "slab")
    with pytest.raises(ValueError, match="is on a fixed atom"):
        symmetric.refuse_unrelaxed(found._replace(max_free_force_eV_A=1e-5), "slab")
