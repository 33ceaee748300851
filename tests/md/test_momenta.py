"""Momenta at the start of a simulation: temperature, what is conserved, what is said."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixCartesian
from ase.md.velocitydistribution import Stationary, ZeroRotation

from equijax import units
from equijax.constraints import free_components
from equijax.md import momenta


def held(atoms, *constraints):
    atoms.set_constraint(list(constraints))
    return atoms


CRYSTAL = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
# structure, degrees of freedom of deterministic dynamics
COUNTS = {
    "crystal": (CRYSTAL.copy(), 3 * 8 - 3),
    "slab": (Atoms(CRYSTAL, pbc=(True, True, False)), 3 * 8 - 3),
    "cluster": (Atoms(CRYSTAL, pbc=False), 3 * 8 - 6),
    "linear molecule": (molecule("CO2"), 3 * 3 - 5),
    "single atom": (Atoms("Na"), 3),
    "fixed atoms of a crystal": (held(CRYSTAL.copy(), FixAtoms([0, 3])), 3 * 6),
    "one fixed atom of a cluster": (held(Atoms(CRYSTAL, pbc=False), FixAtoms([0])), 3 * 7 - 3),
    "all held along z": (held(CRYSTAL.copy(), FixCartesian(range(8), (False, False, True))), 2 * 8 - 2),
    "one of them": (held(CRYSTAL.copy(), FixCartesian([2], (False, False, True))), 3 * 8 - 1 - 2),
}


@pytest.mark.parametrize("name", COUNTS)
def test_degrees_of_freedom_and_temperature(name):
    atoms, dof = COUNTS[name]
    free = free_components(atoms)
    assert free.sum() - len(momenta.rigid_motions(atoms, free)) == dof
    p = momenta.thermal_momenta(atoms, 500.0, seed=1)
    assert (p**2 / atoms.get_masses()[:, None]).sum() == pytest.approx(dof * units.KB_EV_PER_K * 500.0)
    assert (p[~free] == 0).all()
    assert (momenta.thermal_momenta(atoms, 0.0, seed=1) == 0).all()


@pytest.mark.parametrize("periodic", [True, False])
def test_drift_is_what_ase_takes_off(periodic):
    """Linear momentum, and angular momentum of a cluster; elsewhere it is not conserved and stays."""
    atoms = Atoms(CRYSTAL, pbc=periodic)
    rng = np.random.default_rng(0)
    atoms.set_momenta(rng.normal(size=(8, 3)) + 3.0 * atoms.get_masses()[:, None] * [1e-3, 0, 2e-3])
    expected = atoms.copy()
    Stationary(expected, preserve_temperature=False)
    if not periodic:
        ZeroRotation(expected, preserve_temperature=False)
    p, kelvin, drift = momenta.without_drift(atoms)
    np.testing.assert_allclose(p, expected.get_momenta(), atol=1e-12)
    kinetic = atoms.get_kinetic_energy() - expected.get_kinetic_energy()
    dof = 24 - (3 if periodic else 6)
    assert drift == pytest.approx(2 * kinetic / (dof * units.KB_EV_PER_K)) and drift > 1e-3 * kelvin


def test_where_they_come_from_is_said(capsys):
    def start(atoms, replicas=1, repeat=(1, 1, 1)):
        config = SimpleNamespace(structure="a.xyz", replicas=replicas, repeat=repeat, temperature=300.0, seed=4)
        return momenta.starting_momenta(config, atoms.repeat(repeat)), capsys.readouterr().out

    atoms = CRYSTAL.copy()
    assert start(atoms)[1] == "momenta drawn at 300 K without drift, seed 4\n"
    atoms.set_momenta(momenta.thermal_momenta(atoms, 450.0, seed=0) + 0.1 * atoms.get_masses()[:, None])
    own, said = start(atoms)
    assert said.startswith("momenta of a.xyz: 450 K, after ") and np.abs(own.sum(0)).max() < 1e-12
    repeated, said = start(atoms, repeat=(2, 1, 1))
    assert "not those of the file: its copies would move in step" in said
    assert not np.allclose(repeated[:8], repeated[8:], atol=1e-2)
    several, said = start(atoms, replicas=2)
    assert "not those of the file" in said and not np.allclose(several[0], several[1], atol=1e-2)
