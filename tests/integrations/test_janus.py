"""janus-core's classes with our calculator attached; its command line knows no calculator but its own."""

import numpy as np
import pytest
from janus_core.calculations.descriptors import Descriptors
from janus_core.calculations.md import NVE
from janus_core.calculations.phonons import Phonons
from janus_core.calculations.single_point import SinglePoint

from equijax import hessian, phonons
from equijax.descriptors import descriptors
from equijax.phonons import force_constants
from tests.samples import attached

QUIET = {"attach_logger": False, "track_carbon": False}


@pytest.fixture
def atoms(mini, silicon, tmp_path, monkeypatch):
    """With the calculator, whose "arch" is how janus names what it writes."""
    monkeypatch.chdir(tmp_path)
    atoms = attached(mini, silicon)
    atoms.rattle(0.02, seed=1)
    atoms.calc.parameters["arch"] = "equijax"
    return atoms


def test_single_point_and_its_analytic_hessian(mini, atoms):
    found = SinglePoint(struct=atoms, properties=("energy", "forces", "stress", "hessian"), **QUIET).run()
    np.testing.assert_array_equal(found["hessian"].reshape(2, 3, 2, 3), hessian.hessian(mini, atoms))
    assert found["energy"] == atoms.get_potential_energy() and np.abs(found["forces"]).max() > 0.01


def test_descriptors(mini, atoms):
    Descriptors(struct=atoms, calc_per_element=True, calc_per_atom=True, **QUIET).run()
    expected = descriptors(mini, [atoms])[0]
    np.testing.assert_allclose(atoms.arrays["equijax_descriptors"], expected.mean(1), rtol=1e-12)


def test_phonons(mini, silicon, atoms):
    atoms.positions = silicon.positions
    run = Phonons(struct=atoms, supercell=2, displacement=0.005, write_results=False, **QUIET)
    run.calc_force_constants(write_force_consts=False)
    exact = phonons.make_phonon(silicon, (2, 2, 2))
    force_constants.force_constants(mini, exact)
    q = [[0.1, 0.2, 0.3]]
    theirs, ours = (p.run_qpoints(q).frequencies for p in (run.results["phonon"], exact))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=0.01)


@pytest.mark.filterwarnings(
    "ignore:Use thermalize_momenta:DeprecationWarning",  # of the ASE that janus-core was written for
    "ignore:Skipping unhashable information real_time:UserWarning",  # which it puts into every frame
)
def test_dynamics_conserve_energy(atoms):
    """Potential plus kinetic energy of its statistics, eV/atom, while an atom's kinetic energy comes and goes."""
    NVE(struct=atoms, steps=50, temp=300, stats_every=10, stats_file="stats.dat", seed=1, **QUIET).run()
    _, _, _, potential, kinetic, _, total, *_ = np.loadtxt("stats.dat").T
    assert len(total) == 6 and np.ptp(kinetic) > 0.02
    np.testing.assert_allclose(potential + kinetic, total, rtol=0, atol=1e-7)
    assert np.ptp(total) < 1e-3
