"""Reference phonons: one harmonic crystal stored in every way gives the same frequencies, or one line that says why."""

import bz2
import gzip
import lzma
import sys

import h5py
import numpy as np
import phonopy
import pytest
from ase.build import bulk
from ase.neighborlist import neighbor_list
from phonopy import Phonopy
from phonopy.file_IO import write_FORCE_CONSTANTS, write_FORCE_SETS
from phonopy.physical_units import get_calculator_physical_units

from equijax import data, structures, testing
from equijax.data import phonopy_files
from equijax.phonons import compare, force_constants, reference

NACL = bulk("NaCl", "rocksalt", a=5.6)
NAC = {"born": np.array([1.1, -1.1])[:, None, None] * np.eye(3), "dielectric": 2.5 * np.eye(3)}
PACKERS = {"xz": lzma, "gz": gzip, "bz2": bz2}
MESH = (3, 3, 3)


def springs(atoms) -> np.ndarray:
    """[n, n, 3, 3] eV/A^2: springs along and across the bonds to two shells of neighbours."""
    phi = np.zeros((len(atoms), len(atoms), 3, 3))
    for i, j, d in zip(*neighbor_list("ijD", atoms, 4.5), strict=True):
        k = (np.outer(d, d) / (d @ d) + 0.1 * np.eye(3)) * 100.0 / np.linalg.norm(d) ** 4
        phi[i, j] -= k
        phi[i, i] += k
    return phi


def displaced(phonon, phi, **options):
    """Displacements and the forces that they cause, nothing beyond the harmonic ones."""
    phonon.generate_displacements(**{"distance": 0.01, **options})
    u = np.array([cell.positions for cell in phonon.supercells_with_displacements]) - phonon.supercell.positions
    phonon.forces = -np.einsum("ijab,sjb->sia", phi, u)
    return phonon


def frequencies(phonon):
    return phonon.run_mesh(MESH, is_mesh_symmetry=False, is_gamma_center=True).frequencies


@pytest.fixture(scope="module")
def crystal():
    """The crystal, its force constants and its frequencies."""
    phonon = force_constants.make_phonon(NACL, (2, 2, 2))
    phi = springs(structures.to_ase(phonon.supercell))
    displaced(phonon, phi)
    whole = phonon.replicate()
    whole.force_constants = phi
    return phonon, phi, frequencies(whole)


def save(phonon, path, **settings):
    phonon.save(path, settings={"force_constants": False, **settings})
    return path


def check(path, expected, atol=1e-5):
    found = reference.harmonic(path)
    np.testing.assert_allclose(frequencies(found), expected, rtol=0, atol=atol)
    return found


@pytest.mark.parametrize("packer", [None, *PACKERS])
@pytest.mark.parametrize("name", ["phonopy.yaml", "phonopy_disp.yaml", "FORCE_SETS", "FORCE_CONSTANTS"])
def test_files_beside_one_another_and_compressed(crystal, name, packer, tmp_path, monkeypatch):
    """The working directory holds forces that belong to another crystal."""
    phonon, phi, expected = crystal
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FORCE_SETS").write_text("not to be read")
    (tmp_path / "BORN").write_text("not to be read")
    folder = tmp_path / "run"
    folder.mkdir()
    if name == "phonopy.yaml":
        path = save(phonon, folder / name)
    else:
        path = save(phonon, folder / "phonopy_disp.yaml", force_sets=False)
        if name == "FORCE_CONSTANTS":
            write_FORCE_CONSTANTS(phi, filename=folder / name)
        else:
            write_FORCE_SETS(phonon.dataset, filename=folder / "FORCE_SETS")
    path = folder / name
    if packer is not None:
        for plain in list(folder.iterdir()):
            PACKERS[packer].open(f"{plain}.{packer}", "wb").write(plain.read_bytes())
            plain.unlink()
        path = path.with_name(f"{name}.{packer}")
    found = check(path, expected)
    assert reference.name_of(found, path) == "run NaCl"
    assert phonopy_files.force_constants(path).values.shape == phi.shape


@pytest.mark.parametrize("calculator", ["qe", "abinit", "elk", "cp2k", "wien2k"])
def test_units_of_other_programs(crystal, calculator, tmp_path):
    """Bohr, Rydberg, Hartree: the same frequencies, Born charges included, and energies in eV."""
    phonon, phi, _ = crystal
    expected = phonon.replicate()
    expected.force_constants, expected.nac_params = phi, NAC | {"factor": 14.399652}
    units = get_calculator_physical_units(calculator)
    cell = phonon.unitcell.copy()
    cell.cell = cell.cell / units.distance_to_A
    other = Phonopy(cell, phonon.supercell_matrix, primitive_matrix="P", calculator=calculator)
    other.dataset = {
        "natom": len(phonon.supercell),
        "first_atoms": [
            {
                "number": entry["number"],
                "displacement": np.array(entry["displacement"]) / units.distance_to_A,
                "forces": entry["forces"] / units.force_to_eVperA,
                "supercell_energy": -3.0 / units.energy_to_eV,
            }
            for entry in phonon.dataset["first_atoms"]
        ],
    }
    other.nac_params = NAC | {"factor": units.nac_factor}
    path = save(other, tmp_path / "phonopy.yaml")
    found = check(path, frequencies(expected), atol=1e-4)
    np.testing.assert_allclose(found.supercell.cell, phonon.supercell.cell, rtol=0, atol=1e-8)
    labelled = data.read_structures(path)
    np.testing.assert_allclose(labelled[0].forces, phonon.dataset["first_atoms"][0]["forces"], rtol=0, atol=1e-8)
    assert labelled[0].energy == pytest.approx(-3.0, abs=1e-6)
    with h5py.File(tmp_path / "force_constants.hdf5", "w") as file:  # with a unit of its own
        file["fc2"], file["physical_unit"] = phi, np.array([b"eV/angstrom^2"])
    check(tmp_path / "force_constants.hdf5", frequencies(expected), atol=1e-4)


