"""The neighbour list on the device against the host's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from equijax import graph
from equijax.md import bins, boxes, neighbours
from equijax.testing import rattled
from tests.md.samples import triclinic


def open_slab():
    atoms = rattled()
    atoms.pbc = (True, True, False)
    return atoms


def droplets():
    """Three crystallites in a cell that is almost all vacuum."""
    atoms = rattled()
    for shift in ([1300.0, 0, 0], [2990.0, 700.0, 2998.0]):
        other = rattled(seed=2)
        other.positions += shift
        atoms += other
    atoms.set_cell([[3000.0, 0, 0], [500.0, 2900.0, 0], [0, 300.0, 3000.0]])
    return atoms


CELLS = {
    "vacuum": droplets(),
    "small": rattled(),
    "triclinic": triclinic(),
    "bins": triclinic((4, 4, 5)),
    "slab": open_slab(),
}


def pairs_on_device(atoms, cutoff):
    """Sorted (receiver, sender, distance) and whether reverse is the opposite of every slot."""
    where = boxes.Space(True, tuple(bool(p) for p in atoms.pbc), cutoff, 0.4)
    with jax.enable_x64(True):
        fns = neighbours.neighbor_list(atoms.cell.array.T, where)
        s, T = jnp.asarray(atoms.get_scaled_positions(wrap=False) + 2.0 * atoms.pbc), jnp.asarray(atoms.cell.array.T)
        neighbors = fns.allocate(s)
        edges = jax.jit(lambda s, T, neighbors: neighbours.within(s, T, neighbors=neighbors, space=where))(
            s, T, neighbors
        )
        assert bool(edges.complete) and not bool(neighbors.did_buffer_overflow)
        senders, reverse, mask = (
            np.asarray(getattr(edges, k)).reshape(len(atoms), -1) for k in ("senders", "reverse", "mask")
        )
        v = np.asarray(s)[:, None] - np.asarray(s)[senders] - np.asarray(edges.shifts)
    v = v @ atoms.cell.array
    slots = v.shape[1]
    np.testing.assert_allclose(v.reshape(-1, 3)[reverse][mask], -v[mask], atol=1e-12)
    np.testing.assert_array_equal(reverse.reshape(-1)[reverse], np.arange(len(atoms) * slots).reshape(reverse.shape))
    n, k = np.nonzero(mask)
    rows = np.stack([n, senders[n, k], np.linalg.norm(v[n, k], axis=1).round(9)], 1)
    return rows[np.lexsort(rows.T[::-1])]


@pytest.mark.parametrize("name", CELLS)
def test_list_equals_the_host_list(name):
    atoms = CELLS[name]
    edges = graph.neighbour_list(atoms, 5.0)
    v = atoms.positions[edges.receivers] - atoms.positions[edges.senders] - edges.shifts @ atoms.cell.array
    rows = np.stack([edges.receivers, edges.senders, np.linalg.norm(v, axis=1).round(9)], 1)
    np.testing.assert_allclose(pairs_on_device(atoms, 5.0), rows[np.lexsort(rows.T[::-1])], atol=1e-8)


def test_memory_does_not_grow_with_the_volume():
    """The largest array of the program that builds the list, for one cell and for a million times its volume."""
    small = rattled(repeat=(2, 2, 2))
    large = small.copy()
    large.set_cell(small.cell * 100)
    space = boxes.Space(False, (True,) * 3, 4.0, 0.5)

    def program(atoms):
        R, T = np.asarray(atoms.positions, np.float32), np.asarray(atoms.cell.array.T, np.float32)
        grid = bins.lay_out(R, T, space=space)
        return jax.make_jaxpr(lambda R, T: neighbours._build(R, T, grid, space, 40))(R, T)

    sizes = [max(v.aval.size for e in program(atoms).eqns for v in e.outvars) for atoms in (small, large)]
    assert sizes[1] <= 2 * sizes[0]


@pytest.mark.parametrize("fractional", [True, False])
def test_a_perfect_crystal_has_room_for_the_shell_that_heat_brings_in(fractional):
    """24 atoms at 5.27 A, cutoff 5 A: none of them is a neighbour until atoms move."""
    atoms = bulk("Al", a=4.3, cubic=True) * (2, 2, 2)
    space, T = boxes.Space(fractional, (True, True, True), 5.0, 0.4), jnp.asarray(atoms.cell.array.T)
    fns = neighbours.neighbor_list(T, space)

    def at(atoms):
        return jnp.asarray(atoms.get_scaled_positions(wrap=False) if fractional else atoms.positions)

    neighbors = fns.allocate(at(atoms))
    atoms.rattle(0.12, seed=2)
    moved = jax.jit(fns.update)(at(atoms), neighbors)
    assert not bool(moved.did_buffer_overflow)
    assert int(neighbours.within(at(atoms), T, neighbors=moved, space=space).mask.sum(1).max()) > 21
