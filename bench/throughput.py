"""How does the cost grow with the number of atoms, and how far is it from what the machine can do?

    python bench/throughput.py [--largest 4096] [--repeats 3]

Published shape, float32, rattled silicon: energy and forces of the plain and the specialised model and of every
installed peer, Hessian-vector products, molecular dynamics, and weak scaling over devices (on a CPU: forced host
devices). Sizes grow until memory is nearly used up or `--largest`. The bounds drawn into the plot are the operations
counted in bench/README.md at the rate of a large float32 matrix product, and the least traffic at the rate of a stream,
both measured here. Batches and training steps have scripts of their own: batch.py, training.py.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import md as dynamics
import numpy as np
import peers
import tyro
from _common import RESULTS, crystal, peak_memory_gb, print_table, published_config, timed, write
from energy_forces import compiled
from jax.sharding import PartitionSpec

from equijax import derivatives, graph, hessian, potential, testing
from equijax.config import Compute

REPEATS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25)  # conventional Si cells of 8 atoms per side: 64 to 125,000 atoms
LARGEST = {"cpu": 4096}  # atoms by default; elsewhere memory decides
PEER_LARGEST = {"mace-torch": 216}  # seconds a call beyond
MEMORY_SHARE = 0.7  # of the machine's memory that a size may be expected to need
FIT_FROM = 200  # atoms from which the exponent is fitted: smaller systems pay for overhead
TANGENTS = 4
# Counted in README.md, float32 published shape, forward and backward: flop per directed edge, flop per atom
FLOPS = {"equijax": (0.5e6, 9e6), "specialised": (0.14e6, 9e6)}
# Least traffic: features of the sender read and their gradient written, per edge; some ten arrays [16, 128] per atom
BYTES = (4096, 0.1e6)


@dataclass(frozen=True)
class Options:
    """Throughput on the MACE-MP-0b3 shape."""

    largest: int = 0
    """Atoms at most; 0: 4,096 on a CPU, what memory holds elsewhere."""
    repeats: int = 3
    peers: tuple[str, ...] = tuple(peers.PEERS)
    """Timed where they are installed; Symmetrix-XL compiles for minutes on its first use."""
    dynamics: bool = True
    """Molecular dynamics and Hessian-vector products too."""
    weak: int = 0
    """Print the seconds of one call with this many devices and stop (used by the script itself)."""


def machine_bounds() -> dict[str, float]:
    """float32 flop/s of a matrix product, bytes/s of a + b -> c, the best of several."""
    n, m = (2048, 2**25) if jax.default_backend() == "cpu" else (8192, 2**28)
    square, a, b = jnp.ones((n, n)), jnp.ones(m), jnp.ones(m)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    add = jax.jit(lambda a, b: a + b)
    times = timed(
        {"gemm": lambda: jax.block_until_ready(product(square)), "stream": lambda: jax.block_until_ready(add(a, b))}, 7
    )
    return {
        "gemm_flop_per_s": 2e3 * n**3 / times["gemm"]["min_ms"],
        "stream_byte_per_s": 12e3 * m / times["stream"]["min_ms"],
    }


def memory_gb() -> float:
    """Memory of the machine; an accelerator reports its own limit."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def sizes(options: Options):
    """Cells a side, until the next one would need too much memory."""
    largest = options.largest or LARGEST.get(jax.default_backend(), 10**9)
    used = 0.0
    for repeat, following in zip(REPEATS, (*REPEATS[1:], None), strict=True):
        if 8 * repeat**3 > largest:
            return
        before = peak_memory_gb() if not used else used
        yield repeat
        used = peak_memory_gb()
        if following and before + (used - before) * (following / repeat) ** 3 > MEMORY_SHARE * memory_gb():
            print(f"stopped at {8 * repeat**3} atoms: {8 * following**3} might not fit into memory")
            return


def energy_rows(ff, options) -> tuple[list[dict], dict]:
    """One row a size: ms of each program; and the rates of the machine."""
    rows, bounds = [], machine_bounds()
    fast = ff.specialise(["Si"])
    for repeat in sizes(options):
        atoms = crystal("Si", repeat)
        n = len(atoms)
        named = [p for p in options.peers if n <= PEER_LARGEST.get(p, n)]
        plain, batch, _ = compiled(ff, atoms, "float32")
        calls = {"equijax": plain, "specialised": compiled(fast, atoms, "float32")[0]}
        times = timed(calls | peers.calls(ff.config, atoms, named), options.repeats)
        edges = int(batch.edges.mask.sum())
        row = {"atoms": n, "edges": edges} | {f"{k}_ms": t["median_ms"] for k, t in times.items()}
        for name, (per_edge, per_atom) in FLOPS.items():
            row[f"{name}_bound_ms"] = 1e3 * (per_edge * edges + per_atom * n) / bounds["gemm_flop_per_s"]
        row["stream_bound_ms"] = 1e3 * (BYTES[0] * edges + BYTES[1] * n) / bounds["stream_byte_per_s"]
        rows.append(row | {"us_per_atom": 1e3 * row["specialised_ms"] / n, "times": times})
        print_table(rows[-1:])
    return rows, bounds


