"""Wave vectors that are equivalent by the space group or time reversal."""

import itertools
from typing import NamedTuple

import ase
import numpy as np
import numpy.typing as npt
import spglib

from equijax import structures
from equijax.errors import needed


class Relation(NamedTuple):
    """How q = sign R q_0 + G follows from another."""

    first: int  # index of q_0
    rotation: np.ndarray  # R, [3, 3] Cartesian
    image: np.ndarray  # [N] atom that each is taken to
    sign: int  # -1 with time reversal
    shift: np.ndarray  # G, [3] fractional


def stars(atoms: ase.Atoms, qpoints: npt.ArrayLike, *, symprec: float = 1e-5) -> list[list[int]]:
    """Indices of q-points of equal frequencies by the space group, which keeps isotopes apart, or time reversal.

    One list a star.
    """
    groups: dict[int, list[int]] = {}
    kinds = structures.isotopes(atoms.numbers, atoms.get_masses())
    for i, (first, *_) in enumerate(relations(atoms, kinds, qpoints=np.asarray(qpoints, float), symprec=symprec)):
        groups.setdefault(first, []).append(i)
    return list(groups.values())


def relations(atoms: ase.Atoms, kinds: np.ndarray, *, qpoints: np.ndarray, symprec: float) -> list[Relation]:
    """For each of the q-points [Q, 3], the first one that it follows from.

    Operations take atoms to atoms of the same of `kinds` [N].
    """
    cell, x = atoms.cell.array.T, atoms.cell.scaled_positions(atoms.positions)
    found = needed(
        spglib.get_symmetry(structures.for_spglib(atoms, kinds), symprec),
        f"spglib finds no symmetry of {atoms.get_chemical_formula()} at {symprec} A: move atoms apart",
    )
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
                        related[j] = Relation(i, R, image, sign, np.rint(qpoints[j] - sign * W @ q))
    return related


def key(q: npt.ArrayLike) -> tuple[int, ...]:
    """The same for q and q + G, different for different q."""
    return tuple(int(n) for n in np.rint(np.asarray(q) * 1e6).astype(int) % 10**6)
