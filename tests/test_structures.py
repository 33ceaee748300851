"""What is read from files, and crystals that phonopy or jax_md would take amiss: disorder, isotopes, left hands."""

from contextlib import nullcontext

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from equijax import checkpoint, data, forcefield, plots, structures, testing
from equijax.phonons import dynamical, force_constants, phases, thermal, third_order
from equijax.phonons import stars as stars_module
from equijax.programs import evaluate, expansion, kappa, md, modes, phonons, rattle
from equijax.relax import symmetric

CIF = """data_x
_cell_length_a 5.8
_cell_length_b 5.8
_cell_length_c 5.8
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m'
_symmetry_Int_Tables_number 225
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""
SITES = {
    "mixed": "Na1 Na 0 0 0 0.5\nK1 K 0 0 0 0.5\nCl1 Cl 0.5 0.5 0.5 1.0\n",
    "vacancy": "Na1 Na 0 0 0 0.7\nCl1 Cl 0.5 0.5 0.5 1.0\n",
    "full": "Na1 Na 0 0 0 1.0\nCl1 Cl 0.5 0.5 0.5 .\n",
}
# bonds of body-centred tetragonal silicon, 2.33 to 2.37 A, and the twelve neighbours after them
SPRINGS = testing.pair_forcefield(lambda r: 3.0 * (r - 2.35) ** 2, 3.0, species=(14,))
ARGON = testing.pair_forcefield(lambda r: 0.0416 * ((3.4 / r) ** 12 - (3.4 / r) ** 6), 5.9, species=(18,))


@pytest.fixture
def written(tmp_path):
    for name, sites in SITES.items():
        (tmp_path / f"{name}.cif").write_text(CIF + sites)
    return tmp_path


def test_sites_are_refused_unless_one_element_is_always_there(written):
    assert structures.read(written / "full.cif").get_chemical_formula() == "Cl4Na4"
    with pytest.raises(ValueError, match=r"mixed.cif: atom 0 at \[0. 0. 0.\] is occupied by Na0.5 K0.5, expected one"):
        structures.read(written / "mixed.cif")
    with pytest.raises(ValueError, match=r"vacancy.cif: .* occupied by Na0.7"):
        structures.read(written / "vacancy.cif")
    images = [ase.io.read(written / f"{name}.cif") for name in ("full", "vacancy")]
    for i, atoms in enumerate(images):
        atoms.info["REF_energy"] = float(i)
    ase.io.write(written / "both.extxyz", images)
    with pytest.raises(ValueError, match=r"frame 1 of .*both.extxyz: .* occupied by Na0.7"):
        data.read_structures(written / "both.extxyz")
    atoms = Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 2.5]])
    atoms.arrays["occupancy"] = np.array([0.6, 1.0])
    with pytest.raises(ValueError, match=r"x.pdb: Na, atom 0, has occupancy 0.6"):
        structures.check_ordered(atoms, "x.pdb")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    ff = testing.random_forcefield(testing.random_config(channels=2, max_ell=1, radial_mlp=(8,)))
    path = tmp_path_factory.mktemp("model")
    checkpoint.save(path / "model", ff.config, variables=ff.variables, metadata={})
    return path / "model"


@pytest.mark.parametrize("program", [phonons, kappa, expansion, modes, md, rattle, evaluate])
@pytest.mark.parametrize("name", ["mixed", "vacancy"])
def test_every_program_refuses_disorder(written, model, program, name, capsys):
    """Before work starts, by an exit code or an error, and the site is named."""
    first = {rattle: ["--structure"], evaluate: ["--data"]}.get(program, [])
    more = [] if program in (modes, md, rattle, evaluate) else ["--supercell", "1", "1", "1"]
    argv = [*first, str(written / f"{name}.cif"), "--model", str(model), "--out", str(written / "out")]
    try:
        code, text = program.main([*argv, *more]), ""
    except (ValueError, SystemExit) as error:
        code, text = 2, str(error)
    assert code and "is occupied by Na0." in text + capsys.readouterr().err
    assert not (written / "out").exists()


def tetragonal():
    """Silicon stretched along z: the vectors of its cell are not equivalent."""
    atoms = bulk("Si", "diamond", a=5.43)
    atoms.set_cell(atoms.cell.array @ np.diag([1.0, 1.0, 1.02]), scale_atoms=True)
    return atoms


def swapped(atoms):
    """The same crystal in a left-handed cell."""
    left = atoms.copy()
    left.set_cell(atoms.cell.array[[1, 0, 2]])
    assert np.linalg.det(left.cell.array) < 0
    return left


def spectrum(phonon):
    mesh = phonon.run_mesh((3, 3, 3), is_mesh_symmetry=False, is_gamma_center=True)
    return np.sort(mesh.frequencies.ravel())


@pytest.mark.parametrize(
    "supercell", [(2, 2, 2), (-2, 2, 2), (0, 2, 0, 2, 0, 0, 0, 0, 2), (0, -2, 0, 2, 0, 0, 0, 0, 2)]
)
@pytest.mark.parametrize("turn", [lambda atoms: atoms, swapped], ids=["right", "left"])
def test_left_handed_cells_and_negative_supercells(supercell, turn):
    right = force_constants.make_phonon(tetragonal(), (2, 2, 2))
    force_constants.force_constants(SPRINGS, right)
    found = force_constants.make_phonon(turn(tetragonal()), supercell)
    force_constants.force_constants(SPRINGS, found)
    np.testing.assert_allclose(spectrum(found), spectrum(right), rtol=0, atol=1e-6)
    assert max(force_constants.residuals(found)[1:]) < 1e-10
    exact = found.replicate()
    dynamical.force_constants(SPRINGS, exact)
    np.testing.assert_allclose(exact.force_constants, found.force_constants, rtol=0, atol=1e-9)


def test_dynamical_matrices_of_a_left_handed_cell():
    """The same at the same q in Cartesian coordinates."""
    right, left, q = tetragonal(), swapped(tetragonal()), np.array([[0.1, 0.2, 0.35]])
    same = q @ np.linalg.inv(right.cell.array).T @ left.cell.array.T
    a, b = (dynamical.dynamical_matrices(SPRINGS, cell, qpoints=k) for cell, k in ((right, q), (left, same)))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    values = dynamical.symmetric_matrices(SPRINGS, left, qpoints=[*same, *-same])
    np.testing.assert_allclose(values[1], b[0].conj(), rtol=0, atol=1e-12)


def test_relaxation_of_a_left_handed_cell():
    right, left = (symmetric.relax(SPRINGS, atoms, fmax=1e-4) for atoms in (tetragonal(), swapped(tetragonal())))
    assert right.report.converged and left.report.converged
    assert left[0].cell.volume == pytest.approx(right[0].cell.volume, rel=1e-6)
    assert left.report.space_group_after == right.report.space_group_after


def test_third_order_of_a_left_handed_cell_and_a_negative_supercell():
    pytest.importorskip("phono3py", reason="needs the kappa extra")
    sizes = []
    for atoms, supercell in ((tetragonal(), (2, 2, 2)), (swapped(tetragonal()), (2, -2, 2))):
        ph3 = third_order.make_phono3py(atoms, supercell)
        values = third_order.force_constants(SPRINGS, ph3)
        found = third_order.residuals(ph3)
        assert max(found[1:]) < 1e-9
        sizes.append(np.sort((values**2).sum((3, 4, 5)), axis=None))
    assert sizes[0].max() > 0.1
    np.testing.assert_allclose(*sizes, rtol=0, atol=1e-9)


def test_band_path_in_the_cell_as_it_is():
    """The points of the path are the same places, whatever cell the crystal is given in."""
    crystal = bulk("Si", "diamond", a=5.43)
    places = []
    for cell in (crystal, swapped(crystal), bulk("Si", "diamond", a=5.43, cubic=True)):
        cell = structures.to_phonopy(cell)
        context = pytest.warns(match="supercell") if len(cell) > 2 else nullcontext()
        with context:
            qpoints, labels, connections = plots.path(cell, 11)
        places.append([np.linalg.norm(q @ np.linalg.inv(cell.cell).T, axis=1) for q in qpoints])
        assert plots.tick_labels(labels, connections)[0] == r"$\Gamma$"
    assert len(places[0]) == len(connections) and sum(connections) == 4
    for other in places[1:]:
        for a, b in zip(places[0], other, strict=True):
            np.testing.assert_allclose(a[[0, -1]], b[[0, -1]], rtol=0, atol=1e-10)


def test_isotopes_keep_their_places():
    """A cell that repeats but for its masses is primitive, and its mesh is not reduced by symmetry it has not."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.set_tags([1, 2, 3, 4])  # do not matter
    atoms.set_initial_magnetic_moments([1, -1, 1, -1])
    assert len(force_constants.make_phonon(atoms, (2, 2, 2)).primitive) == 1
    atoms.set_masses([36.0, 40.0, 40.0, 38.0])
    phonon = force_constants.make_phonon(atoms, (1, 1, 1))
    assert sorted(phonon.primitive.masses) == [36.0, 38.0, 40.0, 40.0]
    force_constants.force_constants(ARGON, phonon)
    exact = dynamical.primitive(phonon)
    mesh = phonon.run_mesh((2, 2, 2), is_gamma_center=True)
    D = dynamical.dynamical_matrices(ARGON, exact, qpoints=(bloch_mesh := distinct_mesh(2)))
    whole = np.sort(phonon.run_mesh((2, 2, 2), is_mesh_symmetry=False, is_gamma_center=True).frequencies.ravel())
    reduced = np.sort(np.repeat(mesh.frequencies, mesh.weights, axis=0).ravel())
    np.testing.assert_allclose(reduced, whole, rtol=0, atol=1e-6)
    stars = stars_module.stars(exact, bloch_mesh)
    frequencies = dynamical.frequencies(D)
    for star in stars:
        np.testing.assert_allclose(frequencies[star], frequencies[star[:1]].repeat(len(star), 0), rtol=0, atol=1e-6)
    same = dynamical.symmetric_matrices(ARGON, exact, qpoints=bloch_mesh)
    np.testing.assert_allclose(same, D, rtol=0, atol=1e-10)
    assert sorted(phases.primitive(atoms).get_masses()) == [36.0, 38.0, 40.0, 40.0]


