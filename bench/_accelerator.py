"""Parts of accelerator.py: graphs of any size, ways to compute, compiling aside, bounds, what is timed, the plot."""

import gzip
import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import _common as common
import ase
import jax
import jax.numpy as jnp
import jraph
import md as dynamics
import numpy as np
import throughput

from equijax import couplings, derivatives, graph, potential
from equijax.forcefield import ForceField
from equijax.graph.fields import Topology
from equijax.md import blocks
from equijax.nn import convolution

# Peaks of the data sheets (SXM): float32 outside the tensor cores, flop/s; memory, byte/s
PEAKS = {"H100": (67e12, 3.35e12), "H200": (67e12, 4.8e12)}
LISTED = 10  # sides up to which the neighbour list is made; larger systems are copies of that crystal side by side
# Ways to compute: EQUIJAX_KERNELS (None: as it is), precision of float32 products (None: full)
WAYS = {"kernels": (None, None), "TF32": (None, "tensorfloat32"), "XLA": ("off", None)}


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


def median_ms(call: Callable, repeats: int) -> float:
    """Of one call."""
    return common.timed({"call": call}, repeats)["call"]["median_ms"]


def energy_and_forces(ff: ForceField, batch: jraph.GraphsTuple) -> Callable:
    """`lowered` of energy, forces and stress, float32."""

    def function(v, g):
        return derivatives.energy_forces_stress(ff.config, v, graph=g)

    return lowered(function, ff.device_variables("float32"), batch)


def evaluator(ff: ForceField, dtype: str) -> Callable[[ase.Atoms], potential.Evaluated]:
    """Energy and forces of a structure by a program of its own; E0 left out."""
    program = jax.jit(lambda v, g: derivatives.energy_forces_stress(ff.config, v, graph=g))

    def evaluate(atoms: ase.Atoms) -> potential.Evaluated:
        batch = graph.build([(atoms, graph.neighbour_list(atoms, ff.config.r_max))], ff.config)
        with jax.enable_x64(dtype == "float64"):
            out = program(potential.cast(ff.variables, dtype), potential.cast(batch, dtype))
        return potential.Evaluated(
            *(np.asarray(x, np.float64) for x in (out.energy[0], out.node_energy, out.forces, out.stress[0]))
        )

    return evaluate


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


def neighbour_sums(n: int, k: int, channels: int) -> tuple[dict[str, Callable], list[np.ndarray]]:
    """Value and gradients of the published second interaction's neighbour sum; random features, radial functions, Y.

    n atoms, a power of two above k, have k neighbours each.
    """
    paths, rng = couplings.conv_paths(1, 3, out_lmax=3), np.random.default_rng(0)
    partner = np.arange(n)[:, None] ^ (1 + np.arange(k))  # a symmetric list: slot k of either is the pair's
    senders, reverse = (x.ravel().astype(np.int32) for x in (partner, partner * k + np.arange(k)))
    zeros = np.zeros(n, np.int32)
    topology = Topology(zeros, zeros[:1], zeros, senders, reverse)
    shapes = ((n, 1, channels), (n, 3, channels), (n, k, len(paths), channels), (n, k, 16))
    x = [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    def value(h0, h1, R, Y):
        return convolution.neighbour_sums([h0, h1], R, Y=Y, paths=paths, graph=topology)

    def gradients(*x):
        out, pull = jax.vjp(value, *x)
        return pull(out)

    return {"value": value, "value and gradients": gradients}, x


COLD_K = 3.0  # 0.5 A in 1 ps for silicon


def step_seconds(ff: ForceField, atoms: ase.Atoms, steps: int) -> tuple[float, float]:
    """Seconds to compile a block of NVE steps at 1 fs, and of one step of it, list updates included; float32.

    Raises:
      RuntimeError: the neighbour list overflowed, or atoms are lost.
    """
    # random weights hold no crystal together: atoms that fly freely must stay near their sites
    apply, state, neighbors, neighbor_fn, variables, _ = dynamics.simulation(ff, atoms, "float32", temperature=COLD_K)
    advance, given = blocks.compiled_block(blocks.Stepper(apply, neighbor_fn)), {"variables": variables}
    start = time.perf_counter()
    jax.block_until_ready(advance(state, neighbors, 1, given))
    compile_s, seconds = time.perf_counter() - start, []
    for _ in range(2):
        start = time.perf_counter()
        state, neighbors = jax.block_until_ready(advance(state, neighbors, steps, given))
        seconds.append((time.perf_counter() - start) / steps)
    if bool(neighbors.did_buffer_overflow) or not bool(jnp.isfinite(state.position).all()):
        raise RuntimeError(f"{len(atoms)} atoms: the neighbour list overflowed or atoms were lost")
    return compile_s, min(seconds)


def bounds_ms(name: str, edges: int, atoms: int) -> dict[str, float]:
    """The longer of counted operations and least traffic over the cards' peaks, ms."""
    per_edge, per_atom = throughput.FLOPS["equijax" if name == "plain" else name]
    flop, byte = per_edge * edges + per_atom * atoms, throughput.BYTES[0] * edges + throughput.BYTES[1] * atoms
    return {f"bound_{card}_ms": 1e3 * max(flop / f, byte / b) for card, (f, b) in PEAKS.items()}


def kernel_times(call: Callable) -> dict[str, tuple[float, int]]:
    """Microseconds and calls of each kernel on the device during one call, by JAX's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        trace = json.loads(gzip.decompress(path.read_bytes()))
    named = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e.get("name") == "process_name"}
    spent: defaultdict = defaultdict(lambda: (0.0, 0))
    for e in trace["traceEvents"]:
        if e.get("ph") == "X" and "device" in named.get(e.get("pid"), "").lower():
            us, count = spent[e["name"]]
            spent[e["name"]] = us + e.get("dur", 0.0), count + 1
    return dict(spent)


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
