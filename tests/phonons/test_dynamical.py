"""Dynamical matrices on the primitive cell against derivatives of the supercell, symmetry and phonopy."""

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from phonopy import Phonopy
from phonopy.harmonic.dynamical_matrix import DynamicalMatrix
from phonopy.harmonic.dynmat_to_fc import get_commensurate_points
from phonopy.phonon.group_velocity import GroupVelocity
from phonopy.structure.atoms import PhonopyAtoms

from equijax import executables, hessian, testing
from equijax.config import Compute
from equijax.kernels import build
from equijax.nn import convolution
from equijax.phonons import dynamical

# small enough to compile in seconds, with every kind of block the published shape has
CONFIG = testing.random_config(
    channels=2, r_max=3.5, correlation=(2, 2), max_ell=1, num_radial=4, radial_mlp=(8,), readout_mlp=4
)
TOLERANCE = testing.TOLERANCE["float64"]["hessian"]
SUPERCELL = np.array([[2, 0, 0], [0, 1, 1], [0, 0, 3]])


@pytest.fixture(scope="module")
def ff():
    return testing.random_forcefield(CONFIG)


@pytest.fixture(scope="module")
def atoms():
    """Two atoms without any symmetry, one outside the cell, masses by hand."""
    cell = bulk("NaCl", "rocksalt", a=5.0)
    cell.set_cell(cell.cell.array + np.random.default_rng(1).normal(size=(3, 3), scale=0.1), scale_atoms=True)
    cell.rattle(0.1, seed=1)
    cell.positions[1] += cell.cell[2] - cell.cell[0]
    cell.set_masses([20.0, 30.0])
    return cell


def phonopy_of(atoms, supercell):
    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell.array,
        masses=atoms.get_masses(),
        scaled_positions=atoms.cell.scaled_positions(atoms.positions),
    )
    return Phonopy(cell, supercell, primitive_matrix="P")


@pytest.fixture(scope="module")
def phonon(ff, atoms):
    """Force constants from the Hessian of the whole supercell."""
    phonon = phonopy_of(atoms, SUPERCELL)
    cell = phonon.supercell
    whole = Atoms(cell.symbols, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)
    phonon.force_constants = hessian.hessian(ff, whole).transpose(0, 2, 1, 3)
    return phonon


@pytest.fixture(scope="module")
def commensurate():
    return get_commensurate_points(SUPERCELL)


def matrices_of(phonon, qpoints):
    out = []
    for q in qpoints:
        phonon.dynamical_matrix.run(q)
        out.append(phonon.dynamical_matrix.dynamical_matrix)
    return np.array(out)


def test_equal_to_the_supercell_at_commensurate_q(ff, atoms, phonon, commensurate):
    D = dynamical.dynamical_matrices(ff, atoms, qpoints=commensurate)
    np.testing.assert_allclose(D, matrices_of(phonon, commensurate), rtol=0, atol=1e-9)
    real = dynamical.dynamical_matrices(
        ff, atoms, qpoints=commensurate[:1]
    )  # Gamma alone takes the program without sines
    np.testing.assert_allclose(real, D[:1], rtol=0, atol=1e-12)


