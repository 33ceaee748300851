"""Molecular dynamics with JAX-MD: `python -m equijax.md STRUCTURE --model CKPT --ensemble npt --temperature 300`.

For your own simulations: `neighbor_fn, energy_fn = equijax.md.energy_neighbor(displacement, box, ff, numbers)` goes
into jax_md.simulate unchanged, and `blocks` runs it in compiled blocks of steps; see `equijax.jaxmd`.

The output folder gets thermo.csv, trajectory.extxyz or .h5, and checkpoint.npz, from which `--restart` continues bit
for bit (same machine, same versions). Several replicas have one checkpoint, and folders replica000, ... for the rest.
"""

import dataclasses
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import ase
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from equijax import files, runner, trajectory
from equijax import neighbors as nl
from equijax.forcefield import load
from equijax.jaxmd import Lost as Lost
from equijax.jaxmd import blocks as blocks
from equijax.jaxmd import energy_neighbor as energy_neighbor
from equijax.momenta import thermal_momenta as thermal_momenta
from equijax.simulation import FS as FS
from equijax.simulation import System, frame_of, inputs, observe_all, prepare

MAY_CHANGE = {"steps", "restart", "checkpoint_every"}  # options a continued run may change


@dataclass(frozen=True)
class MDConfig:
    """Molecular dynamics of one structure."""

    structure: Annotated[Path, tyro.conf.Positional]
    """Any file ASE reads. Its momenta, less their drift, serve one replica of one cell; its fixed atoms stay."""
    model: Path
    """Model directory."""
    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    """NPT scales the cell isotropically."""
    temperature: float = 300.0
    """K. In NVE that of the momenta drawn: a relaxed crystal settles at about half of it."""
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
    replicas: int = 1
    """Copies with momenta and noise of their own, advanced in one program; each writes its own files."""
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
        positive = ("timestep", "steps", "thermostat_time", "barostat_time", "skin", "log_every", "replicas")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a positive number")
        if not self.temperature >= 0 or (self.ensemble != "nve" and self.temperature == 0):
            raise ValueError(f"temperature = {self.temperature} K: expected a positive number")
        for name in ("trajectory_every", "checkpoint_every"):
            if getattr(self, name) < 1 or getattr(self, name) % self.log_every:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a multiple of log_every = {self.log_every}")


@runner.program("equijax md")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all steps were done, 1 when the simulation broke down."""
    config = runner.options(MDConfig, argv, "equijax md")
    try:
        simulate(config)
    except Lost as error:
        print(f"equijax md: {error}. The last good checkpoint is {config.out / 'checkpoint.npz'}.", file=sys.stderr)
        return 1
    return 0


@files.locked
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
        ff = load(config.model)
        system = prepare(config, ff)
        begun = inputs(ff, system.atoms)
        saved = continued(config, system, begun, path) if config.restart else None
        _run(config, system, begun, saved, path)


def continued(config: MDConfig, system: System, begun: dict[str, str], path: Path) -> tuple:
    """(step, state, neighbors, marks) of the checkpoint, bit for bit.

    Raises:
      FileNotFoundError: no checkpoint there.
      ValueError: an option, the model or the structure differs from that of the run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: there is no run to continue; leave out --restart to start one")
    leaves, document = files.load_arrays(path)
    now = _options(config)
    different = [k for k, v in document["options"].items() if k not in MAY_CHANGE and v != now[k]]
    if different:
        raise ValueError(
            f"{path} belongs to a run with " + ", ".join(f"{k} = {document['options'][k]}" for k in different)
            + ", not " + ", ".join(str(now[k]) for k in different) + ": options of a continued run must be the same"
        )  # fmt: skip
    stored = document.get("inputs", {})
    if changed := [name for name, value in begun.items() if stored.get(name) != value]:
        raise ValueError(
            f"{path} belongs to a run of other contents of --model {config.model} or {config.structure}: "
            f"{', '.join(changed)} changed since it began"
        )
    state = jax.tree.structure(jax.eval_shape(system.init, *system.start))
    arrays = [jnp.asarray(x) for x in leaves]
    grid = nl.Grid(*(tuple(x) if isinstance(x, list) else x for x in document["grid"]))
    neighbors = nl.NeighborList(
        *arrays[state.num_leaves :], slots=document["slots"], grid=grid, update_fn=system.neighbor_fn.update
    )  # fmt: skip
    return document["step"], jax.tree.unflatten(state, arrays[: state.num_leaves]), neighbors, document["marks"]


