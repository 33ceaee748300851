"""Neighbour lists that last while atoms move: pairs within the cutoff and a skin, sorted out anew at each step."""

from dataclasses import dataclass, field
from typing import NamedTuple

import ase
import numpy as np
from ase.geometry import complete_cell

from equijax.graph.neighbours import Edges, check_distances, neighbour_list

SKIN_A = 0.5  # an atom may go half as far before pairs are listed anew; a longer one is more pairs to sort at each step


class Reference(NamedTuple):
    """A structure as it was when its pairs were listed."""

    positions: np.ndarray  # [N, 3] A
    cell: np.ndarray  # [3, 3] A, completed where vectors are missing
    pbc: np.ndarray  # [3]
    pairs: Edges  # within cutoff + skin


@dataclass
class SkinList:
    """`neighbour_list` of a structure that changes a little from call to call.

    The pairs within cutoff + skin are listed once, and serve as long as no pair within the cutoff can be missing. With
    F the deformation of the cell since then, r = r_0 F + u, a pair now at distance d was at most |F^-1| (d + 2 max|u|)
    apart, and |F^-1| <= 1 + |F^-1 - 1| (Frobenius). Another number of atoms, a changed periodicity, an atom that enters
    from the other side of the cell: the list is made again.
    """

    cutoff: float  # A
    skin: float = SKIN_A  # A
    made: int = 0  # how often pairs were listed
    _reference: Reference | None = field(default=None, repr=False)

    def edges(self, atoms: ase.Atoms, *, name: str = "structure") -> Edges:
        """All ordered pairs within the cutoff, as `neighbour_list` gives them.

        Raises:
          InputError: see `neighbour_list`.
        """
        cell = complete_cell(atoms.cell.array)
        reference = self._reference
        if reference is None or not self._covers(reference, atoms, cell):
            pairs = neighbour_list(atoms, self.cutoff + self.skin, name=name)
            reference = self._reference = Reference(atoms.positions.copy(), cell, atoms.pbc.copy(), pairs)
            self.made += 1
        i, j, shifts, reverse = reference.pairs[:4]
        vectors = atoms.positions[i] - atoms.positions[j] - shifts @ cell
        squared = np.einsum("ex,ex->e", vectors, vectors)
        squared = np.minimum(squared, squared[reverse])  # both directions of a pair alike, to the last digit
        check_distances(atoms, (i, j), distances=np.sqrt(squared), name=name)
        near = squared <= self.cutoff**2
        number = np.cumsum(near) - 1
        return Edges(i[near], j[near], shifts[near], number[reverse[near]])

    def _covers(self, reference: Reference, atoms: ase.Atoms, cell: np.ndarray) -> bool:
        """Whether all pairs within the cutoff are listed."""
        if len(reference.positions) != len(atoms) or not np.array_equal(reference.pbc, atoms.pbc):
            return False
        if np.array_equal(cell, reference.cell):
            moved, stretch = atoms.positions - reference.positions, 1.0
        else:
            deformation = np.linalg.solve(reference.cell, cell)
            moved = atoms.positions - reference.positions @ deformation
            stretch = 1.0 + np.linalg.norm(np.linalg.inv(deformation) - np.eye(3))
        furthest = np.sqrt(np.einsum("nx,nx->n", moved, moved).max(initial=0.0))
        return bool(stretch * (self.cutoff + 2 * furthest) <= self.cutoff + self.skin)  # not where something is NaN
