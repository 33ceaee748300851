"""What does a GPU or TPU reach? Everything in one call of a few minutes, for machines that are lent by the minute.

    python bench/accelerator.py [--seconds 530] [--items correctness energy_forces ...] [--tiny] [--out FOLDER]

Correctness comes first (against float64 on the host's processor), then energy and forces from 64 atoms until memory is
full, molecular dynamics, Hessian-vector products, training steps and the peers that are installed. Rows are written as
they are measured: a run that is cut off keeps what it has. An item that fails is recorded and the next one begins; what
is left of the time is shared among the items still to come. `--tiny` tries all of it in seconds, on any device.
"""

import dataclasses
import gzip
import json
import os
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import _common as common
import ase
import jax
import jax.numpy as jnp
import jraph
import md as dynamics
import numpy as np
import peers
import throughput
import training
import tyro

from equijax import derivatives, graph, potential, testing
from equijax.finetune.options import LOSS
from equijax.forcefield import ForceField
from equijax.md import blocks

# Peaks of the data sheets (SXM): float32 outside the tensor cores, flop/s; memory, byte/s
PEAKS = {"H100": (67e12, 3.35e12), "H200": (67e12, 4.8e12)}
SIDES = (2, 3, 5, 10, 20, 30, 40, 50)  # conventional Si cells of 8 atoms a side: 64 to 1,000,000 atoms
LISTED = 10  # sides up to which the neighbour list is made; larger systems are copies of that crystal side by side
# Ways to compute: EQUIJAX_KERNELS (None: as it is), precision of float32 products (None: full)
WAYS = {"kernels": (None, None), "TF32": (None, "tensorfloat32"), "XLA": ("off", None)}
MEMORY_SHARE = 0.9  # of the device's memory that a program may need
TANGENTS = 16
PATIENCE_S = 60  # for one program to compile
STEPS = {"gpu": 500, "tpu": 500}  # of molecular dynamics in one compiled block; 10 on a CPU
TINY = {"channels": 4, "lmax": 0, "species": (11, 14, 17), "max_ell": 1, "num_interactions": 1, "correlation": (1,),
        "radial_mlp": (4,), "num_radial": 4}  # fmt: skip


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
    largest: int = 1_000_000
    """Atoms at most."""
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
        """The model specialised for these elements, and the plain one."""
        return {"specialised": self.ff.specialise(species), "plain": self.ff}

    @property
    def sides(self) -> tuple[int, ...]:
        """Sizes of the crystals."""
        if self.options.tiny:
            return (1, 2)
        return tuple(s for s in self.options.sides or SIDES if 8 * s**3 <= self.options.largest)

    @property
    def late(self) -> bool:
        """Whether the item's time is over."""
        return time.perf_counter() > self.deadline