class Files:
    """Thermo log and trajectory of each replica: in the output folder, or in folders of their own for several."""

    def __init__(self, config: MDConfig, atoms: ase.Atoms, marks: list | None):
        several = config.replicas > 1
        folders = [config.out / f"replica{b:03d}" if several else config.out for b in range(config.replicas)]
        self.logs, self.frames = [], []
        self.step = 0  # last one written in this run
        for folder, mark in zip(folders, marks or [{}] * config.replicas, strict=True):
            folder.mkdir(exist_ok=True)
            self.logs.append(trajectory.ThermoLog(folder / "thermo.csv", mark.get("log")))
            writer = trajectory.WRITERS[config.trajectory]
            self.frames.append(writer(folder / f"trajectory.{config.trajectory}", atoms, mark.get("frames")))

    def marks(self) -> list[dict]:
        """Where each file stands; what was written is on disk."""
        pairs = zip(self.logs, self.frames, strict=True)
        return [{"log": log.mark(), "frames": frames.mark()} for log, frames in pairs]

    def close(self) -> None:
        """Close all of them."""
        for file in (*self.logs, *self.frames):
            file.close()


def _run(config: MDConfig, system: System, begun: dict[str, str], saved: tuple | None, path: Path) -> None:
    if saved is None:
        neighbors = system.neighbor_fn.allocate(system.start[0])
        step, state, marks = 0, system.init(*system.start), None
    else:
        step, state, neighbors, marks = saved
    written = Files(config, system.atoms, marks)
    observe = observe_all(system)

    def record(step, state, neighbors, seen=None):
        seen = observe(state, neighbors, system.variables) if seen is None else seen
        seen = {k: np.asarray(v, np.float64) for k, v in seen.items()}
        if not np.isfinite(seen["potential_eV"]).all():
            raise Lost(written.step, "the potential energy is not finite: use a smaller time step or a relaxed start")
        for b in range(config.replicas):
            one = {k: v[b] for k, v in seen.items()} if config.replicas > 1 else seen
            _write(config, system, step, one, written.logs[b], written.frames[b])
        written.step = step
        if step % config.checkpoint_every == 0 or step == config.steps:
            document = {"step": step, "options": _options(config), "inputs": begun, "slots": neighbors.slots,
                        "grid": neighbors.grid, "marks": written.marks()}  # fmt: skip
            files.save_arrays(path, jax.tree.leaves((state, neighbors)), document)
        return float(seen["temperature_K"].mean())

    try:
        if saved is None:
            seen = observe(state, neighbors, system.variables)
            state = state.set(force=jnp.where(system.free, seen["forces"], 0.0))
            record(0, state, neighbors, seen)
        _advance(config, system, step, state, neighbors, record)
    finally:
        written.close()


def _write(config: MDConfig, system: System, step: int, seen: dict, log, frames) -> None:
    """A row of the log, and a frame where one is due; energies get their E0 here, in float64."""
    time_ps = step * config.timestep * 1e-3
    row = {k: float(seen[k]) + system.e0 * (k in ("potential_eV", "total_eV", "conserved_eV")) for k in _SCALARS}
    log.write({"step": step, "time_ps": time_ps} | row)
    if step % config.trajectory_every == 0:
        frames.write(step, time_ps, frame_of(system, seen), row["potential_eV"], seen["forces"])


def _advance(config, system, first, state, neighbors, record) -> None:
    with tqdm(total=config.steps, initial=first, unit="step", desc=config.ensemble) as progress:
        begin = None  # the first block compiles: it is left out of the speed
        done = blocks(
            system.apply, state, neighbors, system.neighbor_fn, start=first, steps=config.steps,
            block=config.log_every, box_of=system.box_of, variables=system.variables,
        )  # fmt: skip
        for step, state, neighbors in done:
            temperature = record(step, state, neighbors)
            now = time.perf_counter()
            if begin is None:
                begin = (step, now)
            else:
                ns_a_day = (step - begin[0]) * config.timestep * 1e-6 / (now - begin[1]) * 86400 * config.replicas
                progress.set_postfix_str(f"{ns_a_day:.3g} ns/day, {temperature:.0f} K")
            progress.update(step - progress.n)


_SCALARS = trajectory.COLUMNS[2:]


def _options(config: MDConfig) -> dict:
    """Options as they come back from JSON."""
    values = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


if __name__ == "__main__":
    sys.exit(main())
