"""What a molecular-dynamics run is made of: structure, potential and integrator, and what is observed of its states.

Integrators are jax_md's: velocity Verlet, Nose-Hoover chains, BAOAB Langevin and
isotropic Martyna-Tobias-Klein NPT.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import ase
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
from ase.geometry import complete_cell
from ase.io.jsonio import encode

from equijax import checkpoint, derivatives, graph, precision, structures, units
from equijax.constraints import free_components, refuse_fixed
from equijax.errors import InputError, MissingExtra
from equijax.graph.neighbours import embedded_numbers
from equijax.md import blocks, neighbours
from equijax.md.momenta import rigid_motions, starting_momenta
from equijax.md.options import MDConfig
from equijax.md.potential import energy_in, space_of
from equijax.potential import Potential

FLOAT32_EXTENT_A = 1000.0  # beyond it float32 places atoms to 1e-4 A, and forces are off by 1e-3 eV/A
# options that say what is read and written, not what is computed
OF_FILES = "structure model out steps trajectory log_every trajectory_every checkpoint_every restart seed".split()
FS = ase.units.fs  # one femtosecond in sqrt(amu A^2 / eV)


class System(NamedTuple):
    """A simulation ready to run: potential, integrator, and what is needed to observe it."""

    atoms: ase.Atoms
    variables: dict
    energy_fn: Callable
    neighbor_fn: neighbours.NeighborFns
    start: tuple  # (position, random key, momenta), [N, 3] or [B, N, 3]
    init: Callable  # (position, random key, momenta) -> state, its forces still to be set
    apply: Callable
    box_of: Callable | None
    conserved: Callable  # (state, potential energy) -> the invariant of the equations of motion
    dof: int  # degrees of freedom behind the temperature
    e0: float  # eV, isolated-atom energies
    free: np.ndarray  # [N, 3] bool, what the structure's constraints leave free
    home: np.ndarray  # [N, 3] fractional: what was taken off the positions to bring them near the origin
    key: tuple  # plain values: all that its programs depend on beside their arguments


def prepare(config: MDConfig, ff: Potential) -> System:
    """Structure, potential and integrator.

    Raises:
      FileNotFoundError, InputError: see `structures.read` and `graph.check_atoms`; NPT of a structure that is not
        periodic in all directions or has fixed atoms; nothing free to move, or another constraint than fixed atoms
        and components; float64 where JAX would compute in float32; atoms too far apart for float32.
    """
    precision.require(config.dtype)
    name, atoms = str(config.structure), structures.right_handed(structures.read(config.structure))
    graph.check_atoms(atoms, ff.config, name=name)
    if not free_components(atoms, name).any():
        raise InputError(f"{name}: all atoms are fixed, expected some that can move")
    atoms = atoms.repeat(config.repeat)
    free = free_components(atoms, name)
    ff = ff.specialise(atoms.numbers) if config.fast else ff
    if config.ensemble == "npt":
        if not atoms.pbc.all():
            raise InputError(f"{name} is periodic along {atoms.pbc.tolist()}: npt needs all three directions")
        refuse_fixed(
            atoms, name, why="npt scales all positions with the cell; use nvt or nve, or remove the constraints"
        )
    cell = complete_cell(atoms.cell.array)
    a, b, c = map(bool, atoms.pbc)
    space = space_of(ff, (a, b, c), skin=config.skin)
    neighbor_fn, energy_fn = energy_in(cell.T, space, ff=ff, numbers=atoms.numbers, info=atoms.info)
    rows = [ff.config.species.index(z) for z in atoms.numbers]
    e0 = np.asarray(ff.variables["constants"]["atomic_energies"], np.float64)[ff.head_index, rows].sum()
    stochastic = config.ensemble == "nvt" and config.thermostat == "langevin"
    dof = int(free.sum()) - (0 if stochastic else len(rigid_motions(atoms, free)))
    init, apply, box_of, conserved = integrator(config, atoms, cell=cell, energy_fn=energy_fn, dof=dof)
    home = home_of(atoms)
    extent = np.abs(atoms.positions - home @ cell).max()
    if config.dtype == "float32" and extent > FLOAT32_EXTENT_A:
        raise InputError(
            f"{name} extends over {extent:.4g} A, expected at most {FLOAT32_EXTENT_A:g} A in float32: "
            "use --dtype float64"
        )
    return System(
        atoms=atoms,
        variables=ff.device_variables(config.dtype),
        energy_fn=energy_fn,
        neighbor_fn=neighbor_fn,
        start=initial(config, atoms, home=home),
        init=init,
        apply=apply,
        box_of=box_of,
        conserved=conserved,
        dof=dof,
        e0=e0,
        free=free,
        home=home,
        key=(dof, *program_key(config, ff, atoms=atoms)),
    )


def inputs(ff: Potential, atoms: ase.Atoms) -> dict[str, str]:
    """sha256 of what a run begins with, by what it is: the model, and each property of the structure."""
    constraints = encode([constraint.todict() for constraint in atoms.constraints])
    values = {
        "elements": atoms.numbers,
        "masses": atoms.get_masses(),
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "positions": atoms.positions,
    }
    if embedded := embedded_numbers(atoms.info, ff.config):
        values["charge and spin"] = np.array(embedded)
    found = {name: hashlib.sha256(np.ascontiguousarray(x, float).tobytes()).hexdigest() for name, x in values.items()}
    found["constraints"] = hashlib.sha256(constraints.encode()).hexdigest()
    return {"model": checkpoint.fingerprint(ff.config, ff.variables), **found}


def program_key(config: MDConfig, ff: Potential, *, atoms: ase.Atoms) -> tuple:
    """What the programs of a simulation depend on: the model but for its weights, the structure but for its positions.

    Positions matter in one way alone: those of a molecule decide how many degrees of freedom it has.
    """
    contents = {name: x for name, x in inputs(ff, atoms).items() if name not in ("model", "positions")}
    options = {name: x for name, x in asdict(config).items() if name not in OF_FILES}
    kind = type(ff)
    return (kind.__module__, kind.__qualname__, ff.config, ff.head_index, *contents.items(), *options.items())


def home_of(atoms: ase.Atoms) -> np.ndarray:
    """[N, 3] fractional: the cell each atom is in, and the middle of all where nothing repeats.

    Without it positions near the origin serve, where float32 keeps its digits.
    """
    s = atoms.positions @ np.linalg.inv(complete_cell(atoms.cell.array))
    return np.where(atoms.pbc, np.floor(s), s.mean(0))


def initial(config: MDConfig, atoms: ase.Atoms, *, home: np.ndarray) -> tuple:
    """(position, random key, momenta) of the first step; with several replicas each has its own key and momenta."""
    R = jnp.asarray(atoms.positions - home @ complete_cell(atoms.cell.array), config.dtype)
    p = jnp.asarray(starting_momenta(config, atoms), config.dtype)
    key = jax.random.PRNGKey(config.seed)
    if config.replicas == 1:
        return R, key, p
    return jnp.broadcast_to(R, (config.replicas, *R.shape)), jax.random.split(key, config.replicas), p


def integrator(config: MDConfig, atoms: ase.Atoms, *, cell: np.ndarray, energy_fn: Callable, dof: int) -> tuple:
    """(init, apply, box_of, conserved) of the ensemble.

    Positions are real and never wrapped: jax_md's NPT step shifts them by r (e^x - 1), which is the right scaling of
    real coordinates and not of fractional ones. Its thermostats count 3N degrees of freedom: the one of NVT is told how
    many there are, the one of NPT is given the temperature that leaves the 3N - 3 there are at the one asked for.
    Fixed atoms feel no force, have no momentum and do not shift.
    """
    try:
        from jax_md import simulate as md
    except ImportError as error:
        raise MissingExtra("molecular dynamics needs jax_md: pip install 'equijax[md]'") from error

    dt, mass = config.timestep * FS, jnp.asarray(atoms.get_masses(), config.dtype)
    kT, free = units.KB_EV_PER_K * config.temperature, free_components(atoms)
    missing = 3 * len(atoms) - dof
    kT_npt = kT * dof / (3 * len(atoms))
    pressure = config.pressure / units.GPA_PER_EV_A3
    tau = config.thermostat_time * FS

    def shift(R: jax.Array, dR: jax.Array, **unused: Any) -> jax.Array:
        return R + dR if free.all() else R + jnp.where(free, dR, 0.0)

    def held(R: jax.Array, **others: Any) -> jax.Array:
        return energy_fn(R if free.all() else jnp.where(free, R, jax.lax.stop_gradient(R)), **others)

    def constant(e: jax.Array) -> Callable:
        return lambda R, **unused: e

    def nvt_invariant(state: Any, e: jax.Array) -> jax.Array:
        return md.nvt_nose_hoover_invariant(constant(e), state, kT) - missing * kT * state.chain.position[0]

    def npt_invariant(state: Any, e: jax.Array) -> jax.Array | float:
        return md.npt_nose_hoover_invariant(constant(e), state, pressure, kT_npt)

    def npt(energy_fn: Callable) -> tuple:
        return md.npt_nose_hoover(
            energy_fn, shift, dt, pressure, kT_npt, {"tau": config.barostat_time * FS}, {"tau": tau}
        )

    name = config.thermostat if config.ensemble == "nvt" else config.ensemble
    make, arguments, box_of, conserved = {
        "nve": (lambda f: md.nve(f, shift, dt), (kT,), None, lambda state, e: e + md.kinetic_energy(state)),
        "nose-hoover": (lambda f: md.nvt_nose_hoover(f, shift, dt, kT, tau=tau), (), None, nvt_invariant),
        "langevin": (lambda f: md.nvt_langevin(f, shift, dt, kT, gamma=1.0 / tau), (), None, lambda state, e: jnp.nan),
        "npt": (npt, (jnp.asarray(cell.T, config.dtype),), md.npt_box, npt_invariant),
    }[name]

    def init(R: jax.Array, key: jax.Array, momenta: jax.Array) -> Any:
        # without a potential: its forces are those of the first observation, one program less to compile
        zero = constant(jnp.zeros((), R.dtype))
        state = make(zero)[0](key, R, *arguments, mass=mass[:, None], momenta=momenta)
        return state.set(chain=state.chain.set(degrees_of_freedom=dof)) if name == "nose-hoover" else state

    apply = make(held)[1]

    def apply_held(state: Any, **others: Any) -> Any:
        state = apply(state, **others)
        return state.set(momentum=jnp.where(free, state.momentum, 0.0))  # Langevin's noise knows of no fixed atoms

    return jax.vmap(init) if config.replicas > 1 else init, apply if free.all() else apply_held, box_of, conserved


class Observed(NamedTuple):
    """What is logged and written of a state; energies without E0. With replicas, [B, ...] each."""

    temperature_K: Any
    potential_eV: Any
    kinetic_eV: Any
    total_eV: Any
    conserved_eV: Any
    pressure_GPa: Any  # NaN, as the volume, unless all directions are periodic
    volume_A3: Any
    positions: Any  # [N, 3] A
    momenta: Any  # [N, 3] sqrt(amu eV)
    forces: Any  # [N, 3] eV/A
    cell: Any  # [3, 3] A, rows are vectors


def observer(system: System) -> Callable[..., Observed]:
    """(state, neighbors, variables) -> `Observed` of one replica; `observe_all` maps it over several."""
    volume_known = bool(system.atoms.pbc.all())
    fixed = complete_cell(system.atoms.cell.array).T

    def observe(state: Any, neighbors: neighbours.NeighborList, variables: dict) -> Observed:
        R = state.position
        box = jnp.asarray(fixed, R.dtype) if system.box_of is None else system.box_of(state)

        def deformed(R: jax.Array, p: jax.Array) -> jax.Array:
            return system.energy_fn(R, neighbor=neighbors, box=box, perturbation=p, variables=variables)

        energy, gradient, virial = derivatives.gradient_and_virial(deformed, R)
        kinetic = 0.5 * (state.momentum**2 / state.mass).sum()
        volume = jnp.abs(jnp.linalg.det(box)) if volume_known else jnp.nan
        pressure = (2.0 * kinetic - jnp.trace(virial)) / (3.0 * volume) * units.GPA_PER_EV_A3
        return Observed(
            temperature_K=2.0 * kinetic / (system.dof * units.KB_EV_PER_K),
            potential_eV=energy,
            kinetic_eV=kinetic,
            total_eV=energy + kinetic,
            conserved_eV=system.conserved(state, energy),
            pressure_GPa=pressure,
            volume_A3=volume,
            positions=R,
            momenta=state.momentum,
            forces=-gradient,
            cell=box.T,
        )

    return observe


def observe_all(system: System) -> Callable:
    """`observer` compiled, for one structure or for replicas [B, N, 3]."""
    one = observer(system)
    each = jax.vmap(one, in_axes=(0, 0, None)) if system.start[0].ndim == 3 else one
    program = blocks.kept(each, ("md_observe", system.key))
    return lambda *given: Observed(*program(*given))


def frame_of(system: System, seen: Observed) -> ase.Atoms:
    """Atoms of one observation."""
    atoms = system.atoms.copy()
    if system.box_of is not None:
        atoms.set_cell(seen.cell)
    moved = seen.positions + system.home @ complete_cell(atoms.cell.array)
    atoms.positions = np.where(system.free, moved, atoms.positions)  # float32 rounds fixed ones too
    atoms.set_momenta(seen.momenta)
    return atoms
