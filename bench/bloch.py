"""What does D(q) cost on the primitive cell as the cell grows, and is it the supercell's?

    python bench/bloch.py [--repeats 1 2 4] [--model DIR] [--no-check]

Primitive cells of NaCl stacked along one axis, the published shape with random weights; one D(q) at a general q has 3N
complex columns. The check compares D(q) with the Hessian of a supercell at a commensurate q, all in float64.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import _common as common
import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

from equijax import forcefield, graph, hessian, testing
from equijax.phonons import dynamical, ranges

Q = np.array([[0.13, 0.27, 0.41]])


@dataclass(frozen=True)
class Options:
    """Cost of a dynamical matrix."""

    repeats: tuple[int, ...] = (1, 2, 4)
    """Primitive cells stacked along a."""
    model: Path | None = None
    """A converted model instead of the published shape with random weights."""
    check: bool = True
    """Compare with a supercell's Hessian at a commensurate q."""


def main(options: Options) -> None:
    """Measure, print a table, write JSON."""
    ff = (
        testing.random_forcefield(common.published_config())
        if options.model is None
        else forcefield.load(options.model)
    )
    extra = {"model": str(options.model or "published shape, random weights")}
    if options.check:
        extra["check"] = check(ff)
        common.print_table([extra["check"]])
    rows = [cost(ff, n) for n in options.repeats]
    common.print_table(rows)
    common.write("bloch", rows, **extra)


def cost(ff, n: int) -> dict:
    """Seconds for one D(q) after compilation, all 3N columns, real and imaginary parts."""
    atoms = bulk("NaCl", "rocksalt", a=5.64).repeat((n, 1, 1))
    atoms.rattle(0.02, seed=0)
    start = time.perf_counter()
    dynamical.dynamical_matrices(ff, atoms, qpoints=Q)
    first = time.perf_counter() - start
    start = time.perf_counter()
    dynamical.dynamical_matrices(ff, atoms, qpoints=Q)
    seconds = time.perf_counter() - start
    edges = graph.neighbour_list(atoms, ff.config.r_max)
    return {
        "atoms": len(atoms),
        "neighbours": int(np.bincount(edges.receivers).max()),
        "seconds_per_q": seconds,
        "seconds_first_call": first,
        "us_per_atom_and_real_column": 1e6 * seconds / (6 * len(atoms) ** 2),
        "finite_route_atoms": ranges.interaction_range(ff, atoms).atoms,
    }


def check(ff) -> dict:
    """D at q = 1/3 against the Hessian of the 3 x 1 x 1 supercell."""
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.rattle(0.05, seed=1)
    atoms.set_masses([20.0, 30.0])
    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell.array,
        masses=atoms.get_masses(),
        scaled_positions=atoms.cell.scaled_positions(atoms.positions),
    )
    phonon = Phonopy(cell, np.diag([3, 1, 1]), primitive_matrix="P")
    big = phonon.supercell
    whole = Atoms(big.symbols, cell=big.cell, scaled_positions=big.scaled_positions, pbc=True)
    rows = hessian.hessian(ff, whole, rows=phonon.primitive.p2s_map)
    phonon.force_constants = rows.transpose(0, 2, 1, 3)
    q = np.array([[1 / 3, 0.0, 0.0]])
    D = dynamical.dynamical_matrices(ff, atoms, qpoints=q)[0]
    phonon.dynamical_matrix.run(q[0])
    expected = phonon.dynamical_matrix.dynamical_matrix
    return {
        "largest_difference_eV_A2_amu": float(np.abs(D - expected).max()),
        "largest_entry": float(np.abs(expected).max()),
        "not_hermitian_by": float(np.abs(D - D.conj().T).max()),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
