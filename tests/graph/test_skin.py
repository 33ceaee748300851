"""Lists with a skin against lists made anew: walks, deformations, jumps to other cells, other structures, errors."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from equijax import graph, testing
from equijax.errors import InputError
from tests.samples import moved

CUTOFF = 4.9


def agrees(lists: graph.SkinList, atoms: Atoms) -> int:
    """How often pairs were listed so far, after the same edges were found as by a list made anew."""
    for found, expected in zip(lists.edges(atoms), graph.neighbour_list(atoms, CUTOFF), strict=True):
        np.testing.assert_array_equal(found, expected)
    return lists.made


@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
@pytest.mark.parametrize("where", ["here", "far", "other cells"])
def test_a_walk_finds_every_pair_and_lists_seldom(pbc, where):
    atoms, rng, lists = testing.rattled(), np.random.default_rng(0), graph.SkinList(CUTOFF)
    atoms.pbc = pbc
    atoms = atoms if where == "here" else moved(atoms, where)
    counts = set()
    for _ in range(40):
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        agrees(lists, atoms)
        counts.add(len(lists.edges(atoms).senders))
    assert 1 < lists.made < 20 and (len(counts) > 1 or counts == {0})


def test_half_the_skin_is_the_limit():
    atoms, lists = testing.rattled(), graph.SkinList(CUTOFF, skin=0.5)
    start = atoms.positions.copy()
    for step, made in ((0.0, 1), (0.2499, 1), (-0.2499, 1), (0.2501, 2), (0.1, 2)):
        atoms.positions[0] = start[0] + [0, step, 0]
        assert agrees(lists, atoms) == made


def test_a_small_deformation_keeps_the_list():
    atoms, lists = bulk("NaCl", "rocksalt", a=5.6), graph.SkinList(CUTOFF)
    cell = atoms.cell.array.copy()
    shear = np.array([[0, 1.0, 0], [0, 0, 0.5], [0, 0, 0]])
    for size, made in ((0.0, 1), (0.02, 1), (-0.02, 1), (0.2, 2), (0.21, 2)):
        atoms.set_cell(cell @ (np.eye(3) + size * shear), scale_atoms=True)
        assert agrees(lists, atoms) == made
    atoms.set_cell(0.9 * atoms.cell.array)  # atoms stay where they are
    assert agrees(lists, atoms) == 3


def test_whatever_else_changes_lists_anew():
    atoms, lists = testing.rattled(), graph.SkinList(CUTOFF)
    made = [agrees(lists, atoms)]
    for change in (
        lambda a: a.positions.__iadd__([[2.8, 0, 0]] + [[0, 0, 0]] * (len(a) - 1)),
        lambda a: a.set_positions(a.positions + a.cell.array[0] * (np.arange(len(a)) == 1)[:, None]),
        Atoms.wrap,
        lambda a: a.set_pbc((True, False, True)),
        lambda a: a.__delitem__(0),
    ):
        change(atoms)
        made.append(agrees(lists, atoms))
    assert made == [1, 2, 3, 4, 5, 6]


def test_errors_are_those_of_a_new_list():
    atoms, lists = testing.rattled(), graph.SkinList(CUTOFF)
    first = atoms.positions[0].copy()
    atoms.positions[0] = atoms.positions[1] + [0.1, 0, 0]
    agrees(lists, atoms)
    atoms.positions[0] = atoms.positions[1] + [0.01, 0, 0]
    with pytest.raises(InputError, match="cluster: atoms 0 and 1 .* 0.01 A apart"):
        lists.edges(atoms, name="cluster")
    assert lists.made == 1
    atoms.positions[0] = np.nan
    with pytest.raises(InputError, match="non-finite position"):
        lists.edges(atoms)
    atoms.positions[0] = first
    agrees(lists, atoms)


def test_lone_atoms_have_none():
    lists = graph.SkinList(CUTOFF)
    for _ in range(2):
        assert agrees(lists, Atoms("Na")) == 1


def test_a_cell_that_is_no_cell_is_refused():
    atoms, lists = testing.rattled(), graph.SkinList(CUTOFF)
    agrees(lists, atoms)
    atoms.cell[0, 0] = np.nan
    with pytest.raises(InputError, match="the cell is not finite"):
        lists.edges(atoms)
