"""Molecular dynamics with JAX-MD: `python -m equijax.md STRUCTURE --model CKPT --ensemble npt --temperature 300`.

For your own simulations: `neighbor_fn, energy_fn = equijax.md.energy_neighbor(displacement, box, ff, numbers)` goes
into jax_md.simulate unchanged, and `blocks` runs it in compiled blocks of steps; see `equijax.jaxmd`.

The output folder gets thermo.csv, trajectory.extxyz or .h5, and checkpoint.npz, from which `--restart` continues bit
for bit (same machine, same versions). Integrators are jax_md's: velocity Verlet, Nose-Hoover chains, BAOAB Langevin and
isotropic Martyna-Tobias-Klein NPT.
"""

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import ase
import ase.io
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from ase.geometry import complete_cell
from tqdm import tqdm

from equijax import graph, trajectory, units
from equijax import neighbors as nl
from equijax.forcefield import ForceField, load
from equijax.jaxmd import Lost as Lost
from equijax.jaxmd import blocks as blocks
from equijax.jaxmd import energy_neighbor as energy_neighbor
from equijax.jaxmd import potential

FS = ase.units.fs  # one femtosecond in sqrt(amu A^2 / eV)
MAY_CHANGE = {"steps", "restart", "checkpoint_every"}  # options a continued run may change


@dataclass(frozen=True)
class MDConfig:
    """Molecular dynamics of one structure."""

    structure: Annotated[Path, tyro.conf.Positional]
    """Any file ASE reads; its momenta are used when it has some."""
    model: Path
    """Model directory."""
    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    """NPT scales the cell isotropically."""
    temperature: float = 300.0
    """K. In NVE that of the initial momenta: a relaxed crystal settles at about half of it."""
    pressure: float = 0.0
    """GPa, NPT only."""
    steps: int = 1000
    """Number of the last step; a continued run goes on until there."""
    timestep: float = 1.0
    """fs."""
    thermostat: Literal["nose-hoover", "langevin"] = "nose-hoover"
    """NVT only."""
    thermostat_time: float = 100.0
    """fs: period of the Nose-Hoover chain, or inverse friction of Langevin."""
    barostat_time: float = 1000.0
    """fs."""
    repeat: tuple[int, int, int] = (1, 1, 1)
    """Repeat the cell along its vectors."""
    out: Path = Path("md_output")
    """Output folder."""
    trajectory: Literal["extxyz", "h5"] = "extxyz"
    """File format; h5 follows H5MD."""
    log_every: int = 100
    """Steps between rows of the thermo log; also the length of a compiled block."""
    trajectory_every: int = 100
    """Steps between frames, a multiple of log_every."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, a multiple of log_every; one is always written at the end."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of everything: float64 for strict energy conservation."""
    fast: bool = False
    """Specialise the model for the structure's elements: several times faster, errors printed at the start."""
    skin: float = 0.5
    """A beyond the cutoff that a neighbour list covers."""
    head: str | None = None
    """Head of a model that has several."""
    seed: int = 0
    """Of initial momenta and of Langevin noise."""
    restart: bool = False
    """Continue from the output folder's checkpoint."""

    def __post_init__(self):
        positive = ("timestep", "steps", "thermostat_time", "barostat_time", "skin", "log_every")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a positive number")
        if not self.temperature >= 0 or (self.ensemble != "nve" and self.temperature == 0):
            raise ValueError(f"temperature = {self.temperature} K: expected a positive number")
        for name in ("trajectory_every", "checkpoint_every"):
            if getattr(self, name) < 1 or getattr(self, name) % self.log_every:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a multiple of log_every = {self.log_every}")


