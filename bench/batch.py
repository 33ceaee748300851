"""Does a stream of mixed crystals run as fast as copies of one? `ff.evaluate` in structures and atoms a second.

    python bench/batch.py [COUNT]

Both streams hold COUNT (1,000) cells; the rates compared are edges a second, so that neither wins by being sparse.
Neighbour lists on the host are included, compilation is not (each stream runs once before it is timed).
"""

import sys
import time

import _common
import numpy as np
from ase.build import bulk

from equijax import graph, testing

LATTICES = (("Si", "diamond", 5.43), ("Cu", "fcc", 3.61), ("NaCl", "rocksalt", 5.64), ("Na", "bcc", 4.2))


def mixed(count: int) -> list:
    """Rattled cells of four lattices, strained by up to 8 %, primitive to 2 x 2 x 1 conventional."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        name, lattice, a = LATTICES[rng.integers(len(LATTICES))]
        atoms = bulk(name, lattice, a=a * rng.uniform(0.96, 1.08), cubic=bool(rng.integers(2)))
        atoms = atoms.repeat((1 + rng.integers(2), 1 + rng.integers(2), 1))
        atoms.rattle(0.03, seed=i)
        images.append(atoms)
    return images


def rate(ff, stream, images) -> dict:
    """Best of two timed passes after a first one."""
    edges = sum(len(graph.neighbour_list(atoms, ff.config.r_max).receivers) for atoms in images)
    ff.evaluate(images)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        ff.evaluate(images, progress=True)
        seconds.append(time.perf_counter() - start)
    best = min(seconds)
    return {
        "stream": stream, "structures": len(images), "atoms": sum(map(len, images)), "edges": edges, "seconds": best,
        "structures_per_s": len(images) / best, "edges_per_s": edges / best,
    }  # fmt: skip


def main() -> None:
    """Print and store the two rates and their ratio."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    ff = testing.random_forcefield(testing.random_config(channels=32, r_max=5.0, species=(11, 14, 17, 29)))
    single = [testing.rattled(seed=i) for i in range(count)]
    rows = [rate(ff, "one shape", single), rate(ff, "mixed", mixed(count))]
    ratio = rows[1]["edges_per_s"] / rows[0]["edges_per_s"]
    _common.print_table(rows)
    print(f"mixed / one shape: {ratio:.2f}")
    _common.write("batch", rows, ratio=ratio)


if __name__ == "__main__":
    main()
