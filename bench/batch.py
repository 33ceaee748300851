"""Does a stream of mixed crystals run as fast as copies of one? `ff.evaluate`, neighbour lists and packing included.

    python bench/batch.py [--count 1000] [--model DIR] [--repeats 3]

Strained, rattled cells of four lattices against one stream a lattice, all cells of one shape and coordination. The
mixed stream is expected to take, per directed edge of each lattice, what that lattice's own stream takes; the ratio of
expected to measured time is the share of single-shape throughput. Streams alternate; compilation (first pass) is apart.
Host and device columns: the time of each alone, run one after the other.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from _common import print_table, published_config, timed, write
from ase import Atoms
from ase.build import bulk

import equijax
from equijax import derivatives, graph, testing
from equijax.config import Compute
from equijax.graph import packing

LATTICES = {"Si": ("diamond", 5.43), "Cu": ("fcc", 3.61), "NaCl": ("rocksalt", 5.64), "Na": ("bcc", 4.2)}


@dataclass(frozen=True)
class Options:
    """Mixed crystals against single shapes."""

    count: int = 1000
    """Mixed crystals; each single-shape stream gets a quarter as many."""
    model: Path | None = None
    """A model directory instead of random weights of the published shape."""
    repeats: int = 3
    """Timed passes of each stream."""
    dtype: str = "float32"


def cell(name: str, seed: int, scale: float = 1.0, cubic: bool = True, repeat=(1, 1, 1)) -> Atoms:
    """A rattled crystal (0.03 A)."""
    lattice, a = LATTICES[name]
    atoms = bulk(name, lattice, a=a * scale, cubic=cubic).repeat(repeat)
    atoms.rattle(0.03, seed=seed)
    return atoms


def mixed(count: int) -> dict[int, tuple[str, Atoms]]:
    """Lattice and cell of each: strained from -4 to 8 %, primitive to 2 x 2 x 1 conventional, in no order."""
    rng = np.random.default_rng(0)
    names = list(LATTICES)
    drawn = (
        (
            names[rng.integers(4)],
            i,
            rng.uniform(0.96, 1.08),
            bool(rng.integers(2)),
            (1 + rng.integers(2), 1 + rng.integers(2), 1),
        )
        for i in range(count)
    )
    return {
        i: (name, cell(name, seed, scale, cubic, repeat)) for i, (name, seed, scale, cubic, repeat) in enumerate(drawn)
    }


def edges_of(ff, images) -> int:
    return sum(len(graph.neighbour_list(atoms, ff.config.r_max).receivers) for atoms in images)


def prepared(ff, images) -> list:
    """Batches and their graphs, as `ff.evaluate` makes them."""
    structures = (packing.structure(i, a, edges=graph.neighbour_list(a, ff.config.r_max)) for i, a in enumerate(images))
    batches = packing.batches(structures, graph.SizePool(), known=len(ff.config.species), budget=packing.batch_slots())
    return [(b, b.build(ff.config, 0)) for b in batches]


def alone(ff, images, dtype) -> dict:
    """Seconds of the host's work and of the device's, each alone, and how full the batches are."""
    start = time.perf_counter()
    batches = prepared(ff, images)
    host = time.perf_counter() - start
    variables = ff.device_variables(dtype)
    device = np.inf
    for _ in range(2):  # the first may compile
        start = time.perf_counter()
        for _, padded in batches:
            jax.block_until_ready(derivatives.start(ff.config, variables, graph=padded, dtype=dtype))
        device = min(device, time.perf_counter() - start)
    slots = sum(b.size.cost for b, _ in batches)
    return {
        "host_s": host,
        "device_s": device,
        "batches": len(batches),
        "shapes": len({b.size for b, _ in batches}),
        "fill": edges_of(ff, images) / slots,
    }


def main() -> None:
    """Print and store one row a stream, and the share of single-shape throughput."""
    options = tyro.cli(Options)
    ff = equijax.load(options.model) if options.model else testing.random_forcefield(published_config())
    crystals = mixed(options.count)
    streams = {"mixed": [atoms for _, atoms in crystals.values()]}
    streams |= {name: [cell(name, i) for i in range(max(1, options.count // 4))] for name in LATTICES}
    first = {}
    for name, images in streams.items():
        start = time.perf_counter()
        ff.evaluate(images, compute=Compute(options.dtype, progress=True))
        first[name] = time.perf_counter() - start
    calls = {
        name: lambda images=images: ff.evaluate(images, compute=Compute(options.dtype))
        for name, images in streams.items()
    }
    times = timed(calls, options.repeats)
    rows: list[dict] = []
    for name, images in streams.items():
        seconds, edges, atoms = times[name]["median_ms"] / 1e3, edges_of(ff, images), sum(map(len, images))
        rows.append(
            {
                "stream": name,
                "structures": len(images),
                "atoms": atoms,
                "edges": edges,
                "first_s": first[name],
                "seconds": seconds,
                "structures_per_s": len(images) / seconds,
                "us_per_atom": 1e6 * seconds / atoms,
                "us_per_edge": 1e6 * seconds / edges,
                **alone(ff, images, options.dtype),
                "times": times[name],
            }
        )
    per_edge = {row["stream"]: row["us_per_edge"] for row in rows}
    expected = sum(1e-6 * per_edge[n] * edges_of(ff, [a for m, a in crystals.values() if m == n]) for n in LATTICES)
    share = expected / rows[0]["seconds"]
    print_table(rows)
    print(f"mixed crystals run at {share:.2f} of the single-shape throughput")
    write(
        "batch" + ("-model" if options.model else ""),
        rows,
        share_of_single_shape=share,
        dtype=options.dtype,
        channels=ff.config.channels,
        batch_slots=packing.batch_slots(),
    )


if __name__ == "__main__":
    main()
