"""Run a simulation and write its files."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from equijax import outputs
from equijax.adapters.committee import load_any as load
from equijax.errors import InputError
from equijax.md import bins, files, neighbours
from equijax.md.blocks import Lost, Stepper, run_blocks, settled
from equijax.md.options import MDConfig
from equijax.md.simulation import Observed, System, frame_of, inputs, observe_all, prepare

MAY_CHANGE = {"steps", "restart", "checkpoint_every"}  # options a continued run may change


@outputs.locked
def simulate(config: MDConfig) -> None:
    """Run or continue the simulation of `config`.

    Raises:
      FileExistsError, FileNotFoundError: the output folder holds a run and `restart` is off, or the reverse.
      InputError: a structure the model cannot describe, or other options than those of the run to be continued.
      Lost: the simulation broke down; the last good checkpoint is kept.
    """
    path = config.out / "checkpoint.npz"
    if path.exists() and not config.restart:
        raise FileExistsError(f"{path} exists: continue that run with --restart, or choose another --out")
    with jax.enable_x64(config.dtype == "float64"), warnings.catch_warnings():
        # jax_md asks for float64 sums, which JAX turns into float32 with a warning each unless x64 is on
        warnings.filterwarnings("ignore", "Explicitly requested dtype float64", UserWarning)
        ff = load(config.model, head=config.head)
        system = prepare(config, ff)
        begun = inputs(ff, system.atoms)
        saved = continued(config, system, begun=begun, path=path) if config.restart else None
        _run(config, system, begun=begun, saved=saved, path=path)


def continued(config: MDConfig, system: System, *, begun: dict[str, str], path: Path) -> tuple:
    """(step, state, neighbors, marks) of the checkpoint, bit for bit.

    Raises:
      FileNotFoundError: no checkpoint there.
      InputError: an option, the model or the structure differs from that of the run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: there is no run to continue; leave out --restart to start one")
    leaves, document = outputs.load_arrays(path)
    then, now = document["options"], _options(config)
    different = [k for k, v in then.items() if k not in MAY_CHANGE and v != now[k]]
    if different:
        raise InputError(
            f"{path} belongs to a run with {', '.join(f'{k} = {then[k]}' for k in different)}, not "
            f"{', '.join(str(now[k]) for k in different)}: options of a continued run must be the same"
        )
    stored = document.get("inputs", {})
    if changed := [name for name, value in begun.items() if stored.get(name) != value]:
        raise InputError(
            f"{path} belongs to a run of other contents of --model {config.model} or {config.structure}: "
            f"{', '.join(changed)} changed since it began"
        )
    state = jax.tree.structure(jax.eval_shape(system.init, *system.start))
    arrays = [jnp.asarray(x) for x in leaves]
    each_way, reach, capacity = document["grid"]
    grid = bins.Grid(tuple(each_way), tuple(reach), capacity)
    neighbors = neighbours.NeighborList(
        *arrays[state.num_leaves :],
        slots=document["slots"],
        near=document.get("near", document["slots"]),  # only models with dispersion read it
        grid=grid,
        update_fn=system.neighbor_fn.update,
    )
    return document["step"], jax.tree.unflatten(state, arrays[: state.num_leaves]), neighbors, document["marks"]


