"""Distortions of a crystal along unstable modes: order parameters of a star of q, commensurate cells, directions.

The unstable modes of a star of q span an order-parameter space: one complex amplitude for each of its q and each of the
degenerate modes there, one real amplitude where 2q is a lattice vector. Directions in that space break different
symmetries, so they are sampled, and one is kept for each space group and size of cell that they lead to.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import ase
import numpy as np
from ase.build.supercells import lattice_points_in_supercell
from ase.geometry.minkowski_reduction import minkowski_reduce

from equijax import structures
from equijax.config import Compute
from equijax.errors import InputError
from equijax.phonons import dynamical, stars
from equijax.potential import Potential

DEGENERATE_THZ = 0.01  # modes closer than this belong together
PROBE_A = 0.05  # largest displacement of the distortion whose space group is looked at
MAX_DIMENSION = 6  # of an order parameter whose 0/1 combinations are all tried; beyond, up to three at a time


@dataclass(frozen=True)
class OrderParameter:
    """Unstable modes of one star, patterns u_k(T, i) = Re(e_i^k exp(2 pi i q_k.(T + x_i))) / sqrt(m_i)."""

    qpoints: np.ndarray  # [d, 3] of each pattern
    modes: np.ndarray  # [d, N, 3] complex, unit norm
    frequency: float  # THz, negative for imaginary


class Spectrum(NamedTuple):
    """Frequencies on a mesh, and one order parameter per star and degenerate set of unstable modes."""

    qpoints: np.ndarray  # [Q, 3]
    frequencies: np.ndarray  # [Q, 3N] THz
    orders: list[OrderParameter]  # most unstable first


class Distortion(NamedTuple):
    """A direction of an order parameter and what it does to the crystal."""

    direction: np.ndarray  # [d], unit length
    cell: ase.Atoms  # undistorted supercell
    displacements: np.ndarray  # [n, 3] A / (A sqrt(amu)), per unit amplitude
    space_group: int  # number of the distorted crystal


def mesh_points(mesh: Sequence[int]) -> np.ndarray:
    """[Q, 3] Gamma-centred mesh, components in [0, 1)."""
    return np.array(list(itertools.product(*(np.arange(n) / n for n in mesh))))


def order_parameters(
    ff: Potential,
    atoms: ase.Atoms,
    *,
    mesh: Sequence[int],
    threshold: float,
    symprec: float,
    compute: Compute = Compute(),
) -> Spectrum:
    """Frequencies on a mesh, and the order parameters of its imaginary modes.

    Args:
      ff: a ForceField.
      atoms: primitive cell.
      mesh: 3 integers; its q are commensurate with that supercell.
      threshold: THz, positive; a mode is unstable below minus this.
      symprec: A, of the space group that makes the stars.
      compute: of `dynamical.dynamical_matrices`.
    """
    q = mesh_points(mesh)
    matrices = dynamical.symmetric_matrices(ff, atoms, qpoints=q, symprec=symprec, compute=compute)
    frequencies = dynamical.frequencies(matrices)
    found = []
    for star in stars.stars(atoms, q, symprec=symprec):
        half = [i for i in star if all(stars.key(-q[i]) != stars.key(q[j]) or j >= i for j in star)]
        omega = frequencies[half[0]]
        for modes in _sets(omega):
            if omega[modes].mean() < -threshold:
                patterns = [p for i in half for p in _patterns(atoms, q[i], matrix=matrices[i], modes=modes)]
                points, vectors = zip(*patterns, strict=True)
                found.append(OrderParameter(np.array(points), np.array(vectors), float(omega[modes].mean())))
    return Spectrum(q, frequencies, sorted(found, key=lambda o: o.frequency))


def _sets(omega: np.ndarray) -> list[np.ndarray]:
    """Indices of modes grouped by frequency."""
    breaks = np.flatnonzero(np.diff(omega) > DEGENERATE_THZ) + 1
    return np.split(np.arange(len(omega)), breaks)


def _patterns(
    atoms: ase.Atoms, q: np.ndarray, *, matrix: np.ndarray, modes: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(q, mode) of each real amplitude: the degenerate modes with axes made definite, times 1 and i unless real."""
    vectors = np.linalg.eigh(matrix)[1][:, modes]
    # degenerate modes: those of definite weight along x, y, z are the ones a crystallographer would name
    weight = np.tile([1.0, 2.0, 3.0], len(atoms))[:, None]
    vectors = vectors @ np.linalg.eigh(vectors.conj().T @ (weight * vectors))[1]
    real = np.allclose(2 * q, np.rint(2 * q), atol=1e-8)
    for vector in vectors.T:
        wave = vector.reshape(-1, 3) * np.exp(2j * np.pi * atoms.cell.scaled_positions(atoms.positions) @ q)[:, None]
        angle = np.angle((wave**2).sum()) / 2  # makes the pattern in the home cell as real as it can be
        for turn in (0.0,) if real else (0.0, np.pi / 2):
            yield q, vector.reshape(-1, 3) * np.exp(1j * (turn - angle))


