"""Neighbours against ASE; wide vacuum, stray atoms, atoms many cells away; refused input; never a dead interpreter."""

import subprocess
import sys

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.neighborlist import neighbor_list

from equijax import graph, testing
from tests.samples import CONFIG

CLUSTER = testing.structures()["molecule"]


def stray(distance: float, pbc: bool = False) -> Atoms:
    atoms = CLUSTER + Atoms("NaCl", [[distance, 0, 0], [distance, 0, 2.5]])
    if pbc:
        atoms.set_cell([2 * distance, 6, 7])
        atoms.pbc = True
    return atoms


def skewed_slab(vacuum: float) -> Atoms:
    atoms = fcc111("Na", (2, 2, 3), a=5.0, vacuum=vacuum, periodic=True)
    atoms.set_cell(atoms.cell.array + [[0, 0, 0], [0, 0, 0], [3.0, 1.0, 0]])
    atoms.positions[:, 2] += 1.9 * vacuum  # through the boundary
    return atoms


def chain() -> Atoms:
    """Periodic along a skew vector alone, with cell vectors that mean nothing in the other directions."""
    atoms = testing.rattled()
    atoms.set_cell([[5.6, 1.0, 0.5], [0, 2.0, 0], [1.0, 0, 3.0]])
    atoms.pbc = (True, False, False)
    return atoms


MODERATE = {"stray": stray(60.0), "stray in a cell": stray(60.0, True), "slab": skewed_slab(20.0), "chain": chain()}


@pytest.mark.parametrize("name", MODERATE)
def test_leaving_out_vacuum_keeps_every_pair(name):
    atoms = MODERATE[name]
    edges = graph.neighbour_list(atoms, 4.9)
    i, j, S = neighbor_list("ijS", atoms, 4.9)
    assert len(i) > len(atoms)
    found = sorted(zip(edges.receivers, edges.senders, *edges.shifts.T, strict=True))
    assert found == sorted(zip(i, j, *S.T, strict=True))


EXTREME = {
    "stray": stray(5e5),
    "further": stray(1e12),
    "stray in a cell": stray(1e7, True),
    "slab": skewed_slab(1e7),
    "open slab": Atoms("Na2", [[0, 0, 0], [1.5, 0, 1e6]], cell=[5, 5, 0], pbc=(True, True, False)),
    "unwrapped": Atoms("Na2", [[0, 0, 0], [1.5, 5e11, 0]], cell=[5, 5, 5], pbc=True),
    "thin": Atoms("Na", cell=[0.001, 0.001, 5], pbc=True),
    "skewed": Atoms("Na", cell=[[5, 0, 0], [1e9, 5, 0], [0, 0, 5]], pbc=True),
    "flat": Atoms("Na", cell=[5, 5, 0], pbc=True),
    "not a number": Atoms("Na2", [[0, 0, 0], [0, 0, np.nan]]),
}

PROGRAM = """
import sys, ase.io
from equijax import graph
for atoms in ase.io.read(sys.argv[1], ":"):
    try:
        print(len(graph.neighbour_list(atoms, 4.9).senders), flush=True)
    except ValueError as error:
        print("refused:", error, flush=True)
"""


def test_no_structure_kills_the_interpreter(tmp_path):
    """In a process of its own: a cell list divides by zero, or never ends, on most of these."""
    ase.io.write(tmp_path / "all.traj", list(EXTREME.values()))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "all.traj")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = dict(zip(EXTREME, done.stdout.splitlines(), strict=True))
    pairs = {name: line for name, line in lines.items() if not line.startswith("refused")}
    near, slab = len(graph.neighbour_list(stray(60.0), 4.9).senders), graph.neighbour_list(skewed_slab(20.0), 4.9)
    assert pairs == {
        "stray": str(near),
        "further": str(near),
        "slab": str(len(slab.senders)),
        "open slab": "0",
        "unwrapped": "4",
        "stray in a cell": pairs["stray in a cell"],
    }
    assert "too thin for a cutoff" in lines["thin"] and "span no volume" in lines["flat"]


def test_too_elongated_is_refused_in_one_line():
    atoms = Atoms("Na150000", np.arange(150_000)[:, None] * [9.0, 0, 0])
    with pytest.raises(ValueError, match="too elongated for a neighbour list"):
        graph.neighbour_list(atoms, 4.0)


@pytest.mark.parametrize("name", testing.structures())
def test_neighbours_agree_with_ase(name):
    atoms = testing.structures()[name]
    edges = graph.neighbour_list(atoms, CONFIG.r_max)
    i, j, S = neighbor_list("ijS", atoms, CONFIG.r_max)
    expected = sorted(zip(i, j, *S.T, strict=True))
    assert sorted(zip(edges.receivers, edges.senders, *edges.shifts.T, strict=True)) == expected
    assert np.array_equal(edges.reverse[edges.reverse], np.arange(len(i)))


BAD = {
    "element": (Atoms("NaU", positions=[[0, 0, 0], [0, 0, 3]]), r"atom 1 of element U"),
    "overlap": (
        Atoms("NaNaCl", positions=[[0, 0, 0], [2, 0, 0], [2, 0, 0.01]]),
        r"atoms 1 and 2 \(Na, Cl\) are 0.01 A",
    ),
    "nan": (Atoms("NaCl", positions=[[0, 0, 0], [0, 0, np.nan]]), r"atom 1 at non-finite"),
    "infinite cell": (Atoms("Na", cell=[np.inf, 1, 1], pbc=True), r"cell is not finite"),
    "flat cell": (Atoms("Na", cell=[[3, 0, 0], [3, 0, 0], [0, 0, 3]], pbc=True), r"span no volume"),
    "empty": (Atoms(), r"no atoms"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    atoms, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        graph.from_atoms([bulk("Na"), atoms], CONFIG)
