"""What a molecular-dynamics run is made of: structure, potential and integrator, and what is observed of its states.

The command line is `equijax.md`. Integrators are jax_md's: velocity Verlet, Nose-Hoover chains, BAOAB Langevin and
isotropic Martyna-Tobias-Klein NPT.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ase
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
from ase.geometry import complete_cell
from ase.io.jsonio import encode

from equijax import checkpoint, graph, precision, structures, units
from equijax import neighbors as nl
from equijax.forcefield import ForceField
from equijax.jaxmd import potential

FS = ase.units.fs  # one femtosecond in sqrt(amu A^2 / eV)


class System(NamedTuple):
    """A simulation ready to run: potential, integrator, and what is needed to observe it."""

    atoms: ase.Atoms
    variables: dict
    energy_fn: Callable
    neighbor_fn: nl.NeighborFns
    start: tuple  # (position, random key, momenta), [N, 3] or [B, N, 3]
    init: Callable  # (position, random key, momenta) -> state, its forces still to be set
    apply: Callable
    box_of: Callable | None
    conserved: Callable  # (state, potential energy) -> the invariant of the equations of motion
    dof: int  # degrees of freedom behind the temperature
    e0: float  # eV, isolated-atom energies


def prepare(config, ff: ForceField) -> System:
    """Structure, potential and integrator.

    Raises:
      FileNotFoundError, ValueError: see `equijax.structures.read` and `equijax.graph.check_atoms`; NPT of a structure
        that is not periodic in all directions; float64 where JAX would compute in float32.
    """
    precision.require(config.dtype)
    atoms = structures.right_handed(structures.read(config.structure)).repeat(config.repeat)
    graph.check_atoms(atoms, ff.config, str(config.structure))
    ff = ff.specialise(atoms.numbers) if config.fast else ff
    if config.ensemble == "npt" and not atoms.pbc.all():
        raise ValueError(f"{config.structure} is periodic along {atoms.pbc.tolist()}: npt needs all three directions")
    cell = complete_cell(atoms.cell.array)
    space = nl.Space(False, tuple(bool(p) for p in atoms.pbc), ff.config.r_max, config.skin)
    neighbor_fn, energy_fn = potential(cell.T, space, ff, atoms.numbers, config.head)
    rows = [ff.config.species.index(z) for z in atoms.numbers]
    e0 = np.asarray(ff.variables["constants"]["atomic_energies"], np.float64)[ff.head_index(config.head), rows].sum()
    stochastic = config.ensemble == "nvt" and config.thermostat == "langevin"
    dof = 3 * len(atoms) if stochastic or len(atoms) == 1 else 3 * len(atoms) - 3
    init, apply, box_of, conserved = integrator(config, atoms, cell, energy_fn, dof)
    return System(
        atoms, ff.device_variables(config.dtype), energy_fn, neighbor_fn, initial(config, atoms), init, apply, box_of,
        conserved, dof, e0,
    )  # fmt: skip


def inputs(ff: ForceField, atoms: ase.Atoms) -> dict[str, str]:
    """sha256 of what a run begins with, by what it is: the model, and each property of the structure."""
    constraints = encode([constraint.todict() for constraint in atoms.constraints])
    values = {"elements": atoms.numbers, "masses": atoms.get_masses(), "cell": atoms.cell.array, "pbc": atoms.pbc,
              "positions": atoms.positions}  # fmt: skip
    found = {name: hashlib.sha256(np.ascontiguousarray(x, float).tobytes()).hexdigest() for name, x in values.items()}
    found["constraints"] = hashlib.sha256(constraints.encode()).hexdigest()
    return {"model": checkpoint.fingerprint(ff.config, ff.variables), **found}


def initial(config, atoms: ase.Atoms) -> tuple:
    """(position, random key, momenta) of the first step; with several replicas each has its own key and momenta."""
    R, p = jnp.asarray(atoms.positions, config.dtype), atoms.get_momenta()
    key = jax.random.PRNGKey(config.seed)
    if config.replicas == 1:
        p = p if p.any() else thermal_momenta(atoms, config.temperature, config.seed)
        return R, key, jnp.asarray(p, config.dtype)
    drawn = [thermal_momenta(atoms, config.temperature, (config.seed, b)) for b in range(config.replicas)]
    stacked = jnp.broadcast_to(R, (config.replicas, *R.shape))
    return stacked, jax.random.split(key, config.replicas), jnp.asarray(np.stack(drawn), config.dtype)


def integrator(config, atoms: ase.Atoms, cell: np.ndarray, energy_fn: Callable, dof: int) -> tuple:
    """(init, apply, box_of, conserved) of the ensemble.

    Positions are real and never wrapped: jax_md's NPT step shifts them by r (e^x - 1), which is the right scaling of
    real coordinates and not of fractional ones. Its thermostats count 3N degrees of freedom; where the centre of mass
    is at rest they are given the temperature that leaves the remaining 3N - 3 at the one asked for.
    """
    try:
        from jax_md import simulate as md
    except ImportError as error:
        raise ImportError("molecular dynamics needs jax_md: pip install 'equijax[md]'") from error

    dt, mass = config.timestep * FS, jnp.asarray(atoms.get_masses(), config.dtype)
    kT = units.KB_EV_PER_K * config.temperature * dof / (3 * len(atoms))
    pressure = config.pressure / units.GPA_PER_EV_A3
    tau = config.thermostat_time * FS

    def shift(R, dR, **unused):
        return R + dR

    def constant(e):
        return lambda R, **unused: e

    def npt_invariant(state, e):
        return md.npt_nose_hoover_invariant(constant(e), state, pressure, kT)

    def npt(energy_fn):
        return md.npt_nose_hoover(energy_fn, shift, dt, pressure, kT, {"tau": config.barostat_time * FS}, {"tau": tau})

    name = config.thermostat if config.ensemble == "nvt" else config.ensemble
    make, arguments, box_of, conserved = {
        "nve": (lambda f: md.nve(f, shift, dt), (kT,), None, lambda state, e: e + md.kinetic_energy(state)),
        "nose-hoover": (lambda f: md.nvt_nose_hoover(f, shift, dt, kT, tau=tau), (), None,
                        lambda state, e: md.nvt_nose_hoover_invariant(constant(e), state, kT)),
        "langevin": (lambda f: md.nvt_langevin(f, shift, dt, kT, gamma=1.0 / tau), (), None, lambda state, e: jnp.nan),
        "npt": (npt, (jnp.asarray(cell.T, config.dtype),), md.npt_box, npt_invariant),
    }[name]  # fmt: skip

    def init(R, key, momenta):
        # without a potential: its forces are those of the first observation, one program less to compile
        return make(constant(jnp.zeros((), R.dtype)))[0](key, R, *arguments, mass=mass[:, None], momenta=momenta)

    return jax.vmap(init) if config.replicas > 1 else init, make(energy_fn)[1], box_of, conserved


def thermal_momenta(atoms: ase.Atoms, temperature: float, seed) -> np.ndarray:
    """Maxwell-Boltzmann momenta [N, 3] in sqrt(amu eV), centre of mass at rest, scaled to the temperature (K)."""
    mass = atoms.get_masses()[:, None]
    p = np.random.default_rng(seed).normal(size=(len(atoms), 3)) * np.sqrt(mass)
    if len(atoms) == 1:
        return p * np.sqrt(3 * units.KB_EV_PER_K * temperature / (p**2 / mass).sum())
    p -= mass * p.sum(0) / mass.sum()
    return p * np.sqrt((3 * len(atoms) - 3) * units.KB_EV_PER_K * temperature / (p**2 / mass).sum())


def observer(system: System) -> Callable:
    """(state, neighbors, variables) -> what is logged (energies without E0), positions, momenta, forces and cell.

    Of one replica; `observe_all` maps it over several.
    """
    volume_known = bool(system.atoms.pbc.all())
    fixed = complete_cell(system.atoms.cell.array).T

    def observe(state, neighbors, variables) -> dict[str, Any]:
        R = state.position
        box = jnp.asarray(fixed, R.dtype) if system.box_of is None else system.box_of(state)

        def deformed(R, p):
            return system.energy_fn(R, neighbor=neighbors, box=box, perturbation=p, variables=variables)

        energy, (gradient, virial) = jax.value_and_grad(deformed, argnums=(0, 1))(R, jnp.eye(3, dtype=R.dtype))
        kinetic = 0.5 * (state.momentum**2 / state.mass).sum()
        volume = jnp.abs(jnp.linalg.det(box)) if volume_known else jnp.nan
        pressure = (2.0 * kinetic - jnp.trace(virial)) / (3.0 * volume) * units.GPA_PER_EV_A3
        return {
            "temperature_K": 2.0 * kinetic / (system.dof * units.KB_EV_PER_K),
            "potential_eV": energy,
            "kinetic_eV": kinetic,
            "total_eV": energy + kinetic,
            "conserved_eV": system.conserved(state, energy),
            "pressure_GPa": pressure,
            "volume_A3": volume,
            "positions": R,
            "momenta": state.momentum,
            "forces": -gradient,
            "cell": box.T,
        }

    return observe


def observe_all(system: System) -> Callable:
    """`observer` compiled, for one structure or for replicas [B, N, 3]."""
    one = observer(system)
    return jax.jit(jax.vmap(one, in_axes=(0, 0, None)) if system.start[0].ndim == 3 else one)


def frame_of(system: System, seen: dict) -> ase.Atoms:
    """Atoms of one observation."""
    atoms = system.atoms.copy()
    if atoms.pbc.any():
        atoms.set_cell(seen["cell"])
    atoms.positions = seen["positions"]
    atoms.set_momenta(seen["momenta"])
    return atoms