def exponents(rows: list[dict]) -> dict[str, float]:
    """Slope of log time against log atoms, from `FIT_FROM` atoms on; of programs with three sizes or more."""
    out = {}
    for name in ("equijax", "specialised", *peers.PEERS):
        points = [(r["atoms"], r[f"{name}_ms"]) for r in rows if r["atoms"] >= FIT_FROM and f"{name}_ms" in r]
        if len(points) >= 3:
            out[name] = float(np.polyfit(*np.log(np.array(points).T), 1)[0])
    return out


def product_rows(ff, options) -> list[dict]:
    """Hessian-vector products in float32: microseconds per atom and tangent."""
    rows = []
    for repeat in (2, 3):
        atoms = crystal("Si", repeat)
        tangents = np.random.default_rng(0).normal(size=(TANGENTS, len(atoms), 3))
        forms = {"equijax": ff, "specialised": ff.specialise(["Si"])}
        calls: dict[str, Callable] = {
            name: partial(hessian.hvp, form, atoms, tangents=tangents, compute=Compute("float32"))
            for name, form in forms.items()
        }
        times = timed(calls, options.repeats)
        each = {
            f"{name}_us_per_atom_tangent": 1e3 * t["median_ms"] / TANGENTS / len(atoms) for name, t in times.items()
        }
        rows.append({"atoms": len(atoms), "tangents": TANGENTS} | each)
    return rows


def dynamics_rows(ff) -> list[dict]:
    """ns/day at 1 fs, float32, specialised and plain."""
    forms = {"equijax": ff, "specialised": ff.specialise(["Na", "Cl"])}
    return [{"model": name} | dynamics.measure(form, 2, "float32") for name, form in forms.items()]


def weak_call(ff, devices: int) -> float:
    """Seconds of energy and forces of 216 atoms on each device, all together."""
    atoms = crystal("Si", 3)
    batch = graph.build([(atoms, graph.neighbour_list(atoms, ff.config.r_max))], ff.config)
    stacked = jax.tree.map(lambda x: np.stack([x] * devices), potential.cast(batch, "float32"))

    def one(variables, batch):
        own = jax.tree.map(lambda x: x[0], batch)
        return jax.tree.map(lambda x: x[None], derivatives.energy_forces_stress(ff.config, variables, graph=own))

    along = PartitionSpec("devices")
    mesh = jax.make_mesh((devices,), ("devices",))
    step = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=(PartitionSpec(), along), out_specs=along, check_vma=False))
    variables = potential.cast(ff.variables, "float32")
    placed = jax.device_put(variables, jax.NamedSharding(mesh, PartitionSpec()))
    stacked = jax.device_put(stacked, jax.NamedSharding(mesh, along))
    return timed({"step": lambda: jax.block_until_ready(step(placed, stacked))}, 5)["step"]["median_ms"] / 1e3


def weak_rows() -> list[dict]:
    """One process a number of devices; forced host devices get one thread each, so that they do not share cores."""
    counts = (1, 2) if jax.default_backend() == "cpu" else (1, 2, 4, 8)
    rows = []
    for count in counts:
        if jax.default_backend() != "cpu" and count > jax.device_count():
            break
        flags = f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"
        command = [sys.executable, __file__, "--weak", str(count)]
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"XLA_FLAGS": flags}
        )
        rows.append({"devices": count, "atoms": 216 * count, "s": float(result.stdout.split()[-1])})
        rows[-1]["efficiency"] = rows[0]["s"] / rows[-1]["s"]
    return rows


def plot(rows: list[dict], slopes: dict, path) -> None:
    """Log-log: time against atoms, with the machine's bounds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.5))
    for name in ("mace-torch", "symmetrix-xl", "equijax", "specialised"):
        points = [(r["atoms"], r[f"{name}_ms"]) for r in rows if f"{name}_ms" in r]
        if points:
            label = f"{name}, exponent {slopes[name]:.2f}" if name in slopes else name
            axes.loglog(*zip(*points, strict=True), "o-", label=label)
    atoms = [r["atoms"] for r in rows]
    for key, label, style in (
        ("equijax_bound_ms", "counted flop at GEMM peak, plain", "k--"),
        ("specialised_bound_ms", "counted flop at GEMM peak, specialised", "k:"),
        ("stream_bound_ms", "least traffic at stream rate", "0.6"),
    ):
        axes.loglog(atoms, [r[key] for r in rows], style, lw=1, label=label)
    axes.set(xlabel="atoms (silicon)", ylabel="energy and forces, ms", title="MACE-MP-0b3 shape, float32")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure, print, store numbers and plot."""
    options = tyro.cli(Options)
    ff = testing.random_forcefield(published_config())
    if options.weak:
        print(weak_call(ff.specialise(["Si"]), options.weak))
        return
    rows, bounds = energy_rows(ff, options)
    slopes, more = exponents(rows), {}
    tables = {"weak_scaling": weak_rows}
    if options.dynamics:
        tables |= {"hessian_vector_products": lambda: product_rows(ff, options), "dynamics": lambda: dynamics_rows(ff)}
    print(f"exponents {slopes}; bounds {bounds}")
    for name, measure in tables.items():  # stored after each: the later ones take minutes
        path = write("throughput", rows, bounds=bounds, exponents=slopes, dtype="float32", **more)
        plot(rows, slopes, RESULTS / f"{path.stem}.png")
        more[name] = measure()
        print(name)
        print_table(more[name])
    write("throughput", rows, bounds=bounds, exponents=slopes, dtype="float32", **more)


if __name__ == "__main__":
    main()
