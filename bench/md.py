"""How fast is molecular dynamics, and what do the list updates cost? ns/day at 1 fs, and the energy drift of NVE.

    python bench/md.py [MODEL] [REPEAT ...]

MODEL is a model directory (default: random weights of the MACE-MP-0b3 shape, whose drift means nothing); REPEAT are
supercells of the 8-atom NaCl cell. The first block, which compiles, is not timed. The drift is the slope over 0.2 ps:
an oscillation of the shadow energy is part of it at this length.
"""

import sys
import time

import _common
import jax
import jax.numpy as jnp
import numpy as np

import equijax
from equijax import md, testing

STEPS, BLOCK = 200, 20


def simulation(ff, atoms, dtype: str, temperature: float = 300.0):
    """(apply, state, neighbors, neighbor_fn, variables, energy) of NVE in fractional coordinates."""
    from jax_md import simulate, space

    T = jnp.asarray(atoms.cell.array.T, dtype)
    displacement, shift = space.periodic_general(T)
    neighbor_fn, energy_fn = md.energy_neighbor(displacement, T, ff=ff, numbers=atoms.numbers)
    init, apply = simulate.nve(energy_fn, shift, md.FS)
    R = jnp.asarray(atoms.get_scaled_positions(), dtype)
    neighbors, variables = neighbor_fn.allocate(R), ff.device_variables(dtype)
    momenta = jnp.asarray(md.thermal_momenta(atoms, temperature, seed=0), dtype)
    mass = jnp.asarray(atoms.get_masses()[:, None], dtype)
    state = init(jax.random.PRNGKey(0), R, 0.0, mass=mass, momenta=momenta, neighbor=neighbors, variables=variables)
    energy = jax.jit(
        lambda s, n: energy_fn(s.position, neighbor=n, variables=variables) + (s.momentum**2 / s.mass).sum() / 2
    )
    return apply, state, neighbors, neighbor_fn, variables, energy


def measure(ff, repeat: int, dtype: str) -> dict:
    """Speed and drift for one supercell."""
    atoms = _common.crystal("NaCl", repeat)
    with jax.enable_x64(dtype == "float64"):
        apply, state, neighbors, neighbor_fn, variables, energy = simulation(ff, atoms, dtype)
        marks = []
        stepper = md.Stepper(apply, neighbor_fn, arguments={"variables": variables})
        for step, s, n in md.run_blocks(stepper, state, neighbors=neighbors, steps=STEPS, block=BLOCK):
            marks.append((step, float(energy(s, n)), time.perf_counter()))
        seconds = (marks[-1][2] - marks[0][2]) / (marks[-1][0] - marks[0][0])
        update = jax.jit(neighbor_fn.update)
        moved = s.position + 0.02  # makes the update build the list again
        jax.block_until_ready(update(moved, n))
        start = time.perf_counter()
        jax.block_until_ready(update(moved, n))
        rebuild = time.perf_counter() - start
    drift = np.polyfit([m[0] * 1e-3 for m in marks], [m[1] for m in marks], 1)[0] / len(atoms)
    return {
        "atoms": len(atoms),
        "dtype": dtype,
        "slots": n.slots,
        "ms_per_step": 1e3 * seconds,
        "us_per_atom": 1e6 * seconds / len(atoms),
        "ns_per_day": 1e-6 * 86400 / seconds,
        "rebuild_ms": 1e3 * rebuild,
        "drift_eV_per_atom_ps": float(drift),
    }


def main() -> None:
    """Print and store one row a size and precision."""
    arguments = sys.argv[1:]
    given = arguments[0] if arguments and not arguments[0].isdigit() else None
    ff = equijax.load(given) if given else testing.random_forcefield(_common.published_config())
    repeats = [int(a) for a in arguments if a.isdigit()] or [2, 3]
    rows = [measure(ff, repeat, dtype) for repeat in repeats for dtype in ("float32", "float64")]
    _common.print_table(rows)
    _common.write("md", rows, model=ff.config.hidden_irreps, timestep_fs=1.0)


if __name__ == "__main__":
    main()
