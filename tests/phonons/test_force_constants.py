"""Force constants against finite differences and Hessian rows, the laws they obey, a run from end to end."""

import json

import numpy as np
import phonopy
import pytest
from ase import Atoms
from ase.build import bulk

from equijax import checkpoint, hessian
from equijax.config import Compute
from equijax.phonons import force_constants, thermal
from equijax.phonons.born import looks_polar, set_born, warn_polar
from equijax.phonons.certificate import verdict
from equijax.programs import phonons
from equijax.relax import symmetric
from equijax.relax import symmetric as relax
from equijax.testing import TOLERANCE, random_config, random_forcefield
from tests.phonons.samples import SMALL

EXACT = TOLERANCE["float64"]["hessian"]


@pytest.fixture(scope="module")
def ff():
    return random_forcefield(random_config(**SMALL, r_max=3.5))


@pytest.fixture(scope="module")
def phonon(ff):
    """Rocksalt, 16 atoms: two irreducible displacements instead of 48 rows."""
    found = force_constants.make_phonon(bulk("NaCl", "rocksalt", a=5.4), (2, 2, 2))
    force_constants.force_constants(ff, found)
    return found


def finite_differences(ff, phonon, step):
    """phonopy's own route, both signs, with the forces of the same model."""
    copy = phonon.replicate()
    copy.generate_displacements(distance=step, is_plusminus=True)
    images = [force_constants.to_ase(cell) for cell in copy.supercells_with_displacements]
    copy.forces = [ff.evaluate([image], compute=Compute())[0].forces for image in images]
    copy.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
    return copy.force_constants


def test_irreducible_displacements_give_the_dense_hessian(ff, phonon):
    assert force_constants.irreducible_displacements(phonon).shape == (2, 16, 3)
    atoms = force_constants.to_ase(phonon.supercell)
    tangents = hessian.unit_tangents(16, phonon.primitive.p2s_map)
    # two at a time: the program of the fixture
    rows = np.concatenate([hessian.hvp(ff, atoms, tangents=tangents[i : i + 2]) for i in (0, 2, 4)]).reshape(
        2, 3, 16, 3
    )
    np.testing.assert_allclose(phonon.force_constants, rows.transpose(0, 2, 1, 3), rtol=0, atol=EXACT)


def test_the_laws_hold_before_any_symmetrisation(phonon):
    found = force_constants.residuals(phonon)
    assert found.scale_eV_A2 > 0.1
    assert max(found[1:]) < EXACT


def test_residuals_see_a_violation_of_each_law(ff, phonon):
    raw = phonon.force_constants.copy()
    broken = raw.copy()
    broken[0, 5, 0, 1] += 0.01
    try:
        phonon.force_constants = broken
        found = force_constants.project(phonon, "symfc")
        assert all(0.0099 < violation < 0.03 for violation in found[1:])
        assert max(force_constants.residuals(phonon)[1:]) < EXACT
    finally:
        phonon.force_constants = raw


def test_finite_differences_converge_to_them_quadratically(ff, phonon):
    near, far = (np.abs(finite_differences(ff, phonon, h) - phonon.force_constants).max() for h in (0.01, 0.02))
    assert near < 2e-3 * np.abs(phonon.force_constants).max()
    assert far / near == pytest.approx(4.0, rel=0.1)


def test_thermal_properties_are_phonopys(phonon):
    mesh = phonon.run_mesh((3, 3, 3), is_gamma_center=True)
    theirs = phonon.run_thermal_properties(temperatures=[0, 50, 300], exclude_gamma_acoustic=True)
    ours = thermal.harmonic(mesh.qpoints, mesh.frequencies, weights=mesh.weights, temperatures=[0, 50, 300])
    # the physical constants differ in the sixth digit
    np.testing.assert_allclose(ours.free_energy, theirs.free_energy, rtol=1e-5)
    np.testing.assert_allclose(ours.entropy, theirs.entropy, rtol=1e-5)
    np.testing.assert_allclose(ours.heat_capacity, theirs.heat_capacity, rtol=1e-5)


