"""Compares a converted model with mace-torch on rattled structures (needs the parity extra)."""

import os
from pathlib import Path

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # .model files hold whole modules

import ase
import numpy as np
from ase.build import bulk
from ase.data import chemical_symbols, covalent_radii
from mace.calculators import MACECalculator

from equijax import graph, predict
from equijax.config import ModelConfig

# Both run in float64. A float32 file leaves mace-torch with constants (couplings, Bessel prefactor) rounded to float32.
LIMITS = {
    "float64": {"energy": 1e-9, "forces": 1e-8, "stress": 1e-10},
    "float32": {"energy": 1e-6, "forces": 1e-5, "stress": 1e-7},
}
UNITS = {"energy": "eV/atom", "forces": "eV/A", "stress": "eV/A^3"}


def structures(config: ModelConfig, seed: int = 0) -> list[ase.Atoms]:
    """Rattled test structures of the model's elements: a metal, two compounds and a molecule."""
    rng = np.random.default_rng(seed)
    z = [int(n) for n in rng.permutation(config.species)] * 3
    a, b = chemical_symbols[z[0]], chemical_symbols[z[1]]
    bond = 1.2 * (covalent_radii[z[0]] + covalent_radii[z[1]])
    images = [
        bulk(a, "fcc", a=1.2 * 2 * covalent_radii[z[0]] * 2**0.5, cubic=True),
        bulk(a + b, "rocksalt", a=2 * bond),
        bulk(a + b, "zincblende", a=4 * bond / 3**0.5, cubic=True),
        ase.Atoms(numbers=z[:3], positions=[[0, 0, 0], [bond, 0, 0], [0.3, 1.1 * bond, 0.2]]),
    ]
    for i, atoms in enumerate(images):
        atoms.rattle(0.1, seed=seed + i)
    return images


def differences(path: Path, config: ModelConfig, variables: dict, head: str) -> dict[str, float]:
    """Largest differences to mace-torch over `structures`, both in float64.

    Energies alone for a Chebyshev basis: torch does not differentiate `chebyshev_polynomial_t`, so the forces and
    stresses of mace-torch lack a term there.
    """
    torch_model = MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64", head=head)
    images = structures(config)
    batch = graph.from_atoms(images, config, heads=[config.heads.index(head)] * len(images))
    ours = predict.evaluate(config, variables, batch, "float64")
    bounds = np.cumsum([0, *(len(atoms) for atoms in images)])
    worst: dict[str, float] = {}
    for i, atoms in enumerate(images):
        atoms.calc = torch_model
        found = {"energy": (atoms.get_potential_energy() - ours["energy"][i]) / len(atoms)}
        if config.radial_basis != "chebyshev":
            found["forces"] = atoms.get_forces() - ours["forces"][bounds[i] : bounds[i + 1]]
            if atoms.pbc.all():
                found["stress"] = atoms.get_stress(voigt=False) - ours["stress"][i]
        for key, value in found.items():
            worst[key] = max(worst.get(key, 0.0), float(np.abs(value).max()))
    return worst


def compare(path: Path, config: ModelConfig, variables: dict, dtype: str) -> int:
    """Print the largest differences for every head; exit status 1 where they exceed `LIMITS[dtype]`.

    Args:
      path: the torch file; it is loaded with torch, which runs code in it.
      config, variables: what it was converted to.
      dtype: the coarser of the types of the file and of the variables.
    """
    status = 0
    for head in config.heads:
        for key, value in differences(path, config, variables, head).items():
            limit = LIMITS[dtype][key]
            verdict = "ok" if value <= limit else "TOO LARGE"
            status |= verdict != "ok"
            print(f"head {head}: largest difference in {key} {value:.2e} {UNITS[key]} (limit {limit:.0e}) {verdict}")
    return int(status)
