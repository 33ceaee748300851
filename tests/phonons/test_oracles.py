"""Lattice dynamics whose answer is known on paper, through the same functions that serve MACE."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list

from equijax import forcefield, testing, units
from equijax.config import Compute
from equijax.phonons import dynamical, force_constants, thermal
from equijax.phonons.volumes import gruneisen, quasi_harmonic, series
from equijax.programs import expansion

STIFFNESS, SPACING = 3.0, 2.5  # eV/A^2, A
EPSILON, SIGMA = 0.0104, 3.4  # eV, A: argon
ARGON = bulk("Ar", "fcc", a=5.3)  # shells at 3.75, 5.30 and 6.49 A


def lennard_jones(r):
    return 4 * EPSILON * ((SIGMA / r) ** 12 - (SIGMA / r) ** 6)


@pytest.fixture(scope="module")
def springs():
    return testing.pair_forcefield(lambda r: 0.5 * STIFFNESS * (r - SPACING) ** 2, 1.5 * SPACING, species=(11, 17))


@pytest.fixture(scope="module")
def argon():
    return testing.pair_forcefield(lennard_jones, 5.9, species=(18,))


@pytest.fixture(scope="module")
def crystal(argon):
    phonon = force_constants.make_phonon(ARGON, (4, 4, 4))
    force_constants.force_constants(argon, phonon)
    return phonon


def chain(symbols, masses):
    n = len(symbols)
    atoms = Atoms(symbols, [[i * SPACING, 0, 0] for i in range(n)], cell=[n * SPACING, 15, 16], pbc=True)
    atoms.set_masses(masses)
    return atoms


def to_thz(eigenvalues):
    return np.sqrt(eigenvalues) * units.SQRT_EV_A2_AMU_THZ


def test_chain_of_equal_masses(springs):
    """w^2 = 4 k / m sin^2(q a / 2) along the chain, 0 across: by supercell and on the primitive cell."""
    atoms, m = chain(["Na"], [20.0]), 20.0
    q = np.array([[0.5, 0, 0], [0.25, 0, 0], [0.13, 0, 0]])
    expected = to_thz(4 * STIFFNESS / m * np.sin(np.pi * q[:, 0]) ** 2)
    exact = dynamical.frequencies(dynamical.dynamical_matrices(springs, atoms, qpoints=q))
    np.testing.assert_allclose(exact[:, 2], expected, rtol=1e-10)
    np.testing.assert_allclose(exact[:, :2], 0, atol=1e-5)
    phonon = force_constants.make_phonon(atoms, (4, 1, 1), primitive="P")
    force_constants.force_constants(springs, phonon)
    found = phonon.run_qpoints(q).frequencies  # springs reach one cell: interpolation is exact
    np.testing.assert_allclose(found[:, 2], expected, rtol=1e-6)  # phonopy's constants


def test_chain_of_two_masses(springs):
    """w^2 = k s -+ k sqrt(s^2 - 4 sin^2(q a / 2) / m M), s = 1/m + 1/M, and the slope of the acoustic branch."""
    m, M = 10.0, 40.0
    atoms, q = chain(["Na", "Cl"], [m, M]), np.array([[0.5, 0, 0], [0.2, 0, 0], [0.07, 0, 0]])
    s, wave = 1 / m + 1 / M, 4 * np.sin(np.pi * q[:, 0]) ** 2 / (m * M)
    root = STIFFNESS * np.sqrt(s**2 - wave)
    found = dynamical.frequencies(dynamical.dynamical_matrices(springs, atoms, qpoints=q))
    expected = to_thz(STIFFNESS * s + np.array([-root, root]).T)
    np.testing.assert_allclose(found[:, 4:], expected, rtol=1e-10)
    velocity = dynamical.group_velocities(springs, atoms, qpoints=[[1e-3, 0, 0]])[0, 4, 0]
    sound = (
        2 * SPACING * np.sqrt(STIFFNESS / (2 * (m + M))) * units.SQRT_EV_A2_AMU_THZ * 2 * np.pi
    )  # THz A without 2 pi
    np.testing.assert_allclose(velocity, sound, rtol=1e-4)


def test_lennard_jones_crystal(crystal):
    """Phi_ij = -[V'' e e^T + V'/r (1 - e e^T)] summed over the images of j, Phi_ii from the sum rule."""
    atoms = force_constants.to_ase(crystal.supercell)
    expected = np.zeros((len(atoms), 3, 3))
    i, j, D = neighbor_list("ijD", atoms, 5.9)
    for k, d in zip(j[i == 0], D[i == 0], strict=True):
        r = np.linalg.norm(d)
        e, s6 = np.outer(d, d) / r**2, (SIGMA / r) ** 6
        first, second = 24 * EPSILON / r * (s6 - 2 * s6**2), 24 * EPSILON / r**2 * (26 * s6**2 - 7 * s6)
        expected[k] -= second * e + first / r * (np.eye(3) - e)
    expected[0] = -expected.sum(0)
    np.testing.assert_allclose(crystal.force_constants[0], expected, rtol=0, atol=1e-12)


def test_heat_capacity_and_entropy_of_a_crystal(crystal):
    """C_V -> k_B a mode, S = -dF/dT, through mesh and sums."""
    mesh = crystal.run_mesh((4, 4, 4), is_gamma_center=True)
    T = np.array([1e5, 39.99, 40.0, 40.01])
    found = thermal.harmonic(mesh.qpoints, mesh.frequencies, weights=mesh.weights, temperatures=T)
    assert found.gamma_acoustic_excluded == 3 and found.imaginary_excluded == 0
    per_mole = 1e3 * units.KB_EV_PER_K * units.KJ_PER_MOL_PER_EV
    np.testing.assert_allclose(found.heat_capacity[0], 3 * per_mole * (1 - 1 / 64), rtol=1e-6)
    slope = -1e3 * (found.free_energy[3] - found.free_energy[1]) / 0.02
    np.testing.assert_allclose(slope, found.entropy[2], rtol=1e-6)


def test_gruneisen_parameters_of_a_scale_free_potential():
    """V = r^-n: every frequency goes as a^-(n + 2)/2, so every mode has -d ln w / d ln V = (n + 2) / 6."""
    n = 8
    ff = testing.pair_forcefield(lambda r: (3.0 / r) ** n, 4.5, species=(18,))
    found = gruneisen(ff, ARGON, supercell=(3, 3, 3), mesh=(3, 3, 3), strain=0.003)
    moving = np.isfinite(found.parameters)
    assert moving.sum() > 6
    np.testing.assert_allclose(found.parameters[moving], (n + 2) / 6, rtol=1e-3)


def test_thermal_expansion_of_argon(argon):
    """alpha_V = gamma C_V / (B V) with the mean Grueneisen parameter of the classical limit: phonopy's QHA obeys it."""
    cell, T = bulk("Ar", "fcc", a=5.4), np.array([0.0, 20.0, 30.0, 40.0, 50.0])
    cells = series(argon, cell, supercell=(3, 3, 3), strains=np.linspace(-0.05, 0.1, 7))
    found = quasi_harmonic(*cells, temperatures=T, mesh=(5, 5, 5))
    assert (np.diff(found.equilibrium_volumes) > 0).all()
    alpha = found.thermal_expansion[2]
    bulk_modulus = found.bulk_moduli[2]  # eV/A^3
    heat = 3 * units.KB_EV_PER_K
    gamma = alpha * bulk_modulus * found.equilibrium_volumes[2] / heat
    assert 2.0 < gamma < 4.0  # Lennard-Jones crystals near their minimum: about 3, less 10 % of quantum effects


def test_expansion_from_the_command_line(argon, tmp_path, capsys, monkeypatch):
    """A run from a file to tables; a model directory cannot hold a pair potential, so loading is replaced."""
    monkeypatch.setattr(forcefield, "load", lambda path, head: argon)
    bulk("Ar", "fcc", a=5.4).write(tmp_path / "argon.extxyz")
    options = f"--model none --supercell 3 3 3 --out {tmp_path}/out --mesh 5 5 5 --temperatures 0 20 5"
    common = [str(tmp_path / "argon.extxyz"), *options.split()]
    assert expansion.main([*common, "--strains", *"-0.02 0 0.02 0.05 0.08 0.1 0.12".split()]) == 0
    assert "mean Grueneisen parameter" in capsys.readouterr().out
    rows = (tmp_path / "out" / "expansion.csv").read_text().splitlines()
    assert rows[0].startswith("temperature_K,volume_A3") and len(rows) == 6
    volumes = [float(row.split(",")[1]) for row in rows[1:]]
    assert volumes == sorted(volumes) and volumes[-1] > 1.005 * volumes[0]
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"gruneisen.csv", "expansion.png", "report.json"}
    assert expansion.main([*common, "--strains", "0", "0.1"]) == 2
    assert "at least 5" in capsys.readouterr().err


