"""Compares a converted model with mace-torch on rattled structures (needs the parity extra)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ase
import numpy as np
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.data import covalent_radii

from equijax import derivatives, graph
from equijax.config import ModelConfig

# Both run in float64. A float32 file leaves mace-torch with constants (couplings, Bessel prefactor) rounded to float32,
# which shows in proportion to the numbers: a limit is an absolute part, eV/atom, eV/A, eV/A^3, plus a relative one.
LIMITS = {
    "float64": {"energy": 1e-9, "forces": 1e-8, "stress": 1e-10},
    "float32": {"energy": 1e-5, "forces": 1e-4, "stress": 1e-6},
}
RELATIVE = {"float64": 1e-11, "float32": 1e-6}
UNITS = {"energy": "eV/atom", "forces": "eV/A", "stress": "eV/A^3"}
SHORTEST_A = 1.2  # of the distances between neighbours in the test structures, at least
RATTLE_A = 0.04  # standard deviation


class Difference(NamedTuple):
    """The largest difference to mace-torch in one quantity, and the largest value in that structure."""

    value: float
    scale: float

    def limit(self, dtype: str, key: str) -> float:
        """What is allowed of it."""
        return LIMITS[dtype][key] + RELATIVE[dtype] * self.scale

    def share(self, dtype: str, key: str) -> float:
        """Of the limit; infinite where one of the numbers is NaN."""
        share = self.value / self.limit(dtype, key)
        return np.inf if np.isnan(share) else share


def structures(config: ModelConfig, seed: int = 0) -> list[ase.Atoms]:
    """Rattled test structures of the model's elements: a metal, two compounds and a molecule.

    Neighbours are about as far apart as in solids, and within the cutoff.
    """
    rng = np.random.default_rng(seed)
    a, b, c = ([int(n) for n in rng.permutation(config.species)] * 3)[:3]
    near = partial(_distance, r_max=config.r_max)
    # like atoms of the compounds are at the side of the cube over the square root of two
    side = 2**0.5 * max(0.85 * near(a, a), 0.85 * near(b, b))
    angle = np.radians(109.5)
    images = [
        bulk("X", "fcc", a=2**0.5 * near(a, a), cubic=True),
        bulk("XX", "rocksalt", a=max(2 * near(a, b), side)),
        bulk("XX", "zincblende", a=max(4 * near(a, b) / 3**0.5, side), cubic=True),
        ase.Atoms("X3", [[0, 0, 0], [near(a, b), 0, 0], near(a, c) * np.array([np.cos(angle), np.sin(angle), 0.0])]),
    ]
    images[0].numbers[:] = a
    images[1].numbers[:] = a, b
    images[2].numbers[:] = [a, b] * 4
    images[3].numbers[:] = a, b, c
    for i, atoms in enumerate(images):
        atoms.rattle(RATTLE_A, seed=seed + i)
    return images


def _distance(a: int, b: int, *, r_max: float) -> float:
    """A distance at which two elements are neighbours, A: a little over the sum of their radii, within the cutoff."""
    radii = covalent_radii[a] + covalent_radii[b]
    return max(min(1.1 * radii, 0.8 * r_max), 0.8 * radii, SHORTEST_A + 4 * RATTLE_A)


def compared(
    path: Path, config: ModelConfig, *, variables: dict, head: str, dtype: str = "float64"
) -> dict[str, Difference]:
    """By quantity, the `Difference` to mace-torch that is largest against its limit for `dtype`; both in float64.

    Energies alone for a Chebyshev basis: torch does not differentiate `chebyshev_polynomial_t`, so the forces and
    stresses of mace-torch lack a term there.
    """
    images = structures(config)
    batch = graph.from_atoms(images, config, heads=[config.heads.index(head)] * len(images))
    ours = derivatives.evaluate(config, variables, graph=batch, dtype="float64")
    bounds = np.cumsum([0, *(len(atoms) for atoms in images)])
    calculator = torch_calculator(path, head)
    worst: dict[str, Difference] = {}
    for i, atoms in enumerate(images):
        atoms.calc = calculator
        pairs = {"energy": (atoms.get_potential_energy() / len(atoms), ours.energy[i] / len(atoms))}
        if config.radial_basis != "chebyshev":
            pairs["forces"] = atoms.get_forces(), ours.forces[bounds[i] : bounds[i + 1]]
            if atoms.pbc.all():
                pairs["stress"] = atoms.get_stress(voigt=False), ours.stress[i]
        for key, (theirs, mine) in pairs.items():
            found = Difference(float(np.abs(theirs - mine).max()), float(np.abs(theirs).max()))
            worst[key] = max(worst.get(key, found), found, key=lambda d, key=key: d.share(dtype, key))
    return worst


def torch_calculator(path: Path, head: str) -> Calculator:
    """mace-torch's own calculator of a file, in float64 on the CPU, wherever the file was saved.

    Raises:
      ImportError: without mace-torch.
    """
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # .model files hold whole modules
    from mace.calculators import MACECalculator

    with _scripts_on_cpu():
        return MACECalculator(model_paths=[path], device="cpu", default_dtype="float64", head=head)


@contextmanager
def _scripts_on_cpu() -> Iterator[None]:
    """Compiled code of e3nn inside a file is loaded by torch.jit.load, which torch.load does not tell of the device."""
    import torch

    load = torch.jit.load
    torch.jit.load = partial(load, map_location="cpu")
    try:
        yield
    finally:
        torch.jit.load = load


class Compared(NamedTuple):
    """One quantity of one head against mace-torch; as text, the line that --verify prints."""

    head: str
    quantity: str  # a key of UNITS
    found: Difference
    limit: float

    @property
    def within(self) -> bool:
        """Whether the difference is at most the limit; not where it is NaN."""
        return self.found.value <= self.limit

    def __str__(self) -> str:
        return (
            f"head {self.head}: largest difference in {self.quantity} {self.found.value:.2e} of {self.found.scale:.3g} "
            f"{UNITS[self.quantity]} (limit {self.limit:.1e}) {'ok' if self.within else 'TOO LARGE'}"
        )


def compare(path: Path, config: ModelConfig, *, variables: dict, dtype: str) -> list[Compared]:
    """The largest differences for every head and quantity.

    Args:
      path: the torch file; it is loaded with torch, which runs code in it.
      config, variables: what it was converted to.
      dtype: the coarser of the types of the file and of the variables.
    """
    return [
        Compared(head, key, found, found.limit(dtype, key))
        for head in config.heads
        for key, found in compared(path, config, variables=variables, head=head, dtype=dtype).items()
    ]
