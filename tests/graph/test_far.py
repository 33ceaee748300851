"""Wide vacuum, stray atoms, atoms many cells away: right neighbours, float32 digits kept, never a dead interpreter."""

import subprocess
import sys

import ase.io
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.neighborlist import neighbor_list

from equijax import graph, potential, testing
from equijax.config import Compute
from equijax.potential import Evaluated

FF = testing.random_forcefield(
    testing.random_config(channels=2, max_ell=1, correlation=(2, 2), num_radial=3, radial_mlp=(8, 8), readout_mlp=4)
)
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
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "all.traj")], capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = dict(zip(EXTREME, done.stdout.splitlines(), strict=True))
    pairs = {name: line for name, line in lines.items() if not line.startswith("refused")}
    near, slab = len(graph.neighbour_list(stray(60.0), 4.9).senders), graph.neighbour_list(skewed_slab(20.0), 4.9)
    assert pairs == {"stray": str(near), "further": str(near), "slab": str(len(slab.senders)), "open slab": "0",
                     "unwrapped": "4", "stray in a cell": pairs["stray in a cell"]}  # fmt: skip
    assert "too thin for a cutoff" in lines["thin"] and "span no volume" in lines["flat"]


def test_too_elongated_is_refused_in_one_line():
    atoms = Atoms("Na150000", np.arange(150_000)[:, None] * [9.0, 0, 0])
    with pytest.raises(ValueError, match="too elongated for a neighbour list"):
        graph.neighbour_list(atoms, 4.0)


def moved(atoms: Atoms, kind: str) -> Atoms:
    atoms = atoms.copy()
    if kind == "far":
        atoms.positions += [1e5, -1e5, 7e4]
    else:  # other cells, a different one for each atom
        atoms.positions += np.random.default_rng(0).integers(-20_000, 20_000, (len(atoms), 3)) @ atoms.cell.array
    return atoms


@pytest.mark.parametrize("kind", ["far", "unwrapped"])
def test_float32_does_not_depend_on_where_atoms_are(kind):
    """Calculator and batches, energy, forces and stress: to the rounding of float32 at the origin."""
    atoms = testing.rattled()
    for evaluate in (lambda a: FF.evaluate([a])[0], single):
        here, there = evaluate(atoms), evaluate(moved(atoms, kind))
        for name, tolerance in {"energy": 1e-5, "forces": 1e-5, "stress": 1e-7}.items():
            np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=0, atol=tolerance, err_msg=name)


def single(atoms: Atoms) -> Evaluated:
    """The calculator's results."""
    atoms.calc = FF.calculator("float32")
    energies = atoms.get_potential_energies()
    return Evaluated(atoms.get_potential_energy(), energies, atoms.get_forces(), atoms.get_stress())


def test_vectors_follow_positions():
    """The graph's own vectors serve its positions; others change them, with the right derivative."""
    atoms = moved(testing.rattled(), "far")
    g = graph.from_atoms(atoms, FF.config)
    step = np.random.default_rng(1).normal(scale=1e-3, size=g.nodes.positions.shape)
    with jax.enable_x64(True):
        vectors = np.asarray(potential.edge_vectors(FF.config, g, positions=g.nodes.positions + step))
    r = g.nodes.positions + step
    plain = r[g.receivers] - r[g.senders] - g.edges.shifts @ atoms.cell.array
    mask = g.edges.mask
    assert mask.any()
    np.testing.assert_allclose(vectors.reshape(-1, 3)[mask], plain[mask], atol=1e-9)


@pytest.mark.parametrize("kind", ["plain", "specialised"])
def test_large_isolated_energies_lose_nothing_in_float32(kind):
    """E0 of a heavy element, -1e5 eV, is known to eV / 10^6 in the float32 calculator, batches and dynamics alike."""
    constants = {**FF.variables["constants"], "atomic_energies": FF.variables["constants"]["atomic_energies"] - 1e5}
    ff = type(FF)(FF.config, {**FF.variables, "constants": constants}, {})
    reference, heavy = FF, ff
    if kind == "specialised":
        reference, heavy = FF.specialise(["Na", "Cl"]), ff.specialise(["Na", "Cl"])
    atoms = testing.rattled()
    expected = reference.evaluate([atoms], compute=Compute())[0].energy - 8e5
    found = heavy.evaluate([atoms])[0].energy
    atoms.calc = heavy.calculator("float32")
    for energy in (found, atoms.get_potential_energy(), atoms.get_potential_energies().sum()):
        assert abs(energy - expected) / 8 < 1e-5
