"""Convert a model of mace-torch, without torch, and evaluate structures with it."""

from importlib import resources

import numpy as np
from ase.build import bulk

import equijax
from convert.__main__ import main as convert
from equijax import Compute

# what `python -m convert mini.model model` does; the names of published models work alike
convert([str(resources.files("equijax") / "assets" / "mini.model"), "model"])

ff = equijax.load("model")
print(len(ff.config.species), "elements, cutoff", ff.config.r_max, "A")

# many structures of any size and elements: padded batches of few shapes, results in the order of the input
rng = np.random.default_rng(0)
images = [bulk("Si", "diamond", a=5.43) * (2, 2, 2), bulk("NaCl", "rocksalt", a=5.6), bulk("Cu", "fcc", a=3.6)]
for atoms in images:
    atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
for atoms, found in zip(images, ff.evaluate(images, errors="report"), strict=True):
    if found.error:
        print(f"{atoms.get_chemical_formula():8} {found.error}")
    else:
        force = np.abs(found.forces).max()
        print(f"{atoms.get_chemical_formula():8} {found.energy / len(atoms):9.4f} eV/atom, |F| <= {force:.3f} eV/A")

# in float64, and against a finite difference of the energy along x of the first atom
crystal, h = images[0], 1e-3
moved = [crystal.copy() for _ in range(2)]
for atoms, sign in zip(moved, (1, -1), strict=True):
    atoms.positions[0, 0] += sign * h
here, plus, minus = ff.evaluate([crystal, *moved], compute=Compute("float64"))
print(f"force {here.forces[0, 0]:.6f} eV/A, finite difference {-(plus.energy - minus.energy) / (2 * h):.6f} eV/A")

# one structure at a time, through ASE
crystal.calc = ff.calculator(dtype="float64")
print(f"ASE: {crystal.get_potential_energy():.6f} eV, evaluate: {here.energy:.6f} eV")
