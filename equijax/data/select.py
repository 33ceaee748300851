"""Choice of a few structures among many: descriptors, farthest points, random."""

from collections.abc import Sequence

import ase
import numpy as np
from ase.geometry import complete_cell

from equijax import graph
from equijax.data.labelled import Labelled
from equijax.errors import InputError

RADIAL_CENTRES = 16  # Gaussians of the radial histogram between 0 and the cutoff


def descriptors(
    structures: Sequence[ase.Atoms], cutoff: float = 5.0, *, names: Sequence[str] | None = None
) -> np.ndarray:
    """What a structure is made of and how it is arranged, for measuring how different two are.

    Composition fractions by element, then mean and spread over atoms of the radial histogram
    h_i(k) = sum_j exp(-(r_ij - r_k)^2 / (2 s^2)) cos^2(pi r_ij / (2 cutoff)); each block is scaled to unit
    mean square distance from its mean.

    Args:
      structures: any.
      cutoff: A.
      names: what messages call them; their indices by default.

    Returns:
      [structures, features]
    """
    present = sorted({int(z) for atoms in structures for z in atoms.numbers})
    composition = np.array([[np.mean(atoms.numbers == z) for z in present] for atoms in structures])
    names = names or [f"structure {i}" for i in range(len(structures))]
    radial = [_histogram(atoms, cutoff, name=name) for atoms, name in zip(structures, names, strict=True)]
    blocks = (composition, np.array([h.mean(0) for h in radial]), np.array([h.std(0) for h in radial]))
    return np.concatenate([scaled(block) for block in blocks], axis=1)


def _histogram(atoms: ase.Atoms, cutoff: float, *, name: str) -> np.ndarray:
    """[n, RADIAL_CENTRES]"""
    edges = graph.neighbour_list(atoms, cutoff, name=name)
    cell = complete_cell(atoms.cell.array)
    vectors = atoms.positions[edges.senders] + edges.shifts @ cell - atoms.positions[edges.receivers]
    r = np.linalg.norm(vectors, axis=1)
    centres = np.linspace(0.0, cutoff, RADIAL_CENTRES + 1)[1:]
    width = centres[1] - centres[0]
    values = np.exp(-0.5 * ((r[:, None] - centres) / width) ** 2) * np.cos(0.5 * np.pi * r / cutoff)[:, None] ** 2
    out = np.zeros((len(atoms), RADIAL_CENTRES))
    np.add.at(out, edges.receivers, values)
    return out


def scaled(block: np.ndarray) -> np.ndarray:
    """Rows moved to mean 0 and scaled to a mean square length of 1; identical rows become 0."""
    centred = block - block.mean(0)
    spread = np.sqrt((centred**2).sum(1).mean())
    return centred / spread if spread > 1e-9 else centred


def farthest(points: np.ndarray, number: int, *, seed: int = 0) -> list[int]:
    """Greedy farthest-point choice: a random first, then always the point farthest from those chosen.

    Args:
      points: [n, features].
      number: to choose, at most n.
      seed: of the first.

    Raises:
      InputError: fewer points than asked for.
    """
    _check_number(number, len(points))
    chosen = [int(np.random.default_rng(seed).integers(len(points)))]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < number:
        distance[chosen] = -1.0  # identical structures have distance 0 from each other: never the same one twice
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def pick(structures: Sequence[Labelled], number: int, *, how: str = "farthest", seed: int = 0) -> list[int]:
    """Indices of a subset, ascending: "farthest" points of the descriptors, or "random".

    Raises:
      InputError: fewer structures than asked for, or an unknown way.
    """
    _check_number(number, len(structures))
    if how == "random":
        return sorted(np.random.default_rng(seed).permutation(len(structures))[:number].tolist())
    if how != "farthest":
        raise InputError(f"pick {how!r}: expected 'farthest' or 'random'")
    points = descriptors([s.atoms for s in structures], names=[s.source for s in structures])
    return sorted(farthest(points, number, seed=seed))


def _check_number(number: int, available: int) -> None:
    if not 1 <= number <= available:
        raise InputError(f"{number} structures asked for, {available} available")
