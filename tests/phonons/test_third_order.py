"""Third order: derivatives of Hessian-vector products, phono3py's own finite differences, the laws, a run to kappa."""

import csv
import json

import numpy as np
import pytest
from ase.build import bulk

from equijax import checkpoint, hessian
from equijax.config import Compute
from equijax.phonons import conductivity, force_constants, third_order
from equijax.programs import kappa
from equijax.testing import TOLERANCE, random_config, random_forcefield
from tests.phonons.samples import SMALL

EXACT = TOLERANCE["float64"]["hessian"]
NACL = bulk("NaCl", "rocksalt", a=5.4)


@pytest.fixture(scope="module")
def ff():
    return random_forcefield(random_config(**SMALL, r_max=3.5))


@pytest.fixture(scope="module")
def ph3(ff):
    """Rocksalt, 16 atoms: 2 first displacements and 30 second ones for each instead of 48 x 48 pairs."""
    found = third_order.make_phono3py(NACL, (2, 2, 2))
    third_order.force_constants(ff, found)
    return found


def test_derivative_of_products_along_a_direction(ff, ph3):
    """Against fourth-order differences of the exact products; symmetric in the two directions."""
    atoms = force_constants.to_ase(ph3.supercell)
    u, *v = np.random.default_rng(0).normal(size=(5, len(atoms), 3))
    found = hessian.hvp(ff, atoms, tangents=v, along=u)
    h, products = 1e-3, []
    for step in (h, -h, 2 * h, -2 * h):
        moved = atoms.copy()
        moved.positions += step * u
        products.append(hessian.hvp(ff, moved, tangents=v))
    near, far = (products[0] - products[1]) / (2 * h), (products[2] - products[3]) / (4 * h)
    np.testing.assert_allclose(found, (4 * near - far) / 3, rtol=0, atol=1e-6 * np.abs(found).max())
    swapped = hessian.hvp(ff, atoms, tangents=[u] * 4, along=v[0])
    np.testing.assert_allclose(swapped[0], found[0], rtol=0, atol=100 * EXACT)


def test_phono3pys_finite_differences_converge_to_it(ff, ph3):
    """Its own displacements and forces of the same model: the error falls with the square of the step."""
    copy, errors = third_order.make_phono3py(NACL, (2, 2, 2)), []
    for step in (0.04, 0.02):
        copy.generate_displacements(distance=step, is_plusminus=True)
        images = [force_constants.to_ase(cell) for cell in copy.supercells_with_displacements]
        copy.forces = [found.forces for found in ff.evaluate(images, compute=Compute())]
        copy.produce_fc3()
        errors.append(np.abs(copy.fc3 - ph3.fc3).max())
    assert errors[1] < 2e-3 * np.abs(ph3.fc3).max()
    assert 3.0 < errors[0] / errors[1] < 5.0


def test_the_laws_hold_before_any_symmetrisation(ph3):
    found = third_order.residuals(ph3)
    assert found.scale_eV_A3 > 0.1
    assert max(found[1:]) < EXACT
    kept = ph3.fc3.copy()
    try:
        ph3.fc3[0, 3, 5, 0, 1, 2] += 0.01
        found = third_order.residuals(ph3)
        assert min(found[1:]) > 0.0099
    finally:
        ph3.fc3 = kept


def test_second_order_from_another_supercell(ff, ph3):
    """Beside the third order, those of `force_constants.force_constants`."""
    phonon = force_constants.make_phonon(NACL, (2, 2, 2))
    np.testing.assert_allclose(ph3.fc2, force_constants.force_constants(ff, phonon), rtol=0, atol=EXACT)


def test_conductivity_from_end_to_end(ff, ph3, tmp_path, capsys):
    checkpoint.save(tmp_path / "model", ff.config, variables=ff.variables, metadata={"source": "test"})
    NACL.write(tmp_path / "nacl.extxyz")
    common = [str(tmp_path / "nacl.extxyz"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    options = "--supercell 2 2 2 --phonon-supercell 2 2 2 --mesh 3 3 3 --temperatures 300 600"
    with pytest.warns(UserWarning, match="looks polar|largest"):
        assert kappa.main([*common, *options.split()]) == 0
    assert "sum rule" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert max(report["raw_residuals"][k] for k in ("sum_rule_eV_A3", "permutation_eV_A3")) < EXACT
    rows = list(csv.DictReader((tmp_path / "out" / "kappa.csv").read_text().splitlines()))
    values = np.array([[float(row[f"kappa_{c}_W/m/K"]) for c in conductivity.COMPONENTS] for row in rows])
    np.testing.assert_allclose(values[:, :3], values[:, :1].repeat(3, 1), rtol=1e-6)  # cubic
    assert (values[:, 0] > 0).all() and values[1, 0] < values[0, 0]
    names = {"fc2.hdf5", "fc3.hdf5", "phono3py_params.yaml", "kappa.png"}
    assert {p.name for p in (tmp_path / "out").iterdir()} >= names
    assert kappa.main([*common, *"--supercell 2 2 2 --mesh 0 1 1".split()]) == 2
    assert "expected positive numbers" in capsys.readouterr().err