def crystal_graph(ff: ForceField, side: int) -> jraph.GraphsTuple:
    """A batch of rattled silicon, float32; beyond `LISTED` the same crystal several times over, as one graph."""
    inner = min(side, LISTED)
    atoms = common.crystal("Si", inner)
    batch = graph.build([(atoms, graph.neighbour_list(atoms, ff.config.r_max))], ff.config)
    return tiled(potential.cast(batch, "float32"), side**3 // inner**3)


def tiled(batch: jraph.GraphsTuple, copies: int) -> jraph.GraphsTuple:
    """The atoms of a graph several times over, without a neighbour search of their own."""
    n, slots = len(batch.nodes.slot), len(batch.senders)

    def often(x: np.ndarray, step: int = 0) -> np.ndarray:
        offset = step * np.arange(copies, dtype=x.dtype).reshape(-1, *[1] * x.ndim) if step else np.zeros((), x.dtype)
        return (np.broadcast_to(x, (copies, *x.shape)) + offset).reshape(-1, *x.shape[1:])

    edges = batch.edges
    return batch._replace(
        nodes=batch.nodes._replace(positions=often(batch.nodes.positions), slot=often(batch.nodes.slot)),
        edges=edges._replace(
            vectors=often(edges.vectors),
            shifts=often(edges.shifts),
            mask=np.tile(edges.mask, copies),
            reverse=often(edges.reverse, slots),
        ),
        senders=often(batch.senders, n),
        receivers=often(batch.receivers, n),
        n_node=batch.n_node * copies,
        n_edge=batch.n_edge * copies,
    )


@contextmanager
def computing(way: str) -> Iterator[None]:
    """What is traced inside computes in this way."""
    kernels, products = WAYS[way]
    before = os.environ.get("EQUIJAX_KERNELS", "auto")
    os.environ["EQUIJAX_KERNELS"] = kernels or before
    try:
        with jax.default_matmul_precision(products):
            yield
    finally:
        os.environ["EQUIJAX_KERNELS"] = before


def lowered(function: Callable, *arguments) -> Callable[[], tuple[Callable, dict]]:
    """Trace now; what is returned compiles: a call on arguments that are on the device, what the compiler says."""
    arguments = jax.device_put(arguments)
    traced = jax.jit(function).lower(*arguments)

    def compiled() -> tuple[Callable, dict]:
        start = time.perf_counter()
        program = traced.compile()
        told = {"compile_s": time.perf_counter() - start}
        cost, memory = program.cost_analysis() or {}, program.memory_analysis()
        told["memory_gb"] = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 1e9
        told |= {f"xla_{k}": cost[v] / 1e9 for k, v in (("gflop", "flops"), ("gbyte", "bytes accessed")) if v in cost}
        return lambda: jax.block_until_ready(program(*arguments)), told

    return compiled


def energy_and_forces(ff: ForceField, batch: jraph.GraphsTuple) -> Callable:
    """`lowered` of energy, forces and stress, float32."""
    return lowered(partial(derivatives.energy_forces_stress, ff.config), ff.device_variables("float32"), batch)


def median_ms(call: Callable, repeats: int) -> float:
    """Of one call."""
    return common.timed({"call": call}, repeats)["call"]["median_ms"]


# The items. Each yields rows.


def correctness(bench: Bench) -> Iterator[dict]:
    """Largest differences from float64 by XLA on the host, in eV/atom and eV/A; under rotation and permutation too."""
    atoms = common.crystal("NaCl", 1 if bench.options.tiny else 2)
    with jax.default_device(jax.devices("cpu")[0]), computing("XLA"):
        exact = evaluator(bench.ff, "float64")(atoms)
    for model, ff in bench.forms("Na", "Cl").items():
        for dtype, way in (("float64", "kernels"), ("float32", "kernels"), ("float32", "XLA"), ("float32", "TF32")):
            evaluate = evaluator(ff, dtype)
            with computing(way):
                found = evaluate(atoms)
            row = {"model": model, "dtype": dtype, "way": way}
            row["energy_error"] = float(abs(found.energy - exact.energy)) / len(atoms)
            row["force_error"] = float(np.abs(found.forces - exact.forces).max())
            row["largest_force"] = float(np.abs(exact.forces).max())
            slack = 1e3 if way == "TF32" else 1e1
            try:
                testing.assert_equivariant(evaluate, atoms, {k: slack * v for k, v in testing.TOLERANCE[dtype].items()})
                row["equivariant"] = True
            except AssertionError as error:
                row |= {"equivariant": False, "error": " ".join(str(error).split())[:200]}
            yield row
            if bench.late:
                return


def evaluator(ff: ForceField, dtype: str) -> Callable[[ase.Atoms], potential.Evaluated]:
    """Energy and forces of a structure by a program of its own; E0 left out."""
    program = jax.jit(partial(derivatives.energy_forces_stress, ff.config))

    def evaluate(atoms: ase.Atoms) -> potential.Evaluated:
        batch = graph.build([(atoms, graph.neighbour_list(atoms, ff.config.r_max))], ff.config)
        with jax.enable_x64(dtype == "float64"):
            out = program(potential.cast(ff.variables, dtype), potential.cast(batch, dtype))
        return potential.Evaluated(
            *(np.asarray(x, np.float64) for x in (out.energy[0], out.node_energy, out.forces, out.stress[0]))
        )

    return evaluate


def rates(bench: Bench) -> Iterator[dict]:
    """What a large float32 product and a stream reach, beside the data sheets."""
    if not bench.options.tiny:
        yield {"device": jax.devices()[0].device_kind} | throughput.machine_bounds()
    for card, (flop, byte) in PEAKS.items():
        yield {"data_sheet": card, "flop_per_s": flop, "byte_per_s": byte}


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


def started(function: Callable) -> Future:
    """Its result, from a thread that nobody waits for at the end."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def bounds_ms(name: str, edges: int, atoms: int) -> dict[str, float]:
    """The longer of counted operations and least traffic over the cards' peaks, ms."""
    per_edge, per_atom = throughput.FLOPS["equijax" if name == "plain" else name]
    flop, byte = per_edge * edges + per_atom * atoms, throughput.BYTES[0] * edges + throughput.BYTES[1] * atoms
    return {f"bound_{card}_ms": 1e3 * max(flop / f, byte / b) for card, (f, b) in PEAKS.items()}


def molecular_dynamics(bench: Bench) -> Iterator[dict]:
    """NVE of silicon at 1 fs in one compiled block, list updates included."""
    steps = 4 if bench.options.tiny else STEPS.get(jax.default_backend(), 10)
    for repeat in (1,) if bench.options.tiny else (2, (2, 2, 4), 3, 5, 8):
        for name, ff in bench.forms("Si").items():
            atoms = common.crystal("Si", repeat)
            apply, state, neighbors, neighbor_fn, variables, _ = dynamics.simulation(ff, atoms, "float32")
            advance = blocks.compiled_block(apply, None)
            start = time.perf_counter()
            jax.block_until_ready(advance(state, neighbors, 1, {"variables": variables}))
            compile_s = time.perf_counter() - start
            seconds = []
            for _ in range(2):
                start = time.perf_counter()
                state, neighbors = jax.block_until_ready(advance(state, neighbors, steps, {"variables": variables}))
                seconds.append((time.perf_counter() - start) / steps)
            if bool(neighbors.did_buffer_overflow) or not bool(jnp.isfinite(state.position).all()):
                raise RuntimeError(f"{name}, {len(atoms)} atoms: the neighbour list overflowed or atoms were lost")
            yield {"model": name, "atoms": len(atoms), "ms_per_step": 1e3 * min(seconds),
                   "us_per_atom": 1e6 * min(seconds) / len(atoms), "ns_per_day": 1e-6 * 86400 / min(seconds),
                   "compile_s": compile_s}  # fmt: skip
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
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                call()
            (path,) = Path(folder).rglob("*.trace.json.gz")
            spent = kernel_times(json.loads(gzip.decompress(path.read_bytes())))
        for kernel, (us, count) in sorted(spent.items(), key=lambda x: -x[1][0])[:40]:
            yield {"model": name, "atoms": len(batch.nodes.slot), "us": us, "count": count, "kernel": kernel}


def kernel_times(trace: dict) -> dict[str, tuple[float, int]]:
    """Microseconds and calls of each kernel on the device, from a trace of the profiler."""
    named = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e.get("name") == "process_name"}
    spent: defaultdict = defaultdict(lambda: (0.0, 0))
    for e in trace["traceEvents"]:
        if e.get("ph") == "X" and "device" in named.get(e.get("pid"), "").lower():
            us, count = spent[e["name"]]
            spent[e["name"]] = us + e.get("dur", 0.0), count + 1
    return dict(spent)


# Each with its share of the time.
ITEMS: dict[str, tuple[float, Callable[[Bench], Iterator[dict]]]] = {
    "rates": (0.3, rates),
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
        except (
            Exception
        ) as error:  # whatever it is, the machine is lent for minutes: it is recorded, and the next begins
            traceback.print_exc()
            keep({"item": name, "error": _first_line(error)})
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """Microseconds per atom of energy and forces, and of a step of dynamics, against the number of atoms."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.5))
    for item, style in (("energy_forces", "o-"), ("molecular_dynamics", "s--"), ("installed_peers", "^:")):
        chosen = [r for r in rows if r["item"] == item and "us_per_atom" in r]
        for name in dict.fromkeys(r.get("model", r.get("peer")) for r in chosen):
            points = [(r["atoms"], r["us_per_atom"]) for r in chosen if name in (r.get("model"), r.get("peer"))]
            axes.loglog(*zip(*points, strict=True), style, label=f"{name}, {item.replace('_', ' ')}")
    axes.set(xlabel="atoms (silicon)", ylabel="microseconds per atom", title=jax.devices()[0].device_kind)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


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