def test_sound_is_elasticity():
    """rho v^2 of the long-wave limit against differences of the stress, three directions, MACE under pressure.

    Under isotropic pressure waves obey the stress-strain coefficients (Wallace, Thermodynamics of Crystals, ch. 2).
    """
    options = {"channels": 2, "max_ell": 1, "correlation": (2, 2), "num_radial": 4, "radial_mlp": (8,)}
    ff = testing.random_forcefield(testing.random_config(**options, r_max=3.5))
    atoms = bulk("Na", "fcc", a=4.2)

    def slopes(i, j, h=1e-4):
        """d stress / d strain_ij, symmetric strain, fourth order."""
        values = []
        for step in (h, -h, 2 * h, -2 * h):
            strain = np.eye(3)
            strain[i, j] += step / 2
            strain[j, i] += step / 2
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            values.append(ff.evaluate([moved], compute=Compute())[0].stress)
        return (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * h)

    along, shear = slopes(0, 0), slopes(1, 2)
    c11, c12, c44 = along[0, 0], along[1, 1], shear[1, 2]
    expected = {
        (1, 0, 0): [c11, c44, c44],
        (1, 1, 0): [(c11 + c12 + 2 * c44) / 2, (c11 - c12) / 2, c44],
        (1, 1, 1): [(c11 + 2 * c12 + 4 * c44) / 3, (c11 - c12 + c44) / 3, (c11 - c12 + c44) / 3],
    }
    size = 1e-3  # 1/A without 2 pi
    k = size * np.array([np.array(d) / np.linalg.norm(d) for d in expected])
    D = dynamical.dynamical_matrices(ff, atoms, qpoints=k @ atoms.cell.array.T)
    moduli = np.linalg.eigvalsh(D) * atoms.get_masses()[0] / atoms.cell.volume / (2 * np.pi * size) ** 2
    scale = np.abs([c11, c12, c44]).max()
    np.testing.assert_allclose(moduli, [sorted(row) for row in expected.values()], rtol=0, atol=1e-4 * scale)
