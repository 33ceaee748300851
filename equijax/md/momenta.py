"""Momenta at the start of a simulation, drawn or read from the structure, without drift.

A displacement that cannot change the energy (a translation, a rotation of a cluster) has a conserved momentum: it is
no heat, and takes no part in the temperature of deterministic dynamics.
"""

import ase
import numpy as np
from scipy.linalg import null_space

from equijax import units
from equijax.constraints import free_components
from equijax.md.options import MDConfig

RANK = 1e-8  # rigid motions are independent above this; they are scaled to the size of the structure


def rigid_motions(atoms: ase.Atoms, free: np.ndarray) -> np.ndarray:
    """[D, 3N] orthonormal mass-weighted translations, and rotations where nothing is periodic, that move no fixed part.

    None of them where they are all there is, as for a single atom.

    Args:
      atoms: structure.
      free: [N, 3] bool, see `constraints.free_components`.
    """
    r = atoms.positions - atoms.get_center_of_mass()
    motions = [np.broadcast_to(axis, r.shape) for axis in np.eye(3)]
    if not atoms.pbc.any():
        size = np.sqrt((r**2).sum(1).max()) or 1.0
        motions += [np.cross(axis, r / size) for axis in np.eye(3)]
    motions = np.reshape(motions, (len(motions), -1))
    if not free.all():
        motions = null_space(motions[:, ~free.ravel()].T).T @ motions
    _, size, directions = np.linalg.svd(motions * np.repeat(np.sqrt(atoms.get_masses()), 3), full_matrices=False)
    found = directions[size > RANK * size.max(initial=0.0)] * free.ravel()  # exactly zero where fixed
    return found if len(found) < free.sum() else found[:0]


def thermal_momenta(atoms: ase.Atoms, temperature: float, *, seed: int | tuple[int, ...]) -> np.ndarray:
    """Maxwell-Boltzmann momenta [N, 3] in sqrt(amu eV) without drift, scaled to the temperature (K); 0 where fixed."""
    free = free_components(atoms)
    motions = rigid_motions(atoms, free)
    q = _still(np.random.default_rng(seed).normal(size=free.shape) * free, motions)  # p / sqrt(mass)
    kinetic = (free.sum() - len(motions)) * units.KB_EV_PER_K * temperature
    return q * np.sqrt(kinetic / (q**2).sum() * atoms.get_masses()[:, None])


def without_drift(atoms: ase.Atoms) -> tuple[np.ndarray, float, float]:
    """The structure's own momenta [N, 3] less those of rigid motions and of what is fixed.

    Returns:
      momenta, their temperature, and that of the drift that was taken off, K.
    """
    free = free_components(atoms)
    motions, root = rigid_motions(atoms, free), np.sqrt(atoms.get_masses()[:, None])
    moving = atoms.get_momenta() / root * free
    q = _still(moving, motions)
    kelvin = 1.0 / ((free.sum() - len(motions)) * units.KB_EV_PER_K)
    return q * root, kelvin * (q**2).sum(), kelvin * ((moving - q) ** 2).sum()


def _still(q: np.ndarray, motions: np.ndarray) -> np.ndarray:
    return q - (motions.T @ (motions @ q.ravel())).reshape(q.shape)


def starting_momenta(config: MDConfig, atoms: ase.Atoms) -> np.ndarray:
    """[N, 3] or, for replicas, [B, N, 3] momenta of the first step; a printed line says where they come from.

    Those of the file serve one replica of the cell as it is: the copies of a repeated cell would move in step.
    """
    given = atoms.get_momenta().any()
    if given and config.replicas == 1 and np.prod(config.repeat) == 1:
        p, temperature, drift = without_drift(atoms)
        print(f"momenta of {config.structure}: {temperature:.4g} K, after {drift:.2g} K of drift were taken off")
        return p
    why = " (not those of the file: its copies would move in step)" if given else ""
    print(f"momenta drawn at {config.temperature:g} K without drift, seed {config.seed}{why}")
    if config.replicas == 1:
        return thermal_momenta(atoms, config.temperature, seed=config.seed)
    return np.stack([thermal_momenta(atoms, config.temperature, seed=(config.seed, b)) for b in range(config.replicas)])