def test_hermitian_and_time_reversal(ff, atoms):
    q = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 3))
    D = dynamical.dynamical_matrices(ff, atoms, qpoints=np.concatenate([q, -q, q + [1, 0, -2]]))
    np.testing.assert_allclose(D, D.conj().swapaxes(1, 2), rtol=0, atol=1e-12)
    np.testing.assert_allclose(D[2:4], D[:2].conj(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(D[4:], D[:2] * dynamical.phase(atoms, [[1, 0, -2]]), rtol=0, atol=1e-12)


def test_eigenvalues_of_the_supercell_are_those_of_its_commensurate_q(ff, atoms, phonon, commensurate):
    """Refolding: D(q) of the primitive cell against the Hessian of the supercell at Gamma."""
    D = dynamical.dynamical_matrices(ff, atoms, qpoints=commensurate)
    root = np.repeat(np.sqrt(phonon.supercell.masses), 3)
    n = len(root)
    whole = phonon.force_constants.transpose(0, 2, 1, 3).reshape(n, n) / np.outer(root, root)
    folded = np.sort(np.linalg.eigvalsh(D).ravel())
    assert np.abs(folded).max() > 1e-4
    np.testing.assert_allclose(folded, np.linalg.eigvalsh(whole), rtol=0, atol=1e-9)


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")
def test_the_kernel_takes_values_turned_at_the_edges(atoms, monkeypatch):
    """Neighbour sums by the C++ kernel and by XLA."""
    options = {"channels": 16, "max_ell": 2, "r_max": 3.5, "correlation": (2, 2), "num_radial": 4, "radial_mlp": (8,)}
    ff = testing.random_forcefield(testing.random_config(**options))
    calls = []
    for least in (16, 1000):
        executables.programs.clear()
        jax.clear_caches()
        monkeypatch.setattr(convolution, "KERNEL_CHANNELS", least)
        calls.append(dynamical.dynamical_matrices(ff, atoms, qpoints=[[0.13, 0.27, 0.41]]))
        programs = next(iter(executables.programs.values()))[0].as_text()
        assert ("equijax_convolution" in programs) == (least == 16)
    np.testing.assert_allclose(*calls, rtol=0, atol=1e-12 * np.abs(calls[0]).max())


def test_force_constants_of_any_supercell(ff, atoms, phonon):
    again = phonopy_of(atoms, SUPERCELL)
    dynamical.force_constants(ff, again, full=True)
    np.testing.assert_allclose(again.force_constants, phonon.force_constants, rtol=0, atol=1e-9)


def test_stars_and_bands(ff):
    """A symmetric crystal: one q of each star gives the same as all of them, and exact bands run through the mesh.

    The operations that swap the two atoms of diamond hold for force constants, whatever the atoms weigh.
    """
    atoms = bulk("Si", "diamond", a=5.0)
    atoms.set_masses([28.0, 30.0])
    atoms.set_tags([0, 1])
    atoms.set_initial_magnetic_moments([1.0, -1.0])
    phonon = phonopy_of(atoms, np.diag([3, 3, 3]))
    compact = dynamical.force_constants(ff, phonon).copy()
    dynamical.force_constants(ff, phonon, symmetry=False)
    np.testing.assert_allclose(compact, phonon.force_constants, rtol=0, atol=1e-9)
    path = [np.array([[0, 0, 0], [1 / 3, 0, 1 / 3], [2 / 3, 0, 2 / 3]])]
    exact = dynamical.band_structure(ff, phonon, paths=path)
    interpolated = phonon.run_band_structure(path)
    np.testing.assert_allclose(exact.frequencies[0], interpolated.frequencies[0], rtol=0, atol=1e-4)


def test_derivatives(ff, atoms):
    """dD/dq by differentiation against differences of fourth order."""
    q, h = np.array([0.13, 0.27, 0.41]), 1e-4
    _, dD = dynamical.derivatives(ff, atoms, qpoints=[q])
    steps = (atoms.cell.array @ np.eye(3)).T * h
    far = dynamical.dynamical_matrices(
        ff, atoms, qpoints=[q + sign * n * s for s in steps for n in (1, 2) for sign in (1, -1)]
    )
    near, wide = far[0::4] - far[1::4], far[2::4] - far[3::4]
    np.testing.assert_allclose(dD[0], (8 * near - wide) / (12 * h), rtol=0, atol=1e-9)


def test_group_velocities_are_phonopys(ff, atoms):
    """phonopy's own finite differences of exact dynamical matrices."""
    q = np.array([0.13, 0.27, 0.41])

    class Exact(DynamicalMatrix):
        def run(self, q):
            self._dynamical_matrix = dynamical.dynamical_matrices(ff, atoms, qpoints=[q])[0]

    cell = phonopy_of(atoms, np.eye(3, dtype=int))
    velocity = GroupVelocity(Exact(cell.supercell, cell.primitive, np.zeros((2, 2, 3, 3))), q_length=1e-3)
    velocity.run([q])
    found = dynamical.group_velocities(ff, atoms, qpoints=[q])
    assert np.abs(found).max() > 0.01
    np.testing.assert_allclose(found, velocity.group_velocities, rtol=1e-3, atol=1e-3 * np.abs(found).max())


def test_refuses(ff, atoms):
    slab = atoms.copy()
    slab.pbc = [True, True, False]
    with pytest.raises(ValueError, match="all three"):
        dynamical.dynamical_matrices(ff, slab, qpoints=[[0, 0, 0]])
    with pytest.raises(ValueError, match="qpoints"):
        dynamical.dynamical_matrices(ff, atoms, qpoints=[0, 0, 0])
    with pytest.raises(MemoryError, match="budget"):
        dynamical.dynamical_matrices(ff, atoms, qpoints=[[0, 0, 0]], compute=Compute(memory=1000))
