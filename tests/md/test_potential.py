"""Energies for `jax_md.simulate`: forces and stress against the calculator, lists that are out of date."""

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.md import energy_neighbor, potential
from equijax.testing import TOLERANCE
from tests.md.samples import triclinic

jax_md = pytest.importorskip("jax_md", reason="needs the md extra")
space = jax_md.space


@pytest.mark.parametrize("fractional", [True, False])
def test_forces_and_stress_equal_the_calculator(tiny, fractional):
    atoms = triclinic()
    atoms.calc = tiny.calculator("float64")
    with jax.enable_x64(True):
        T = jnp.asarray(atoms.cell.array.T)
        displacement, shift = space.periodic_general(T, fractional_coordinates=fractional)
        neighbor_fn, energy_fn = energy_neighbor(displacement, T, ff=tiny, numbers=atoms.numbers)
        R = jnp.asarray(atoms.get_scaled_positions() if fractional else atoms.positions)
        neighbors = neighbor_fn.allocate(R)
        moved = shift(R, jnp.full(R.shape, -0.1))  # some atoms are wrapped: the old list must still serve

        def energy(R, strain):
            return energy_fn(R, neighbor=neighbors, perturbation=jnp.eye(3) + strain)

        derivatives = jax.jit(jax.value_and_grad(energy, argnums=(0, 1)))
        for positions in (R, moved):
            e, (gradient, virial) = derivatives(positions, jnp.zeros((3, 3)))
            np.testing.assert_allclose(-gradient, atoms.get_forces(), rtol=0, atol=TOLERANCE["float64"]["forces"])
        virial = np.asarray(virial + virial.T) / 2
    np.testing.assert_allclose(virial / atoms.get_volume(), atoms.get_stress(voigt=False), rtol=0, atol=1e-10)
    rows = [tiny.config.species.index(z) for z in atoms.numbers]
    e0 = tiny.variables["constants"]["atomic_energies"][0, rows].sum()
    assert float(e) + e0 == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def test_probe_reads_the_space():
    T = triclinic().cell.array.T
    assert potential.probe(space.periodic_general(T)[0], T) == (True, (True,) * 3)
    assert potential.probe(space.periodic_general(T, fractional_coordinates=False)[0], T) == (False, (True,) * 3)
    assert potential.probe(space.periodic(9.0)[0], 9.0 * np.eye(3)) == (False, (True,) * 3)
    assert potential.probe(space.free()[0], np.eye(3)) == (False, (False,) * 3)
    with pytest.raises(ValueError, match="pass the box the displacement was made with"):
        potential.probe(space.periodic_general(T)[0], 2 * T)


def test_unknown_element_and_thin_box(tiny):
    with pytest.raises(ValueError, match=r"atomic numbers \[26\]"):
        energy_neighbor(space.free()[0], None, ff=tiny, numbers=[26])
    T = np.diag([20.0, 20.0, 0.001])
    neighbor_fn, _ = energy_neighbor(space.periodic_general(T)[0], T, ff=tiny, numbers=[11])
    with pytest.raises(ValueError, match="box smaller than allowed"):
        neighbor_fn.allocate(jnp.zeros((1, 3)))


def test_stale_list_is_never_silently_wrong(morse, metal):
    atoms = ase.io.read(metal)
    T = atoms.cell.array.T
    neighbor_fn, energy_fn = energy_neighbor(space.periodic_general(T)[0], T, ff=morse, numbers=atoms.numbers)
    R = jnp.asarray(atoms.get_scaled_positions(), jnp.float32)
    neighbors = neighbor_fn.allocate(R)
    energy = jax.jit(energy_fn)
    assert np.isfinite(energy(R, neighbors))
    far = R.at[0].add(0.03)
    assert np.isnan(energy(far, neighbors))
    updated = jax.jit(neighbor_fn.update)(far, neighbors)
    assert bool(updated.outran) and np.isfinite(energy(far, updated))
