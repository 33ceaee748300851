"""A configuration with two heads, and frames with labels, that the tests of data share."""

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from equijax import testing

CONFIG = testing.random_config(
    channels=4, lmax=1, species=(11, 14, 17), max_ell=1, correlation=(2, 2), radial_mlp=(8,), heads=("a", "b")
)


VARIABLES = {"constants": {"atomic_energies": np.array([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])}}


E0 = VARIABLES["constants"]["atomic_energies"]


ENERGY, STRESS = -25.0, np.array([0.01, 0.02, 0.03, 0.004, 0.005, 0.006])


FORCES = np.arange(24.0).reshape(8, 3) / 10


def frame(arrays=None, results=None, **info) -> ase.Atoms:
    """Salt with these labels."""
    atoms = testing.rattled()
    atoms.info |= info
    for name, x in (arrays or {}).items():
        atoms.arrays[name] = x
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def written(path, *images):
    ase.io.write(path, list(images), format="extxyz")
    return path


def lone(symbol, energy, **info) -> ase.Atoms:
    return ase.Atoms(symbol, info={"REF_energy": energy, "config_type": "IsolatedAtom", **info})
