"""Wave vectors that are equivalent by the space group or time reversal."""

import itertools

import ase
import numpy as np
import spglib

from equijax import structures


def stars(atoms: ase.Atoms, qpoints, symprec: float = 1e-5) -> list[list[int]]:
    """Indices of q-points of equal frequencies by the space group, which keeps isotopes apart, or time reversal.

    One list a star.
    """
    groups: dict[int, list[int]] = {}
    kinds = structures.isotopes(atoms.numbers, atoms.get_masses())
    for i, (first, *_) in enumerate(relations(atoms, kinds, np.asarray(qpoints, float), symprec)):
        groups.setdefault(first, []).append(i)
    return list(groups.values())


def relations(atoms, kinds, qpoints, symprec):
    """For each q: index of the q it follows from, rotation R, image of each atom, sign, G with q = sign R q_0 + G.

    Operations take atoms to atoms of the same of `kinds` [N].
    """
    cell, x = atoms.cell.array.T, atoms.cell.scaled_positions(atoms.positions)
    found = spglib.get_symmetry((atoms.cell.array, x, kinds), symprec)
    operations = []
    for W, t in zip(found["rotations"], found["translations"], strict=True):
        apart = (x @ W.T + t)[:, None] - x
        apart = np.linalg.norm((apart - np.rint(apart)) @ atoms.cell.array, axis=-1)
        operations.append((np.linalg.inv(W).T, cell @ W @ np.linalg.inv(cell), apart.argmin(1)))
    where: dict[tuple, list[int]] = {}
    for i, q in enumerate(qpoints):
        where.setdefault(key(q), []).append(i)
    related: list = [None] * len(qpoints)
    for i, q in enumerate(qpoints):
        if related[i] is None:
            for (W, R, image), sign in itertools.product(operations, (1, -1)):
                for j in where.get(key(sign * W @ q), []):
                    if related[j] is None:
                        related[j] = (i, R, image, sign, np.rint(qpoints[j] - sign * W @ q))
    return related


def key(q) -> tuple[int, int, int]:
    """The same for q and q + G, different for different q."""
    return tuple(int(n) for n in np.rint(np.asarray(q) * 1e6).astype(int) % 10**6)
