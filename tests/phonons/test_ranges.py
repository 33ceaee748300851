"""How far force constants reach, by the model and by their size."""

import numpy as np
from ase import Atoms
from ase.build import bulk

from equijax import testing
from equijax.phonons import force_constants, ranges


def test_interaction_range():
    ff = testing.random_forcefield(testing.random_config(r_max=3.5))
    assert ranges.interaction_range(ff, Atoms("Na", cell=[4.0, 5.0, 30.0], pbc=True)) == (14.0, (7, 6, 1), 42)


def test_decay_and_measured_range():
    """Springs between nearest neighbours, 2.8 A apart, and nothing beyond."""
    springs = testing.pair_forcefield(lambda r: 0.5 * (r - 2.8) ** 2, 3.3, species=(11, 17))
    phonon = force_constants.make_phonon(bulk("NaCl", "rocksalt", a=5.6), (2, 2, 2))
    force_constants.force_constants(springs, phonon)
    distance, size = ranges.decay(phonon)
    assert distance[0] == 0 and size[distance == 0].max() == size.max() and np.all(np.diff(distance) >= 0)
    assert ranges.measured_range(phonon, tolerance=size.max()) == (0.0, (1, 1, 1), 2)
    near = ranges.measured_range(phonon)
    np.testing.assert_allclose(near.reach_A, 2.8, rtol=0, atol=1e-6)
    assert near.supercell == (2, 2, 2) and near.atoms == 16
