"""Descriptors: what turns with the structure and what does not, which layers, which models have them."""

import ase
import numpy as np
import pytest

from equijax import testing
from equijax.config import Compute
from equijax.descriptors import descriptors
from equijax.errors import InputError

QUARTER_TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # about z


def test_scalars_stay_and_vectors_turn(ff):
    atoms = testing.rattled()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ QUARTER_TURN.T)
    turned.positions = atoms.positions @ QUARTER_TURN.T
    channels, layers = ff.config.channels, ff.config.num_interactions
    first, second = descriptors(ff, [atoms, turned])
    assert first.shape == (len(atoms), layers * channels) and np.ptp(first, axis=0).min() > 1e-6
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-12)
    first, second = (
        d[:, channels : 4 * channels].reshape(len(atoms), channels, 3)  # x, y, z as e3nn has them
        for d in descriptors(ff, [atoms, turned], invariants_only=False, num_layers=1)
    )
    assert np.abs(first).max() > 1e-6
    np.testing.assert_allclose(second, first @ QUARTER_TURN.T, rtol=0, atol=1e-12)


def test_layers_and_precision(ff):
    atoms = testing.rattled()
    every, one = (descriptors(ff, [atoms], num_layers=n)[0] for n in (None, 1))
    np.testing.assert_array_equal(every[:, : ff.config.channels], one)
    single = descriptors(ff, [atoms], compute=Compute("float32"))[0]
    assert single.dtype == np.float32 and every.dtype == np.float64
    np.testing.assert_allclose(single, every, rtol=0, atol=1e-5 * np.abs(every).max())


def test_refuses(ff):
    for layers in (0, ff.config.num_interactions + 1):
        with pytest.raises(InputError, match=f"num_layers = {layers}: expected 1 to"):
            descriptors(ff, [testing.rattled()], num_layers=layers)
    with pytest.raises(InputError, match="element"):
        descriptors(ff, [ase.Atoms("Fe")])
    pair = testing.pair_forcefield(lambda r, a, b: 1 / r, 5.0, species=(11, 17))
    with pytest.raises(InputError, match="no MACE"):
        descriptors(pair, [testing.rattled()])