def distinct_mesh(n):
    return np.stack(np.meshgrid(*[np.arange(n) / n] * 3, indexing="ij"), -1).reshape(-1, 3)


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        (phonons, "--supercell 3 3 3 --mesh 1 1 1", "Gamma alone"),
        (phonons, "--supercell 3 3 3 --mesh 0 2 2", "positive numbers"),
        (phonons, "--supercell 1 1 1", "supercell of one atom"),
        (expansion, "--supercell 3 3 3 --mesh 1 1 1", "Gamma alone"),
        (expansion, "--supercell 3 3 3 --gruneisen-mesh 1 1 1", "Gamma alone"),
        (kappa, "--supercell 2 2 2 --mesh 1 1 1", "Gamma alone, where no heat flows"),
        (kappa, "--supercell 2 2 2 --phonon-supercell 1 1 1", "supercell of one atom"),
        (kappa, "--supercell 2 2 2 --mesh 2 2 2", "third-order force constants of this supercell vanish"),
    ],
)
def test_one_atom_without_a_mode_of_its_own(program, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forcefield, "load", lambda path, head=None: ARGON)
    bulk("Ar", "fcc", a=5.3).write(tmp_path / "argon.extxyz")
    argv = [str(tmp_path / "argon.extxyz"), "--model", "none", "--out", str(tmp_path / "out"), *options.split()]
    assert program.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and len([line for line in error.splitlines() if line.startswith("equijax")]) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:the largest stress")