def test_supercell_and_structure_errors(ff):
    cell = bulk("NaCl", "rocksalt", a=5.4)
    with pytest.raises(ValueError, match="3 or 9 integers"):
        force_constants.make_phonon(cell, (2, 2, 1.5))
    with pytest.raises(ValueError, match="no volume"):
        force_constants.make_phonon(cell, (2, 2, 0))
    with pytest.raises(ValueError, match="periodic in three directions"):
        force_constants.make_phonon(Atoms("NaCl", [[0, 0, 0], [0, 0, 2.4]]), (2, 2, 2))


def test_born_file_of_the_wrong_size_and_the_warning_without_one(phonon, tmp_path):
    born = tmp_path / "BORN"
    born.write_text("14.4\n2.5 0 0 0 2.5 0 0 0 2.5\n1 0 0 0 1 0 0 0 1\n")
    with pytest.raises(ValueError, match=r"expected 3 lines of 9: .*Na \(atom 0\), Cl \(atom 1\)"):
        set_born(phonon, born)
    with pytest.warns(UserWarning, match="looks polar"):
        warn_polar(phonon)
    assert looks_polar([13, 7]) and not looks_polar([14]) and not looks_polar([29, 13])


def test_a_structure_off_its_minimum_is_named():
    with pytest.warns(UserWarning) as found:
        symmetric.warn_unrelaxed(symmetric.Residuals(0.05, max_stress_eV_A3=0.01, max_stress_GPa=1.6))
    assert [str(w.message)[:22] for w in found] == ["the largest force is 5", "the largest stress is "]


def test_a_structure_far_from_its_minimum_is_refused(ff, tmp_path, capsys, monkeypatch):
    checkpoint.save(tmp_path / "model", ff.config, variables=ff.variables, metadata={"source": "test"})
    moved = bulk("NaCl", "rocksalt", a=5.4)
    moved.positions[1] += [1.0, 0.0, 0.0]
    moved.write(tmp_path / "moved.extxyz")
    monkeypatch.setattr(relax, "REFUSED_FORCE", 0.01)  # the random model is soft
    options = f"--model {tmp_path}/model --out {tmp_path}/out --supercell 2 2 2"
    assert phonons.main([str(tmp_path / "moved.extxyz"), *options.split()]) == 2
    assert "not a relaxed structure" in capsys.readouterr().err


def test_verdict_states_its_thresholds():
    assert verdict(-0.05) == {"0.02 THz": "unstable", "0.1 THz": "stable", "0.3 THz": "stable"}


@pytest.mark.filterwarnings("ignore:.*(looks polar|largest)")
def test_a_run_writes_what_phonopy_reads_and_a_certificate(ff, phonon, tmp_path, capsys):
    checkpoint.save(tmp_path / "model", ff.config, variables=ff.variables, metadata={"source": "test"})
    bulk("NaCl", "rocksalt", a=5.4).write(tmp_path / "nacl.extxyz")
    common = [str(tmp_path / "nacl.extxyz"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert phonons.main([*common, "--supercell", "2", "2", "2", "--mesh", "4", "4", "4"]) == 0
    assert "sum rule" in capsys.readouterr().out
    loaded = phonopy.load(tmp_path / "out" / "phonopy_params.yaml", log_level=0, symmetrize_fc=False)
    np.testing.assert_allclose(loaded.force_constants, phonon.force_constants, rtol=0, atol=1e-8)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["space_group"] == "Fm-3m (225)" and len(report["model"]["sha256"]) == 64
    assert report["spot_check"]["max_difference_eV_A2"] < 1e-4 * report["spot_check"]["max_entry_eV_A2"]
    assert report["thermal"]["gamma_acoustic_excluded"] == 3
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"bands.png", "dos.csv", "thermal.csv"}
    assert phonons.main([*common, "--supercell", "2", "2"]) == 2
    assert "expected 3 or 9 integers" in capsys.readouterr().err
