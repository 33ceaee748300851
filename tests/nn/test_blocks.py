"""Layers in two forms that are equal."""

import jax
import numpy as np

from equijax import graph, testing
from equijax.derivatives import energy_forces_stress
from equijax.nn import blocks


def test_summing_by_sender_species_first_changes_nothing(ff, monkeypatch):
    """The first interaction's reassociated form against the convolution of any features."""
    batch = graph.from_atoms([testing.structures()[name] for name in ("perovskite", "slab")], ff.config)
    with jax.enable_x64(True):

        def run():
            return energy_forces_stress(ff.config, ff.device_variables("float64"), graph=batch)

        by_species = jax.jit(lambda: run())()
        monkeypatch.setattr(blocks, "MAX_DENSE_SPECIES", 0)  # gathers each atom's weights, convolves edge by edge
        by_edge = jax.jit(lambda: run())()
    for a, b in zip(by_species, by_edge, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)
