"""How long do energy and forces take on the MACE-MP-0b3 shape, and how many times faster is that than the peers?

The plain model (weights are inputs of the compiled program, the trainable form) and the one specialised for the
structure's elements. On a CPU: Si, Cu and NaCl of 64-216 and 1,000 atoms, the installed peers timed in the same run,
compile times, cold starts in processes of their own, peak memory. On a GPU or TPU: 64 to 30,000 atoms.

    python bench/energy_forces.py [--repeats 15] [--dtype float32] [--largest 30000]
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
import peers
import tyro
from _common import crystal, peak_memory_gb, print_table, published_config, timed, write

from equijax import derivatives, graph, potential, testing

# 64, 108 and 216 atoms, then 1,000 of each
CPU_CASES = (("Si", 2), ("Cu", 3), ("NaCl", 3), ("Si", 5), ("Cu", (5, 5, 10)), ("NaCl", 5))
LARGE = 1000  # atoms from which mace-torch, at seconds a call, is not timed
MEMORY_CASE = ("Si", 5)  # 1,000 atoms
ACCELERATOR_REPEATS = (2, 3, 4, 5, 7, 10, 12, 15)  # conventional Si cells of 8 atoms per side


@dataclass(frozen=True)
class Options:
    """Energy and forces on the MACE-MP-0b3 shape."""

    repeats: int = 15  # timed calls of each program
    dtype: str = "float32"
    largest: int = 30000  # atoms, on an accelerator
    alone: Literal["", "cold", "peer_cold", "memory"] = ""  # print one number and stop (used by the script itself)
    skip_peer_cold: bool = False  # leave out the peer's cold start, minutes of C++ compilation


def compiled(ff, atoms, dtype):
    """A call that evaluates energy, forces and stress of `atoms` on the device, its graph, and the cold start in s."""
    batch = graph.build([(atoms, graph.neighbour_list(atoms, ff.config.r_max))], ff.config)
    variables = ff.device_variables(dtype)
    with jax.enable_x64(dtype == "float64"):
        batch = jax.device_put(potential.cast(batch, dtype))
        step = jax.jit(lambda v, g: derivatives.energy_forces_stress(ff.config, v, graph=g))
        start = time.perf_counter()
        program = step.lower(variables, batch).compile()
        cold = time.perf_counter() - start
    return (lambda: jax.block_until_ready(program(variables, batch))), batch, cold


def cpu_rows(ff, options):
    """One row a structure: plain, specialised and the peers, timed in turn."""
    rows = []
    for name, repeat in CPU_CASES:
        atoms = crystal(name, repeat)
        large = len(atoms) >= LARGE
        plain, batch, compile_s = compiled(ff, atoms, options.dtype)
        fast, _, fast_compile_s = compiled(ff.specialise(atoms.numbers), atoms, options.dtype)
        named = ["symmetrix-xl"] if large else list(peers.PEERS)
        calls = {"equijax": plain, "specialised": fast} | peers.calls(ff.config, atoms, named)
        times = timed(calls, options.repeats)
        median = {name: t["median_ms"] for name, t in times.items()}
        row = {
            "case": f"{name}{len(atoms)}",
            "atoms": len(atoms),
            "edges": int(batch.edges.mask.sum()),
            "compile_s": compile_s,
            "fast_compile_s": fast_compile_s,
        }
        row |= {f"{name.replace('-', '_')}_ms": ms for name, ms in median.items()}
        for peer in peers.PEERS:
            if peer in median:
                row[f"x_{peer.replace('-', '_')}"] = median[peer] / median["specialised"]
        rows.append(row | {"times": times})
        print_table(rows[-1:])
    return rows


def accelerator_rows(ff, options):
    """One row a size of silicon up to `options.largest` atoms."""
    rows = []
    for repeat in ACCELERATOR_REPEATS:
        if 8 * repeat**3 > options.largest:
            break
        atoms = crystal("Si", repeat)
        call, batch, cold = compiled(ff, atoms, options.dtype)
        times = timed({"equijax": call}, options.repeats)
        median = times["equijax"]["median_ms"]
        rows.append(
            {
                "case": f"Si{len(atoms)}",
                "atoms": len(atoms),
                "edges": int(batch.edges.mask.sum()),
                "compile_s": cold,
                "equijax_ms": median,
                "us_per_atom": 1e3 * median / len(atoms),
                "times": times,
            }
        )
        print_table(rows[-1:])
    return rows


def cold_start(ff, options):
    """Seconds from a loaded model to the first energy and forces of 64 Si atoms: specialise, check, compile, call."""
    start = time.perf_counter()
    compiled(ff.specialise(["Si"]), crystal("Si", 2), options.dtype)[0]()
    return time.perf_counter() - start


def peer_cold_start(ff, options):
    """The same of Symmetrix-XL, from its exported model; NaN where it is not installed."""
    try:
        peers.symmetrix_file(ff.config)
    except ImportError:
        return float("nan")
    start = time.perf_counter()
    peers.symmetrix_xl(ff.config, crystal("Si", 2))()
    return time.perf_counter() - start


def memory(ff, options):
    """Peak memory of the process, GB, after energy and forces of 1,000 atoms by the plain model."""
    compiled(ff, crystal(*MEMORY_CASE), options.dtype)[0]()
    return peak_memory_gb()


ALONE = {"cold": cold_start, "peer_cold": peer_cold_start, "memory": memory}


def in_process_of_its_own(what, options, caches=None):
    """One of `ALONE` in a new process, its caches of compiled code under `caches`."""
    places = {} if caches is None else {"XDG_CACHE_HOME": caches, "SYMMETRIX_JIT_CACHE": f"{caches}/symmetrix"}
    command = [sys.executable, __file__, "--alone", what, "--dtype", options.dtype]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | places)
    return float(result.stdout.split()[-1])


def main():
    """Measure, print the table, write the JSON."""
    options = tyro.cli(Options)
    ff = testing.random_forcefield(published_config())
    if options.alone:
        print(ALONE[options.alone](ff, options))
        return
    if jax.default_backend() != "cpu":
        write("energy_forces", accelerator_rows(ff, options), dtype=options.dtype)
        return
    rows = cpu_rows(ff, options)
    single = {"peak_memory_gb_1000_atoms": in_process_of_its_own("memory", options)}
    with tempfile.TemporaryDirectory() as empty:  # the second time, kernels are found in the cache
        single["cold_start_s_nothing_cached"] = in_process_of_its_own("cold", options, empty)
        single["cold_start_s_kernels_cached"] = in_process_of_its_own("cold", options, empty)
        if not options.skip_peer_cold:
            single["symmetrix_xl_cold_start_s_nothing_cached"] = in_process_of_its_own("peer_cold", options, empty)
            single["symmetrix_xl_cold_start_s_cached"] = in_process_of_its_own("peer_cold", options, empty)
    print_table(rows)
    means = {}
    for peer in [k for k in rows[0] if k.startswith("x_")]:
        means[f"geometric_mean_{peer}"] = float(np.exp(np.mean([np.log(r[peer]) for r in rows if peer in r])))
    print({k: round(v, 2) for k, v in (single | means).items()})
    write("energy_forces", rows, dtype=options.dtype, **single, **means)


if __name__ == "__main__":
    main()