@pytest.mark.parametrize(
    ("atoms", "supercell", "mesh"),
    [(bulk("Ar", "fcc", a=5.3), "3 3 3", "2 2 2"), (bulk("Ar", "hcp", a=3.75, c=6.12), "2 2 2", "1 1 1")],
    ids=["fcc", "hcp at Gamma"],
)
def test_few_modes_run_through(atoms, supercell, mesh, tmp_path, monkeypatch):
    """fcc on a mesh with modes, and Gamma alone of a crystal that has optical ones: numbers everywhere."""
    monkeypatch.setattr(forcefield, "load", lambda path, head=None: ARGON)
    atoms.write(tmp_path / "argon.extxyz")
    common = [str(tmp_path / "argon.extxyz"), "--model", "none", "--mesh", *mesh.split()]
    options = ["--out", str(tmp_path / "phonons"), "--supercell", *supercell.split(), "--allow-unrelaxed"]
    assert phonons.main([*common, *options]) == 0
    for table in ("dos.csv", "thermal.csv"):
        values = np.loadtxt(tmp_path / "phonons" / table, delimiter=",", skiprows=1)
        assert len(values) and np.isfinite(values).all()
    assert modes.main([*common, "--out", str(tmp_path / "modes"), "--rounds", "1"]) == 0


def test_thermal_properties_without_a_mode():
    found = thermal.harmonic([[0, 0, 0]], [[0.0, 0.0, 0.0]], weights=None, temperatures=[300.0])
    assert found.imaginary_excluded == 0 and found.free_energy[0] == 0
