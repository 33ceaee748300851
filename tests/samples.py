"""Configurations, structures and helpers that several tests share."""

from pathlib import Path

import numpy as np
from ase import Atoms

from equijax import testing
from equijax.forcefield import ForceField

CONFIG = testing.random_config(channels=4)
SMALL = {"channels": 4, "lmax": 1, "species": (11, 17), "max_ell": 1, "correlation": (2, 2), "radial_mlp": (8,)}
CHEAP = {"channels": 2, "max_ell": 1, "correlation": (2, 2), "num_radial": 4, "radial_mlp": (8, 8)}


def tree(path: Path) -> dict:
    """Every file below a folder, hidden ones too, with its content."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def moved(atoms: Atoms, kind: str) -> Atoms:
    """Atoms "far" from the origin, or each in another cell."""
    atoms = atoms.copy()
    if kind == "far":
        atoms.positions += [1e5, -1e5, 7e4]
    else:  # other cells, a different one for each atom
        atoms.positions += np.random.default_rng(0).integers(-20_000, 20_000, (len(atoms), 3)) @ atoms.cell.array
    return atoms


def attached(ff: ForceField, atoms: Atoms, **options) -> Atoms:
    """A copy with the model's calculator."""
    atoms = atoms.copy()
    atoms.calc = ff.calculator(**options)
    return atoms