def test_symmetry_tolerance_of_the_file(crystal, tmp_path):
    """Two displacements of a cubic crystal that is tetragonal by less than the tolerance it was made with.

    symfc alone drops force constants there: the projection must leave them as they are.
    """
    _, _, expected = crystal
    cell = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    cell.set_cell(cell.cell.array @ np.diag([1, 1, 1 + 1e-5]), scale_atoms=True)
    phonon = force_constants.make_phonon(cell, (-1, 1, 1, 1, -1, 1, 1, 1, -1), primitive="F", symprec=1e-3)
    assert len(phonon.symmetry.symmetry_operations["rotations"]) == 48 * len(phonon.supercell) // 2
    displaced(phonon, springs(structures.to_ase(phonon.supercell)))
    assert len(phonon.dataset["first_atoms"]) == 2
    found = check(save(phonon, tmp_path / "phonopy.yaml"), frequencies(phonon_of(phonon)), atol=1e-3)
    assert found.symmetry.tolerance == 1e-3
    np.testing.assert_allclose(frequencies(found).max(), expected.max(), rtol=1e-3)
    before = found.force_constants.copy()
    force_constants.project(found, "symfc")
    np.testing.assert_allclose(found.force_constants, before, rtol=0, atol=1e-5)


def phonon_of(phonon):
    """The same with the force constants of the springs."""
    whole = phonon.replicate()
    whole.force_constants = springs(structures.to_ase(phonon.supercell))
    return whole


def test_random_displacements(crystal, tmp_path):
    phonon, phi, expected = crystal
    random = displaced(phonon.replicate(), phi, number_of_snapshots=4, random_seed=1, distance=0.03)
    path = save(random, tmp_path / "phonopy.yaml")
    check(path, expected)
    np.testing.assert_allclose(phonopy_files.force_constants(path).values, phi, rtol=0, atol=1e-6)
    assert len(data.read_structures(path)) == 4


def test_both_ways_to_number_the_atoms(crystal, tmp_path):
    """phonopy's second algorithm numbers the atoms of the same supercell differently; the file shows which."""
    _, _, expected = crystal
    cell = structures.to_phonopy(NACL)
    matrix = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2]])
    snf = Phonopy(cell, matrix, primitive_matrix="P", use_SNF_supercell=True)
    displaced(snf, springs(structures.to_ase(snf.supercell)))
    path = save(snf, tmp_path / "phonopy.yaml")
    check(path, expected)
    lines = path.read_text().split("\nsupercell:\n")
    path.write_text("\nsupercell:\n".join([lines[0], lines[1].replace("symbol: Na", "symbol: K", 1)]))
    with pytest.raises(ValueError, match="supercell is not the one that phonopy makes"):
        reference.read(path)


@pytest.mark.parametrize("kind", ["params", "FORCES_FC3", "FORCES_FC2", "random"])
def test_phono3py(crystal, kind, tmp_path):
    """Its harmonic part, from the supercell of phonons where there is one."""
    phono3py = pytest.importorskip("phono3py", reason="needs the kappa extra")
    from phono3py.file_IO import write_FORCES_FC2, write_FORCES_FC3

    phonon, phi, expected = crystal
    of_phonons = {"phonon_supercell_matrix": np.diag([2, 2, 2])} if kind == "FORCES_FC2" else {}
    size = np.diag([1, 1, 1] if of_phonons else [2, 2, 2])
    cell = structures.to_phonopy(NACL)
    ph3 = phono3py.Phono3py(cell, size, primitive_matrix="P", **of_phonons)

    def forces(cells, supercell):
        u = np.array([cell.positions for cell in cells]) - supercell.positions
        return -np.einsum("ijab,sjb->sia", springs(structures.to_ase(supercell)), u)

    options = {"number_of_snapshots": 12, "random_seed": 1} if kind == "random" else {"cutoff_pair_distance": 3.0}
    ph3.generate_displacements(distance=0.03, **options)
    cells = [ph3.supercell if c is None else c for c in ph3.supercells_with_displacements]
    ph3.forces = forces(cells, ph3.supercell)
    if kind == "FORCES_FC2":
        ph3.generate_fc2_displacements(distance=0.01)
        values = forces(ph3.phonon_supercells_with_displacements, ph3.phonon_supercell)
        ph3.phonon_forces = values
        write_FORCES_FC2(ph3.phonon_dataset, values, filename=tmp_path / "FORCES_FC2")
    if kind != "random":  # which phono3py writes to the working directory, whatever name it is given
        write_FORCES_FC3(ph3.dataset, ph3.forces, filename=tmp_path / "FORCES_FC3")
    if kind in ("params", "random"):
        path = tmp_path / "phono3py_params.yaml"
        ph3.save(path)
        check(path, expected)
    else:
        path = tmp_path / "phono3py_disp.yaml"
        ph3.save(path, settings={"force_sets": False})
        check(path, expected)
        check(tmp_path / kind, expected)
    assert all(s.forces is not None for s in data.read_structures(path))


