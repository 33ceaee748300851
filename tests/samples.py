"""Configurations, structures and helpers that several tests share."""

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk

from equijax import folding, specialise, testing
from equijax.config import Compute
from equijax.forcefield import ForceField
from equijax.phonons import dynamical

CONFIG = testing.random_config(channels=4, max_ell=1, radial_mlp=(16,))
ONE = {"num_interactions": 1, "correlation": (2,), "max_ell": 1}  # less than half the programs of two interactions
SMALL = {"channels": 4, "species": (11, 17), "radial_mlp": (8,), **ONE}
CHEAP = {"channels": 2, "num_radial": 4, "radial_mlp": (8, 8), **ONE}


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


def folded(ff: ForceField, species: tuple[int, ...]) -> ForceField:
    """The specialised model as `ff.specialise` makes it, without the measurement of its errors."""
    config = folding.shrink(ff.config, species, step=specialise.STEPS_A[1])
    constants = folding.fold(ff.config, ff.variables, small=config)
    return ForceField(config, {"params": {}, "constants": constants}, {}, ff.head)


def attached(ff: ForceField, atoms: Atoms, **options) -> Atoms:
    """A copy with the model's calculator."""
    atoms = atoms.copy()
    atoms.calc = ff.calculator(**options)
    return atoms


def low_symmetry() -> Atoms:
    """Two atoms, Na and Cl, without any symmetry."""
    atoms = bulk("NaCl", "rocksalt", a=5.0)
    atoms.set_cell(atoms.cell.array + np.random.default_rng(1).normal(size=(3, 3), scale=0.1), scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def check_second_derivatives(ff: ForceField, cell: Atoms) -> None:
    """D(q) of the cell against differences of forces in the cell doubled along c.

    Raises:
      AssertionError: they differ.
    """
    step, n = 1e-3, len(cell)
    moved = [cell.repeat((1, 1, 2)) for _ in range(4)]
    for atoms, h in zip(moved, (1, -1, 2, -2), strict=True):
        atoms.positions[0, 1] += h * step
        atoms.info = cell.info
    a, b, c, d = (found.forces for found in ff.evaluate(moved, compute=Compute("float64")))
    same, other = (((c - d) - 8 * (a - b)) / (12 * step)).reshape(2, 3 * n)
    masses = np.sqrt(np.repeat(cell.get_masses(), 3))
    qpoints = [[0, 0, 0], [0, 0, 0.5]]
    expected = np.array([same + other, same - other]) / masses / masses[1]
    found = dynamical.dynamical_matrices(ff, cell, qpoints=qpoints) / dynamical.phase(cell, qpoints)
    np.testing.assert_allclose(found[:, :, 1], expected, rtol=0, atol=testing.TOLERANCE["float64"]["hessian"])
