"""Do two workers screen crystals twice as fast as one? Phonons of strained primitive cells, relaxed, over Dask.

    python bench/screen.py [--count 1000] [--model DIR] [--workers 1 2]

Needs the extra screen. Each worker has one core, so that fewer cores than workers measure nothing. A first pass over a
few crystals of every lattice compiles what is needed and is not counted. Seconds are of the whole run, from starting to
stopping the workers; overhead is workers * seconds against the first row's, less one; busy is the share of the workers'
time that is spent on crystals.
"""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import ase.io
import numpy as np
import tyro
from _common import print_table, write
from ase import Atoms
from ase.build import bulk

from convert import mace_mp
from equijax import checkpoint, compiled
from equijax.screen import run, store
from equijax.screen.options import ScreenConfig

BUNDLED = Path(checkpoint.__file__).parent / "assets" / "mini.model"
LATTICES = (  # name, lattice, A
    ("NaCl", "rocksalt", 5.64),
    ("MgO", "rocksalt", 4.25),
    ("KCl", "rocksalt", 6.30),
    ("LiF", "rocksalt", 4.06),
    ("CaO", "rocksalt", 4.80),
    ("Si", "diamond", 5.43),
    ("GaAs", "zincblende", 5.65),
    ("ZnS", "zincblende", 5.42),
    ("AlN", "wurtzite", 3.11),
    ("Cu", "fcc", 3.61),
    ("Al", "fcc", 4.05),
    ("Na", "bcc", 4.20),
)


@dataclass(frozen=True)
class Options:
    """Phonons of many crystals."""

    count: int = 1000
    """Crystals."""
    model: Path | None = None
    """A model directory instead of the bundled model."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers, one row each."""
    length: float = 10.0
    """A, see the option of the program."""


def crystals(count: int) -> list[Atoms]:
    """Strained by -1 to 2 %, the lattices in turn."""
    rng = np.random.default_rng(0)
    chosen = (LATTICES[i % len(LATTICES)] for i in range(count))
    return [bulk(name, lattice, a=a * rng.uniform(0.99, 1.02)) for name, lattice, a in chosen]


def screened(config: ScreenConfig, cores: list[int]) -> dict:
    """The row of one run, on the first cores of so many as it has workers."""
    os.sched_setaffinity(0, cores[: config.workers])
    try:
        found = run.run(config)
    finally:
        os.sched_setaffinity(0, cores)
    used = [row.seconds for row in store.rows(config.out)]
    return {
        "workers": config.workers,
        "crystals": found.crystals,
        "failed": len(found.failed),
        "seconds": found.seconds,
        "median_crystal_s": float(np.median(used)),
        "busy": sum(used) / found.seconds / config.workers,
    }


def main() -> None:
    """Print and store one row a number of workers."""
    options = tyro.cli(Options)
    compiled.use_cache()
    cores = sorted(os.sched_getaffinity(0))
    if max(options.workers) > len(cores):
        raise SystemExit(f"{max(options.workers)} workers on {len(cores)} cores: expected a core each")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if (model := options.model) is None:
            ff, model = mace_mp(BUNDLED).forcefield, folder / "model"
            checkpoint.save(model, ff.config, variables=ff.variables, metadata=ff.metadata)
        ase.io.write(folder / "all.extxyz", crystals(options.count))
        ase.io.write(folder / "few.extxyz", crystals(2 * len(LATTICES)))
        first = ScreenConfig((folder / "few.extxyz",), model, out=folder / "first", length=options.length)
        run.run(replace(first, workers=max(options.workers)))
        config = replace(first, structures=(folder / "all.extxyz",))
        rows = [screened(replace(config, workers=n, out=folder / f"{n}"), cores) for n in options.workers]
    for row in rows:
        row["overhead"] = row["workers"] * row["seconds"] / (rows[0]["workers"] * rows[0]["seconds"]) - 1
    print_table(rows)
    write("screen" + ("-model" if options.model else ""), rows, length=options.length)


if __name__ == "__main__":
    main()
