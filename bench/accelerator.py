"""What does a GPU or TPU reach? Everything in one call of a few minutes, for machines that are lent by the minute.

    python bench/accelerator.py [--seconds 530] [--items correctness energy_forces ...] [--tiny] [--out FOLDER]

Correctness comes first (against float64 on the host's processor), then energy and forces from 64 atoms until memory is
full, molecular dynamics, Hessian-vector products, training steps and the peers that are installed. Rows are written as
they are measured: a run that is cut off keeps what it has. An item that fails is recorded and the next one begins; what
is left of the time is shared among the items still to come. `--tiny` tries all of it in seconds, on any device.
"""

import dataclasses
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

import _common as common
import jax
import numpy as np
import peers
import throughput
import training
import tyro
from _accelerator import (
    PEAKS,
    WAYS,
    bounds_ms,
    computing,
    crystal_graph,
    energy_and_forces,
    evaluator,
    kernel_times,
    lowered,
    median_ms,
    neighbour_sums,
    plot,
    started,
    step_seconds,
)

from equijax import derivatives, testing
from equijax.finetune.defaults import LOSS
from equijax.forcefield import ForceField

SIDES = (2, 3, 5, 10, 20, 30, 40, 50)  # conventional Si cells of 8 atoms a side: 64 to 1,000,000 atoms
MEMORY_SHARE = 0.9  # of the device's memory that a program may need
TANGENTS = 16
PATIENCE_S = 60  # for one program to compile
STEPS = {"gpu": 500, "tpu": 500}  # of molecular dynamics in one compiled block; 10 on a CPU
TINY = {
    "channels": 4,
    "lmax": 0,
    "species": (11, 14, 17),
    "max_ell": 1,
    "num_interactions": 1,
    "correlation": (1,),
    "radial_mlp": (4,),
    "num_radial": 4,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that is measured on an accelerator."""

    seconds: float = 530
    """For all items together; no new row is begun after that."""
    items: tuple[str, ...] = ()
    """Some of the items, in this order; none: all of them."""
    sides: tuple[int, ...] = ()
    """Of the crystals, in conventional cells of 8 atoms; none: 2 to 50."""
    ways: tuple[str, ...] = ()
    """Some of `WAYS`, for energy and forces; none: all of them."""
    repeats: int = 7
    tiny: bool = False
    """A toy model and a few atoms."""
    profile: bool = False
    """Also which kernels take the time of a call (the item `profile`)."""
    out: Path = common.RESULTS


@dataclasses.dataclass
class Bench:
    """What the items share."""

    options: Options
    deadline: float = np.inf  # of the item in work, as `time.perf_counter`

    @cached_property
    def ff(self) -> ForceField:
        """Random weights of the published shape."""
        return testing.random_forcefield(
            testing.random_config(**TINY) if self.options.tiny else common.published_config()
        )

    def forms(self, *species: str) -> dict[str, ForceField]:
        """The model specialised for these elements, unless everything is tiny, and the plain one."""
        return ({} if self.options.tiny else {"specialised": self.ff.specialise(species)}) | {"plain": self.ff}

    @property
    def sides(self) -> tuple[int, ...]:
        """Sizes of the crystals."""
        return self.options.sides or ((1,) if self.options.tiny else SIDES)

    @property
    def late(self) -> bool:
        """Whether the item's time is over."""
        return time.perf_counter() > self.deadline


# The items. Each yields rows.


def rates(bench: Bench) -> Iterator[dict]:
    """What a large float32 product and a stream reach, beside the data sheets."""
    if not bench.options.tiny:
        yield {"device": jax.devices()[0].device_kind} | throughput.machine_bounds()
    for card, (flop, byte) in PEAKS.items():
        yield {"data_sheet": card, "flop_per_s": flop, "byte_per_s": byte}


def kernels(bench: Bench) -> Iterator[dict]:
    """The second interaction's neighbour sum alone, value and all gradients, by kernels and by XLA, float32."""
    n, k = (16, 3) if bench.options.tiny else (8192, 46)
    functions, x = neighbour_sums(n, k, bench.ff.config.channels)
    for way in ("kernels", "XLA"):
        for name, function in functions.items():
            with computing(way):
                call, told = lowered(function, *x)()
            ms = median_ms(call, bench.options.repeats)
            yield {"part": name, "way": way, "atoms": n, "ms": ms, "us_per_atom": 1e3 * ms / n} | told


def correctness(bench: Bench) -> Iterator[dict]:
    """Largest differences from float64 by XLA on the host, in eV/atom and eV/A; under rotation and permutation too."""
    atoms = common.crystal("NaCl", 1 if bench.options.tiny else 2)
    with jax.default_device(jax.devices("cpu")[0]), computing("XLA"):
        exact = evaluator(bench.ff, "float64")(atoms)
    cases = (("float64", "kernels"), ("float32", "kernels"), ("float32", "TF32"), ("float32", "XLA"))
    for model, ff in bench.forms("Na", "Cl").items():
        for dtype, way in cases[: 1 if bench.options.tiny else None]:
            evaluate = evaluator(ff, dtype)
            with computing(way):
                found = evaluate(atoms)
            row = {"model": model, "dtype": dtype, "way": way}
            row["energy_error"] = float(abs(found.energy - exact.energy)) / len(atoms)
            row["force_error"] = float(np.abs(found.forces - exact.forces).max())
            row["largest_force"] = float(np.abs(exact.forces).max())
            slack = 1e3 if way == "TF32" else 1e1
            try:
                testing.assert_equivariant(
                    evaluate, atoms, tolerance={k: slack * v for k, v in testing.TOLERANCE[dtype].items()}
                )
                row["equivariant"] = True
            except AssertionError as error:
                row |= {"equivariant": False, "error": " ".join(str(error).split())[:200]}
            yield row
            if bench.late:
                return


def energy_forces(bench: Bench) -> Iterator[dict]:
    """Energy, forces and stress of silicon, float32; both models compile beside one another."""
    forms, sides = bench.forms("Si"), bench.sides
    memory = {(model, way): 0.0 for model in forms for way in bench.options.ways or WAYS}
    for before, side in zip((1, *sides), sides, strict=False):
        for way in bench.options.ways or WAYS:
            fits = [m for m in forms if memory[m, way] * (side / before) ** 3 < MEMORY_SHARE * throughput.memory_gb()]
            rows, jobs = {}, {}
            for model in fits:
                batch = crystal_graph(forms[model], side)
                rows[model] = {"atoms": len(batch.nodes.slot), "edges": int(batch.edges.mask.sum())}
                with computing(way):
                    jobs[model] = started(energy_and_forces(forms[model], batch))
            for model, job in jobs.items():
                row = {"model": model, "way": way} | rows[model]
                try:
                    call, told = job.result(PATIENCE_S)
                    row["ms"] = median_ms(call, bench.options.repeats)
                except (jax.errors.JaxRuntimeError, TimeoutError) as error:
                    memory[model, way] = np.inf
                    yield row | {"error": _first_line(error)}
                    continue
                memory[model, way] = told["memory_gb"]
                row["us_per_atom"] = 1e3 * row["ms"] / row["atoms"]
                yield row | bounds_ms(model, row["edges"], row["atoms"]) | told
            if bench.late:
                return


def molecular_dynamics(bench: Bench) -> Iterator[dict]:
    """NVE of silicon at 1 fs in one compiled block, list updates included."""
    steps = 4 if bench.options.tiny else STEPS.get(jax.default_backend(), 10)
    for repeat in (1,) if bench.options.tiny else (2, (2, 2, 4), 3, 5, 8):
        for name, ff in bench.forms("Si").items():
            atoms = common.crystal("Si", repeat)
            compile_s, seconds = step_seconds(ff, atoms, steps)
            yield {
                "model": name,
                "atoms": len(atoms),
                "ms_per_step": 1e3 * seconds,
                "us_per_atom": 1e6 * seconds / len(atoms),
                "ns_per_day": 1e-6 * 86400 / seconds,
                "compile_s": compile_s,
            }
            if bench.late:
                return


def hessian_products(bench: Bench) -> Iterator[dict]:
    """Hessian-vector products, the gradient linearised once for `TANGENTS` tangents, float32."""
    for side in (1,) if bench.options.tiny else (2, 3):
        for name, ff in bench.forms("Si").items():
            batch = crystal_graph(ff, side)
            n = len(batch.nodes.slot)
            tangents = np.random.default_rng(0).normal(size=(n, TANGENTS, 3)).astype(np.float32)
            product = partial(derivatives.hessian_products, ff.config)
            call, told = lowered(product, ff.device_variables("float32"), batch, tangents)()
            ms = median_ms(call, bench.options.repeats)
            each = 1e3 * ms / TANGENTS / n
            yield {"model": name, "atoms": n, "tangents": TANGENTS, "ms": ms, "us_per_atom_tangent": each} | told
            if bench.late:
                return


def training_steps(bench: Bench) -> Iterator[dict]:
    """Adapters, then all parameters, on energies, forces and stresses of ten cells of 64 atoms."""
    cells, side = (2, 1) if bench.options.tiny else (10, 2)
    config, variables = bench.ff.config, bench.ff.variables
    images = [common.crystal("Si", side, seed=i) for i in range(cells)]
    batch = training.labelled(images, config, variables)
    for name, trained in training.strategies(config, variables, 2 if bench.options.tiny else 16).items():
        row, call = training.compiled(config, variables, batch=batch, losses=LOSS, trained=trained)
        yield {"step": name, "atoms": sum(map(len, images)), **row, "ms": median_ms(call, bench.options.repeats)}
        if bench.late:
            return


def installed_peers(bench: Bench) -> Iterator[dict]:
    """mace-torch on the same device and model shape."""
    for side in (1,) if bench.options.tiny else (2, 3, 5, 8):
        atoms = common.crystal("Si", side)
        calls = peers.calls(bench.ff.config, atoms, ("mace-torch",))
        if not calls:
            yield {"peer": "mace-torch", "error": "not installed"}
            return
        for name, call in calls.items():
            ms = median_ms(call, bench.options.repeats)
            yield {"peer": name, "atoms": len(atoms), "ms": ms, "us_per_atom": 1e3 * ms / len(atoms)}
        if bench.late:
            return


def profile(bench: Bench) -> Iterator[dict]:
    """Kernels of one call of energy and forces, longest first; needs `--profile`."""
    if not bench.options.profile:
        return
    for name, ff in bench.forms("Si").items():
        batch = crystal_graph(ff, bench.sides[min(1, len(bench.sides) - 1)])
        call, _ = energy_and_forces(ff, batch)()
        call()
        spent = kernel_times(call)
        for kernel, (us, count) in sorted(spent.items(), key=lambda x: -x[1][0])[:40]:
            yield {"model": name, "atoms": len(batch.nodes.slot), "us": us, "count": count, "kernel": kernel}


# Each with its share of the time.
ITEMS: dict[str, tuple[float, Callable[[Bench], Iterator[dict]]]] = {
    "rates": (0.3, rates),
    "kernels": (0.7, kernels),
    "correctness": (2, correctness),
    "energy_forces": (4, energy_forces),
    "molecular_dynamics": (3, molecular_dynamics),
    "hessian_products": (1.5, hessian_products),
    "training_steps": (1.5, training_steps),
    "installed_peers": (1, installed_peers),
    "profile": (1, profile),
}


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def measure(options: Options) -> list[dict]:
    """Run the items; after each row all of them are written."""
    bench, rows, began = Bench(options), [], time.perf_counter()
    if unknown := set(options.items) - set(ITEMS):
        raise SystemExit(f"items {sorted(unknown)}: expected some of {', '.join(ITEMS)}")
    names = options.items or tuple(ITEMS)
    options.out.mkdir(parents=True, exist_ok=True)

    def keep(row: dict) -> None:
        rows.append(row)
        print(row, flush=True)
        common.write("accelerator", rows, folder=options.out, seconds=time.perf_counter() - began, quiet=True)

    for i, name in enumerate(names):
        now = time.perf_counter()
        share = ITEMS[name][0] / sum(ITEMS[other][0] for other in names[i:])
        bench.deadline = now + share * (began + options.seconds - now)
        if now - began > options.seconds:
            keep({"item": name, "error": "no time left"})
            continue
        try:
            for row in ITEMS[name][1](bench):
                keep({"item": name} | row | {"at_s": round(time.perf_counter() - began, 1)})
        except Exception as error:  # the machine is lent for minutes: whatever it is is recorded, and the next begins
            traceback.print_exc()
            keep({"item": name, "error": _first_line(error)})
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure, store, print the tables, plot."""
    options = tyro.cli(Options, args=argv)
    rows = measure(options)
    for name in ITEMS:
        if chosen := [{k: v for k, v in r.items() if k != "item"} for r in rows if r["item"] == name]:
            print(f"\n{name}")
            common.print_table(chosen)
    if any("us_per_atom" in r for r in rows):
        plot(rows, options.out / f"accelerator-{jax.default_backend()}.png")


if __name__ == "__main__":
    main()