class Files:
    """Thermo log and trajectory of each replica: in the output folder, or in folders of their own for several."""

    def __init__(self, config: MDConfig, atoms: ase.Atoms, marks: list | None) -> None:
        several = config.replicas > 1
        folders = [config.out / f"replica{b:03d}" if several else config.out for b in range(config.replicas)]
        self.config, self.logs, self.frames = config, [], []
        self.step = 0  # last one written in this run
        for folder, mark in zip(folders, marks or [{}] * config.replicas, strict=True):
            folder.mkdir(exist_ok=True)
            self.logs.append(files.ThermoLog(folder / "thermo.csv", mark.get("log")))
            writer = files.WRITERS[config.trajectory]
            self.frames.append(writer(folder / f"trajectory.{config.trajectory}", atoms, mark.get("frames")))

    def write(self, step: int, replica: int, seen: Observed, system: System) -> None:
        """A row of the log, and a frame where one is due; energies get their E0 here, in float64."""
        time_ps = step * self.config.timestep * 1e-3
        shifted = ("potential_eV", "total_eV", "conserved_eV")
        row = {k: float(getattr(seen, k)) + system.e0 * (k in shifted) for k in files.SCALARS}
        self.logs[replica].write({"step": step, "time_ps": time_ps} | row)
        if step % self.config.trajectory_every == 0:
            frame = frame_of(system, seen)
            self.frames[replica].write(step, time_ps, frame, energy=row["potential_eV"], forces=seen.forces)

    def marks(self) -> list[dict]:
        """Where each file stands; what was written is on disk."""
        pairs = zip(self.logs, self.frames, strict=True)
        return [{"log": log.mark(), "frames": frames.mark()} for log, frames in pairs]

    def close(self) -> None:
        """Close all of them."""
        for file in (*self.logs, *self.frames):
            file.close()


def _run(config: MDConfig, system: System, *, begun: dict[str, str], saved: tuple | None, path: Path) -> None:
    if saved is None:
        neighbors = system.neighbor_fn.allocate(system.start[0])
        step, state, marks = 0, settled(system.init(*system.start)), None
    else:
        step, state, neighbors, marks = saved
    written = Files(config, system.atoms, marks)
    observe = observe_all(system)

    def record(step: int, state: Any, neighbors: neighbours.NeighborList, seen: Observed | None = None) -> float:
        seen = observe(state, neighbors, system.variables) if seen is None else seen
        seen = Observed(*(np.asarray(x, np.float64) for x in seen))
        if not np.isfinite(seen.potential_eV).all():
            raise Lost(written.step, "the potential energy is not finite: use a smaller time step or a relaxed start")
        for b in range(config.replicas):
            one = Observed(*(x[b] for x in seen)) if config.replicas > 1 else seen
            written.write(step, b, one, system)
        written.step = step
        if step % config.checkpoint_every == 0 or step == config.steps:
            document = {
                "step": step,
                "options": _options(config),
                "inputs": begun,
                "slots": neighbors.slots,
                "near": neighbors.near,
                "grid": neighbors.grid,
                "marks": written.marks(),
            }
            outputs.save_arrays(path, jax.tree.leaves((state, neighbors)), document=document)
        return float(seen.temperature_K.mean())

    try:
        if saved is None:
            seen = observe(state, neighbors, system.variables)
            state = state.set(force=jnp.where(system.free, seen.forces, 0.0))
            record(0, state, neighbors, seen)
        _advance(config, system, first=step, state=state, neighbors=neighbors, record=record)
    finally:
        written.close()


def _advance(
    config: MDConfig, system: System, *, first: int, state: Any, neighbors: neighbours.NeighborList, record: Callable
) -> None:
    with tqdm(total=config.steps, initial=first, unit="step", desc=config.ensemble) as progress:
        begin = None  # the first block compiles: it is left out of the speed
        stepper = Stepper(system.apply, system.neighbor_fn, system.box_of, {"variables": system.variables}, system.key)
        done = run_blocks(stepper, state, neighbors=neighbors, steps=config.steps, start=first, block=config.log_every)
        for step, state, neighbors in done:
            temperature = record(step, state, neighbors)
            now = time.perf_counter()
            if begin is None:
                begin = (step, now)
            else:
                ns_a_day = (step - begin[0]) * config.timestep * 1e-6 / (now - begin[1]) * 86400 * config.replicas
                progress.set_postfix_str(f"{ns_a_day:.3g} ns/day, {temperature:.0f} K")
            progress.update(step - progress.n)


def _options(config: MDConfig) -> dict:
    """Options as they come back from JSON."""
    values = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}