class System(NamedTuple):
    """A simulation ready to run: potential, integrator, and what is needed to observe it."""

    atoms: ase.Atoms
    variables: dict
    energy_fn: Callable
    neighbor_fn: nl.NeighborFns
    init: Callable  # position -> state, its forces still to be set
    apply: Callable
    box_of: Callable | None
    conserved: Callable  # (state, potential energy) -> the invariant of the equations of motion
    dof: int  # degrees of freedom behind the temperature
    e0: float  # eV, isolated-atom energies


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all steps were done, 1 when the simulation broke down."""
    config = tyro.cli(MDConfig, args=argv, prog="equijax md")
    try:
        simulate(config)
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        raise SystemExit(f"equijax md: {error}") from error
    except Lost as error:
        print(f"equijax md: {error}. The last good checkpoint is {config.out / 'checkpoint.npz'}.", file=sys.stderr)
        return 1
    return 0


def simulate(config: MDConfig) -> None:
    """Run or continue the simulation of `config`.

    Raises:
      FileExistsError, FileNotFoundError: the output folder holds a run and `restart` is off, or the reverse.
      ValueError: a structure the model cannot describe, or other options than those of the run to be continued.
      Lost: the simulation broke down; the last good checkpoint is kept.
    """
    path = config.out / "checkpoint.npz"
    if path.exists() and not config.restart:
        raise FileExistsError(f"{path} exists: continue that run with --restart, or choose another --out")
    with jax.enable_x64(config.dtype == "float64"), warnings.catch_warnings():
        # jax_md asks for float64 sums, which JAX turns into float32 with a warning each unless x64 is on
        warnings.filterwarnings("ignore", "Explicitly requested dtype float64", UserWarning)
        system = prepare(config, load(config.model))
        saved = continued(config, system, path) if config.restart else None
        config.out.mkdir(parents=True, exist_ok=True)
        _run(config, system, saved, path)


def prepare(config: MDConfig, ff: ForceField) -> System:
    """Structure, potential and integrator.

    Raises:
      ValueError: see `equijax.graph.check_atoms`; NPT of a structure that is not periodic in all directions.
    """
    atoms = ase.io.read(config.structure, index=-1).repeat(config.repeat)
    graph.check_atoms(atoms, ff.config, str(config.structure))
    if config.ensemble == "npt" and not atoms.pbc.all():
        raise ValueError(f"{config.structure} is periodic along {atoms.pbc.tolist()}: npt needs all three directions")
    ff = ff.specialise(atoms.numbers) if config.fast else ff
    cell = complete_cell(atoms.cell.array)
    space = nl.Space(False, tuple(bool(p) for p in atoms.pbc), ff.config.r_max, config.skin)
    neighbor_fn, energy_fn = potential(cell.T, space, ff, atoms.numbers, config.head)
    rows = [ff.config.species.index(z) for z in atoms.numbers]
    e0 = np.asarray(ff.variables["constants"]["atomic_energies"], np.float64)[ff.head_index(config.head), rows].sum()
    stochastic = config.ensemble == "nvt" and config.thermostat == "langevin"
    dof = 3 * len(atoms) if stochastic or len(atoms) == 1 else 3 * len(atoms) - 3
    if not atoms.get_momenta().any():
        atoms.set_momenta(thermal_momenta(atoms, config.temperature, config.seed))
    init, apply, box_of, conserved = integrator(config, atoms, cell, energy_fn, dof)
    return System(
        atoms, ff.device_variables(config.dtype), energy_fn, neighbor_fn, init, apply, box_of, conserved, dof, e0
    )


def integrator(config: MDConfig, atoms: ase.Atoms, cell: np.ndarray, energy_fn: Callable, dof: int) -> tuple:
    """(init, apply, box_of, conserved) of the ensemble.

    Positions are real and never wrapped: jax_md's NPT step shifts them by r (e^x - 1), which is the right scaling of
    real coordinates and not of fractional ones. Its thermostats count 3N degrees of freedom; where the centre of mass
    is at rest they are given the temperature that leaves the remaining 3N - 3 at the one asked for.
    """
    from jax_md import simulate as md  # an optional dependency: `pip install equijax[md]`

    dt, mass = config.timestep * FS, jnp.asarray(atoms.get_masses(), config.dtype)
    momenta = jnp.asarray(atoms.get_momenta(), config.dtype)
    kT = units.KB_EV_PER_K * config.temperature * dof / (3 * len(atoms))
    pressure = config.pressure / units.GPA_PER_EV_A3
    key = jax.random.PRNGKey(config.seed)
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

    def init(R):
        # without a potential: its forces are those of the first observation, one program less to compile
        return make(constant(jnp.zeros((), R.dtype)))[0](key, R, *arguments, mass=mass[:, None], momenta=momenta)

    return init, make(energy_fn)[1], box_of, conserved


def thermal_momenta(atoms: ase.Atoms, temperature: float, seed: int) -> np.ndarray:
    """Maxwell-Boltzmann momenta [N, 3] in sqrt(amu eV), centre of mass at rest, scaled to the temperature (K)."""
    mass = atoms.get_masses()[:, None]
    p = np.random.default_rng(seed).normal(size=(len(atoms), 3)) * np.sqrt(mass)
    if len(atoms) == 1:
        return p * np.sqrt(3 * units.KB_EV_PER_K * temperature / (p**2 / mass).sum())
    p -= mass * p.sum(0) / mass.sum()
    return p * np.sqrt((3 * len(atoms) - 3) * units.KB_EV_PER_K * temperature / (p**2 / mass).sum())


def continued(config: MDConfig, system: System, path: Path) -> tuple:
    """(step, state, neighbors, marks) of the checkpoint, bit for bit.

    Raises:
      ValueError: an option differs from that of the run.
    """
    leaves, document = trajectory.load_checkpoint(path)
    now = _options(config)
    different = [k for k, v in document["options"].items() if k not in MAY_CHANGE and v != now[k]]
    if different:
        raise ValueError(
            f"{path} belongs to a run with " + ", ".join(f"{k} = {document['options'][k]}" for k in different)
            + ", not " + ", ".join(str(now[k]) for k in different) + ": options of a continued run must be the same"
        )  # fmt: skip
    state = jax.tree.structure(jax.eval_shape(system.init, jnp.asarray(system.atoms.positions, config.dtype)))
    arrays = [jnp.asarray(x) for x in leaves]
    grid = nl.Grid(*(tuple(x) if isinstance(x, list) else x for x in document["grid"]))
    neighbors = nl.NeighborList(
        *arrays[state.num_leaves :], slots=document["slots"], grid=grid, update_fn=system.neighbor_fn.update
    )  # fmt: skip
    return document["step"], jax.tree.unflatten(state, arrays[: state.num_leaves]), neighbors, document["marks"]


def _run(config: MDConfig, system: System, saved, path: Path) -> None:
    if saved is None:
        position = jnp.asarray(system.atoms.positions, config.dtype)
        neighbors = system.neighbor_fn.allocate(position)
        step, state, marks = 0, system.init(position), {}
    else:
        step, state, neighbors, marks = saved
    name = config.out / f"trajectory.{config.trajectory}"
    log = trajectory.ThermoLog(config.out / "thermo.csv", marks.get("log"))
    frames = trajectory.WRITERS[config.trajectory](name, system.atoms, marks.get("frames"))
    observe = jax.jit(observer(system))

    def record(step, state, neighbors, seen=None):
        seen = observe(state, neighbors, system.variables) if seen is None else seen
        seen = {k: np.asarray(v, np.float64) for k, v in seen.items()}
        if not np.isfinite(seen["potential_eV"]):
            raise Lost(step, "the potential energy is not finite")
        time_ps = step * config.timestep * 1e-3
        row = {k: float(seen[k]) + system.e0 * (k in ("potential_eV", "total_eV", "conserved_eV")) for k in _SCALARS}
        log.write({"step": step, "time_ps": time_ps} | row)
        if step % config.trajectory_every == 0:
            atoms = frame_of(system, seen)
            frames.write(step, time_ps, atoms, row["potential_eV"], seen["forces"])
        if step % config.checkpoint_every == 0 or step == config.steps:
            document = {"step": step, "options": _options(config), "slots": neighbors.slots, "grid": neighbors.grid,
                        "marks": {"log": log.mark(), "frames": frames.mark()}}  # fmt: skip
            trajectory.save_checkpoint(path, jax.tree.leaves((state, neighbors)), document)
        return row

    try:
        if saved is None:
            seen = observe(state, neighbors, system.variables)
            state = state.set(force=seen["forces"])
            record(0, state, neighbors, seen)
        _advance(config, system, step, state, neighbors, record)
    finally:
        log.close()
        frames.close()


def _advance(config, system, first, state, neighbors, record) -> None:
    with tqdm(total=config.steps, initial=first, unit="step", desc=config.ensemble) as progress:
        begin = None  # the first block compiles: it is left out of the speed
        done = blocks(
            system.apply, state, neighbors, system.neighbor_fn, start=first, steps=config.steps,
            block=config.log_every, box_of=system.box_of, variables=system.variables,
        )  # fmt: skip
        for step, state, neighbors in done:
            row = record(step, state, neighbors)
            now = time.perf_counter()
            if begin is None:
                begin = (step, now)
            else:
                ns_a_day = (step - begin[0]) * config.timestep * 1e-6 / (now - begin[1]) * 86400
                progress.set_postfix_str(f"{ns_a_day:.3g} ns/day, {row['temperature_K']:.0f} K")
            progress.update(step - progress.n)


_SCALARS = trajectory.COLUMNS[2:]


def observer(system: System) -> Callable:
    """(state, neighbors, variables) -> what is logged (energies without E0), positions, momenta, forces and cell."""
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


def frame_of(system: System, seen: dict) -> ase.Atoms:
    """Atoms of one observation."""
    atoms = system.atoms.copy()
    if atoms.pbc.any():
        atoms.set_cell(seen["cell"])
    atoms.positions = seen["positions"]
    atoms.set_momenta(seen["momenta"])
    return atoms


def _options(config: MDConfig) -> dict:
    """Options as they come back from JSON."""
    values = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


if __name__ == "__main__":
    sys.exit(main())