def commensurate_cell(qpoints: np.ndarray, cell: np.ndarray, *, limit: int = 64) -> np.ndarray:
    """Smallest supercell in which all q are reciprocal lattice vectors: integer [3, 3], rows in units of `cell`.

    Args:
      qpoints: [d, 3] rational, fractional.
      cell: [3, 3] A, to choose the most compact of the equivalent cells.
      limit: largest denominator tried.

    Raises:
      InputError: no such cell within `limit`.
    """

    def fits(T: np.ndarray) -> bool:
        phases = np.atleast_2d(qpoints) @ T
        return bool(np.allclose(phases, np.rint(phases), atol=1e-6))

    rows: list[np.ndarray] = []
    for axis in range(3):  # Hermite normal form: the shortest step along each axis, up to steps along the ones before
        lower = [range(int(row[i])) for i, row in enumerate(rows)]
        candidates = (
            np.array([*tail, n, *(0,) * (2 - axis)]) for n in range(1, limit + 1) for tail in itertools.product(*lower)
        )
        step = next((T for T in candidates if fits(T)), None)
        if step is None:
            raise InputError(f"q-points {np.atleast_2d(qpoints).tolist()} have no common cell within {limit} multiples")
        rows.append(step)
    matrix = np.array(rows)
    _, operation = minkowski_reduce(matrix @ cell)
    matrix = operation @ matrix
    return matrix if np.linalg.det(matrix) > 0 else -matrix


def displaced(
    atoms: ase.Atoms, order: OrderParameter, *, direction: np.ndarray, matrix: np.ndarray
) -> tuple[ase.Atoms, np.ndarray]:
    """The supercell and the displacements of a distortion of unit amplitude.

    Amplitudes Q are in A sqrt(amu) per primitive cell, Q^2 = sum m u^2 / cells, so that E = w^2 Q^2 / 2 per primitive
    cell for small Q.

    Args:
      atoms: primitive cell, N atoms.
      order, direction: patterns and their [d] coefficients.
      matrix: supercell, rows in units of the primitive cell.

    Returns:
      supercell, displacements [N cells, 3] A / (A sqrt(amu)).
    """
    T = np.rint(lattice_points_in_supercell(matrix) @ matrix)
    x = atoms.cell.scaled_positions(atoms.positions)
    u = np.zeros((len(T), len(atoms), 3))
    for weight, q, mode in zip(direction, order.qpoints, order.modes, strict=True):
        wave = np.exp(2j * np.pi * (T[:, None] + x) @ q)
        u += weight * (wave[..., None] * mode).real
    u /= np.sqrt(atoms.get_masses())[:, None]
    norm = np.sqrt((atoms.get_masses()[:, None] * u**2).sum() / len(T))
    positions = ((T[:, None] + x) @ atoms.cell.array).reshape(-1, 3)
    cell = ase.Atoms(list(atoms.numbers) * len(T), positions, cell=matrix @ atoms.cell.array, pbc=True)
    # ASE's annotation knows "defaults" alone
    cell.set_masses(np.tile(atoms.get_masses(), len(T)))  # pyright: ignore[reportArgumentType]
    return cell, u.reshape(-1, 3) / norm


def directions(dimension: int, num_random: int, *, seed: int) -> list[np.ndarray]:
    """Single patterns, sums and differences of several, then random directions; [d] each, unit norm."""
    largest = dimension if dimension <= MAX_DIMENSION else 3
    out = []
    for count in range(1, largest + 1):
        for chosen in itertools.combinations(range(dimension), count):
            direction = np.zeros(dimension)
            direction[list(chosen)] = 1.0
            out.append(direction)
    rng = np.random.default_rng(seed)
    out += list(rng.normal(size=(num_random if dimension > 1 else 0, dimension)))
    return [direction / np.linalg.norm(direction) for direction in out]


def distinct(
    atoms: ase.Atoms, order: OrderParameter, *, max_atoms: int, num_random: int, seed: int, symprec: float = 1e-3
) -> list[Distortion]:
    """One direction for each space group and number of atoms that distortions along `order` lead to, small cells first.

    Args:
      atoms: primitive cell.
      order: the unstable modes.
      max_atoms: of the supercells; larger ones are left out.
      num_random: directions tried beside the special ones.
      seed: of these.
      symprec: A, of the space groups.
    """
    kept: dict[tuple, Distortion] = {}
    for direction in directions(len(order.qpoints), num_random, seed=seed):
        matrix = commensurate_cell(order.qpoints[np.abs(direction) > 1e-9], atoms.cell.array)
        if len(atoms) * round(np.linalg.det(matrix)) > max_atoms:
            continue
        cell, u = displaced(atoms, order, direction=direction, matrix=matrix)
        probe = cell.copy()
        probe.positions += PROBE_A * u / np.linalg.norm(u, axis=1).max()
        number = structures.space_group_number(probe, symprec)
        kept.setdefault((number, len(cell)), Distortion(direction, cell, u, number))
    # the highest symmetry first: those are the wells experiments report
    return sorted(kept.values(), key=lambda found: (len(found.cell), -found.space_group))