def test_phono3py_that_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "phono3py_disp.yaml").write_text("phono3py:\n  version: 4.0\n")
    monkeypatch.setitem(sys.modules, "phono3py.interface.phono3py_yaml", None)
    with pytest.raises(ValueError, match=r"phono3py_disp.yaml: a file of phono3py needs phono3py: pip install"):
        data.read_structures(tmp_path / "phono3py_disp.yaml")


def test_poscar_and_dim(crystal, tmp_path):
    phonon, _, expected = crystal
    structures.to_ase(phonon.unitcell).write(tmp_path / "POSCAR", format="vasp", direct=True)
    write_FORCE_SETS(phonon.dataset, filename=tmp_path / "FORCE_SETS")
    with pytest.raises(FileNotFoundError, match=r"0 supercells \(DIM\) .*put phonopy_disp.yaml there"):
        reference.read(tmp_path / "FORCE_SETS")
    (tmp_path / "phonopy.conf").write_text("# made with\nATOM_NAME = Na Cl\nDIM = 2 2 2  # cells\nMESH = 3 3 3\n")
    check(tmp_path / "FORCE_SETS", expected)
    for name, tolerance in {"thermal.conf": "1e-5", "pdos.conf": "1e-3"}.items():
        check(tmp_path / "FORCE_SETS", expected)
        (tmp_path / name).write_text(f"TOLERANCE = {tolerance}\n")
    with pytest.raises(ValueError, match=r"symmetry tolerances 1e-3, 1e-5 \(TOLERANCE\)"):
        reference.read(tmp_path / "FORCE_SETS")
    (tmp_path / "pdos.conf").unlink()
    (tmp_path / "band.conf").write_text("DIM = 4 4 4\n")
    with pytest.raises(FileNotFoundError, match=r"2 supercells \(DIM\)"):
        reference.read(tmp_path / "FORCE_SETS")
    (tmp_path / "phonopy.conf").write_text("DIM = 4 4 4\n")
    with pytest.raises(ValueError, match="FORCE_SETS: phonopy cannot use it"):
        reference.read(tmp_path / "FORCE_SETS")


def test_refusals(crystal, tmp_path):
    """One line each, and it names the file."""
    phonon, phi, _ = crystal
    broken = tmp_path / "phonopy.yaml"
    text = save(phonon, broken).read_text()
    partly = phonon.replicate()
    partly.dataset = phonon.dataset
    del partly.dataset["first_atoms"][1]["forces"]
    cases = {
        "cannot use it": text.replace("supercell_matrix:", "supercell_matrix: [", 1),
        "no unit cell or supercell matrix": "phonopy:\n  version: 4.0\n",
        "conflicts with calculator": text.replace('length: "angstrom"', 'length: "au"'),
        "not a file of phonopy": "lattice: 5\n",
    }
    for message, content in cases.items():
        broken.write_text(content)
        with pytest.raises(ValueError, match=f"phonopy.yaml: .*{message}") as found:
            reference.read(broken)
        assert "\n" not in str(found.value)
    save(partly, broken)
    with pytest.raises(ValueError, match="1 of 2 displacements have no forces"):
        reference.harmonic(broken)
    assert len(data.read_structures(broken)) == 1
    save(phonon, broken, force_sets=False)
    write_FORCE_CONSTANTS(phi[:, :8], filename=tmp_path / "FORCE_CONSTANTS")
    with pytest.raises(ValueError, match="force constants of shape"):
        reference.read(broken)


def test_a_model_against_its_own_phonons_with_born_charges(tmp_path):
    """Born charges count for the model too, and the crystal is called by folder and formula."""
    ff = testing.pair_forcefield(lambda r: 0.5 * (r - 2.8) ** 2, 3.3, species=(11, 17))
    phonon = force_constants.make_phonon(NACL, (2, 2, 2))
    force_constants.force_constants(ff, phonon)
    phonon.nac_params = NAC | {"factor": 14.4}
    path = tmp_path / "salt_phonopy.yaml"
    phonon.save(path, settings={"force_constants": True})
    found = compare.phonon_errors(ff, path, mesh=MESH)
    assert found.crystal == f"{tmp_path.name}/salt NaCl"
    assert found.frequency_mae < 1e-4
    assert found.found.omega_max == pytest.approx(found.reference.omega_max, abs=1e-4)
    without = phonopy.load(path, is_nac=False, log_level=0)
    assert frequencies(without).max() < found.found.omega_max - 0.1
