"""Molecular dynamics with JAX-MD: constant energy, a neighbour list that says when it is stale."""

import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from ase.build import bulk
from jax_md import simulate, space

import equijax
import equijax.md

ff = equijax.load("model")
atoms = bulk("Si", "diamond", a=5.43, cubic=True)
box = jnp.asarray(atoms.cell.array.T, jnp.float32)  # cell vectors as columns
displacement, shift = space.periodic_general(box, fractional_coordinates=True)
neighbor_fn, energy_fn = equijax.md.energy_neighbor(displacement, box, ff=ff, numbers=atoms.numbers)

R = jnp.asarray(atoms.get_scaled_positions(), jnp.float32)
neighbors = neighbor_fn.allocate(R)
init, apply = simulate.nve(energy_fn, shift, dt=1.0 * units.fs)  # A, eV, amu
masses = jnp.asarray(atoms.get_masses(), jnp.float32)
state = init(jax.random.PRNGKey(0), R, kT=600 * units.kB, mass=masses, neighbor=neighbors)


@jax.jit
def advance(state, neighbors):
    """Ten steps, the list updated at each; it is NaN and not wrong where the list is too short."""

    def step(_, carry):
        state, neighbors = carry
        state = apply(state, neighbor=neighbors)
        return state, neighbors.update(state.position)

    state, neighbors = jax.lax.fori_loop(0, 10, step, (state, neighbors))
    kinetic = 0.5 * (state.momentum**2 / state.mass).sum()
    return state, neighbors, kinetic, energy_fn(state.position, neighbor=neighbors)


totals = []
for block in range(10):
    state, neighbors, kinetic, potential = advance(state, neighbors)
    totals.append(float(kinetic + potential))
    temperature = 2 * float(kinetic) / (3 * len(atoms) * units.kB)
    print(f"{10 * (block + 1):4} fs  {temperature:6.1f} K  {totals[-1]:.5f} eV")
print(f"total energy stays within {np.ptp(totals) / len(atoms):.0e} eV/atom")
