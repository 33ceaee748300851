"""Rattled, strained and relaxing structures, picked and written."""

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from equijax.data.options import RattleConfig
from equijax.data.rattle import make_supercell, rattled, relaxations, shortest_distance
from equijax.errors import InputError
from equijax.programs import rattle


@pytest.fixture(scope="module")
def salt(tmp_path_factory):
    path = tmp_path_factory.mktemp("rattle") / "POSCAR"
    ase.io.write(path, bulk("NaCl", "rocksalt", 5.64, cubic=True), format="vasp")
    return path


def test_rattled_supercells(salt, tmp_path, capsys):
    argv = [
        "--structure",
        str(salt),
        "--out",
        str(tmp_path),
        "--number",
        "4",
        "--candidates",
        "12",
        "--supercell",
        "2",
        "1",
        "1",
    ]
    assert rattle.main(argv) == 0
    images = ase.io.read(tmp_path / "structures.extxyz", ":")
    posted = [ase.io.read(tmp_path / "poscars" / f"POSCAR-{i:03d}") for i in range(1, 5)]
    perfect = make_supercell(ase.io.read(salt), (2, 1, 1), min_length=0.0)
    assert len(images) == 4
    for atoms, poscar in zip(images, posted, strict=True):
        assert len(atoms) == 16 and atoms.pbc.all() and "rattled" in atoms.info["kind"]
        np.testing.assert_allclose(poscar.get_all_distances(mic=True), atoms.get_all_distances(mic=True), atol=1e-6)
        assert poscar.get_chemical_formula() == "Cl8Na8"
        strain = np.linalg.solve(perfect.cell.array, atoms.cell.array) - np.eye(3)
        assert 0 < np.abs(strain).max() <= 0.03 + 1e-7
        np.testing.assert_allclose(strain, strain.T, atol=1e-7)
        assert shortest_distance(atoms) >= 0.7 * 2.82 - 1e-6
    assert len({round(atoms.get_volume(), 6) for atoms in images}) == 4
    assert rattle.main(argv) == 2
    assert "POSCAR-001 and more already" in capsys.readouterr().err


def test_supercell_is_long_enough_and_frames_of_relaxations_join(salt, folder, student, tmp_path):
    assert len(make_supercell(ase.io.read(salt), None, min_length=8.0)) == 64
    primitive = make_supercell(bulk("Si", a=5.43), None, min_length=9.0)  # heights of 3.135 A
    assert len(primitive) == 2 * 27
    argv = [
        "--structure",
        str(salt),
        "--out",
        str(tmp_path),
        "--number",
        "3",
        "--candidates",
        "3",
        "--min-length",
        "5",
        "--model",
        str(folder / "model"),
        "--relaxations",
        "1",
        "--relaxation-steps",
        "2",
    ]
    assert rattle.main(argv) == 0
    assert len(ase.io.read(tmp_path / "structures.extxyz", ":")) == 3
    options = RattleConfig(salt, tmp_path, model=folder / "model", relaxations=1, relaxation_steps=2)
    frames = relaxations(student, ase.io.read(salt), options=options)
    assert [kind for _, kind in frames] == [f"relaxation 1, step {i}" for i in range(3)]
    assert np.abs(frames[0][0].positions - frames[2][0].positions).max() > 1e-4


def test_rattles_that_cannot_be(salt, tmp_path, capsys):
    crystal = make_supercell(ase.io.read(salt), (1, 1, 1), min_length=0.0)
    with pytest.raises(InputError, match="rattling by 3.0 A brings atoms closer"):
        rattled(crystal, RattleConfig(salt, tmp_path, rattle=(3.0,)))
    with pytest.raises(InputError, match="number 10 must be between 1 and the 5 candidates"):
        RattleConfig(salt, tmp_path, candidates=5)
    ase.io.write(tmp_path / "m.xyz", bulk("Si"), format="xyz")
    assert rattle.main(["--structure", str(tmp_path / "m.xyz"), "--out", str(tmp_path / "out")]) == 2
    assert "not periodic in three directions" in capsys.readouterr().err
