"""The row of a crystal, without Dask: what is known of one that fails, and phonons against those of the supercell."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from equijax import checkpoint, phonons
from equijax.phonons import force_constants
from equijax.screen import compute
from equijax.screen.crystals import Crystal
from equijax.screen.options import ScreenConfig

NACL = bulk("NaCl", "rocksalt", a=5.6)


@pytest.fixture(scope="module")
def config(folder):
    return ScreenConfig((), folder / "model", supercell=(2, 2, 2), mesh=(2, 2, 2), relax=False)


@pytest.fixture(scope="module")
def row(student):
    """The row of a crystal by the tiny model."""
    digest = checkpoint.fingerprint(student.config, student.variables)

    def computed(atoms, config, error=None):
        return compute.compute(Crystal("a:0", atoms, error), config, digest=digest, cores=())

    return computed


def test_phonons_of_a_crystal(student, config, row):
    """Derivatives of the supercell give the same force constants as the waves in the primitive cell."""
    found = row(NACL, config)
    expected = phonons.make_phonon(NACL, (2, 2, 2))
    force_constants.force_constants(student, expected)
    assert found.error is None and found.supercell_atoms == 16
    np.testing.assert_allclose(found.force_constants, expected.force_constants.ravel(), rtol=0, atol=1e-8)
    mesh = expected.run_mesh((2, 2, 2), is_gamma_center=True)
    assert found.highest_THz == pytest.approx(mesh.frequencies.max(), abs=1e-6)
    assert "".join(found.warnings).count("Na-Cl looks polar") == 1


def test_what_fails_is_a_row(student, config, row):
    assert "Xe" in row(bulk("Xe", "fcc", a=6.0), config).error
    close = NACL.copy()
    close.positions[1, 0] -= 1.5
    assert "a:0: the largest force is" in row(close, config).error
    unread = row(None, config, "no file")
    assert (unread.name, unread.error, unread.numbers) == ("a:0", "no file", [])
    stopped = row(close, replace(config, relax=True, steps=1, fixed_cell=True))
    assert "the relaxation has not converged to 0.0001 eV/A in 1 steps: raise --steps" in stopped.error
    assert stopped.steps == 1 and len(stopped.numbers) == 2 and not stopped.force_constants


def test_a_worker_without_the_model(config):
    for model, message in ((config.model, "is another model there"), (Path("nowhere"), "cannot start: .*nowhere")):
        with pytest.raises(compute.Unready, match=message):
            compute.compute(Crystal("a:0", NACL), replace(config, model=model), digest="of another", cores=())


def test_supercells_by_length():
    """Faces, not vectors: those of the primitive cell of fcc are a / sqrt(3) apart."""
    atoms = bulk("Cu", "fcc", a=3.6)
    assert compute.diagonal(atoms, 3.6 / np.sqrt(3) * 3) == [3, 3, 3]
    assert compute.diagonal(atoms, 3.6 / np.sqrt(3) * 3 + 0.01) == [4, 4, 4]
    atoms.set_cell(np.diag([2.0, 5.0, 30.0]))
    assert compute.diagonal(atoms, 10) == [5, 2, 1]
