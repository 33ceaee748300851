"""Structures with labels: what is known of each, checks of what was read, fingerprint and split.

A label that is not there is None (or NaN rows of the forces) and is masked later; it is never zero.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ase
import numpy as np
import numpy.typing as npt
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from equijax.config import EMBEDDED
from equijax.errors import InputError
from equijax.units import GPA_PER_EV_A3

LABELS = ("energy", "forces", "stress")
MAX_STRESS_EV_A3 = 6.0  # 1 TPa: no dataset of solids goes there, a stress in GPa or kbar does
# A stress label is taken for mistaken where it follows the model's this closely but with another factor than ~1.
MIN_CORRELATION, MAX_FACTOR, MIN_STRESSES = 0.8, 3.0, 4


@dataclass(frozen=True, eq=False)
class Labelled:
    """One structure and what is known of it."""

    atoms: ase.Atoms  # without calculator or constraints
    energy: float | None = None  # eV, total
    forces: np.ndarray | None = None  # [n, 3] eV/A; rows of NaN where unknown
    stress: np.ndarray | None = None  # [3, 3] eV/A^3, ASE sign
    weight: float = 1.0
    label_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of energy, forces and stress, times `weight`
    source: str = "structure"  # "frame 9 of FILE", for messages; frames count from 0, as ASE's indices
    head: str | None = None  # None: the head the run trains
    tangents: np.ndarray | None = None  # [n, B, 3] A; complex for displacement waves
    hvp: np.ndarray | None = None  # [n, B, 3] eV/A, force constants times tangents
    q: np.ndarray | None = None  # [B, 3] wave vectors of the tangents, in units of the reciprocal cell vectors

    @property
    def has_first_order(self) -> bool:
        """Whether energy, forces or stress are known."""
        return not (self.energy is None and self.forces is None and self.stress is None)


def from_values(
    atoms: ase.Atoms,
    source: str,
    *,
    energy: float | None = None,
    forces: npt.ArrayLike | None = None,
    stress: npt.ArrayLike | None = None,
    **others: Any,
) -> Labelled:
    """A checked `Labelled`; NaN means missing.

    Args:
      atoms: structure; only numbers, positions, cell and pbc are kept, and what some models embed, `EMBEDDED`.
      source: for messages.
      energy: eV, or None.
      forces: [n, 3] eV/A, or None.
      stress: 6 (Voigt), 9 or [3, 3] eV/A^3, or None; dropped where the structure is not a crystal.
      others: further fields of `Labelled`.

    Raises:
      InputError: shape, infinite or partly missing values, an asymmetric or impossible stress, a negative weight.
    """
    n = len(atoms)
    embedded = {key: atoms.info[key] for key, _ in EMBEDDED.values() if key in atoms.info}
    clean = ase.Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=embedded)
    for weight in (others.get("weight", 1.0), *others.get("label_weights", ())):
        if not (np.isfinite(weight) and weight >= 0):
            raise InputError(f"{source}: weight {weight} must be finite and not negative")
    energy = None if energy is None or np.isnan(energy) else float(energy)
    if energy is not None and np.isinf(energy):
        raise InputError(f"{source}: energy {energy} is not a number")
    crystal = clean.pbc.all() and clean.cell.rank == 3
    return Labelled(
        clean,
        energy,
        None if forces is None else _forces(np.asarray(forces, float), n, source=source),
        None if stress is None or not crystal else _stress(np.asarray(stress, float), source),
        source=source,
        **others,
    )


def _forces(forces: np.ndarray, n: int, *, source: str) -> np.ndarray | None:
    if forces.shape != (n, 3):
        raise InputError(f"{source}: forces of shape {forces.shape}; expected ({n}, 3)")
    missing = np.isnan(forces)
    bad = np.flatnonzero(np.isinf(forces).any(1) | (missing.any(1) & ~missing.all(1)))
    if bad.size:
        raise InputError(f"{source}: force on atom {bad[0]} is {forces[bad[0]].tolist()}")
    return None if missing.all() else forces


def _stress(stress: np.ndarray, source: str) -> np.ndarray | None:
    if stress.shape == (6,):
        stress = voigt_6_to_full_3x3_stress(stress)
    if stress.size != 9:
        raise InputError(f"{source}: stress of shape {stress.shape}; expected 6, 9 or 3 x 3 numbers")
    stress = stress.reshape(3, 3)
    if np.isnan(stress).all():
        return None
    if not np.isfinite(stress).all():
        raise InputError(f"{source}: stress {stress.ravel().tolist()} is not finite")
    largest = np.abs(stress).max()
    if largest > MAX_STRESS_EV_A3:
        raise InputError(
            f"{source}: a stress of {largest:.3g} eV/A^3 is {largest * GPA_PER_EV_A3:.3g} GPa: probably it is in GPa "
            f"or kbar; divide by {GPA_PER_EV_A3:.3f} or {10 * GPA_PER_EV_A3:.2f}"
        )
    if np.abs(stress - stress.T).max() > 1e-4 + 0.02 * largest:
        raise InputError(f"{source}: the stress is not symmetric: {stress.tolist()}")
    return 0.5 * (stress + stress.T)


def check_stress(structures: Sequence[Labelled], predicted: Sequence[np.ndarray]) -> tuple[float, float]:
    """Compare stress labels with a model's stresses: a wrong unit or sign shows as a slope far from 1.

    Means over the set are taken off first: a model that puts the equilibrium volume elsewhere is not a wrong sign.

    Args:
      structures: labelled structures.
      predicted: [3, 3] eV/A^3 of each, by any sensible potential.

    Returns:
      slope of label against prediction and their correlation; (1, 0) where there are too few or too small to tell.

    Raises:
      InputError: labels that follow the prediction closely, but with another unit or sign; it names the likely one.
    """
    labelled = [(s, s.stress, p) for s, p in zip(structures, predicted, strict=True) if s.stress is not None]
    if len(labelled) < MIN_STRESSES:
        return 1.0, 0.0
    volumes = np.array([s.atoms.get_volume() for s, _, _ in labelled])
    label = _centred(np.array([stress.ravel() for _, stress, _ in labelled]))  # [s, 9]
    plain = np.array([np.ravel(p) for _, _, p in labelled])
    found, virials = _centred(plain), _centred(plain * volumes[:, None])
    norm = np.linalg.norm(label) * np.linalg.norm(found)
    if norm < 1e-8 * label.size:  # below 1e-4 eV/A^3 (16 MPa) rms each
        return 1.0, 0.0
    slope, correlation = float((label * found).sum() / (found**2).sum()), float((label * found).sum() / norm)
    mistaken = slope < 1 / MAX_FACTOR or slope > MAX_FACTOR
    if abs(correlation) > MIN_CORRELATION and mistaken:
        volume = volumes.mean()
        known = {
            "the opposite sign": -1.0,
            "GPa": GPA_PER_EV_A3,
            "GPa with the opposite sign": -GPA_PER_EV_A3,
            "kbar": 10 * GPA_PER_EV_A3,
            "kbar with the opposite sign": -10 * GPA_PER_EV_A3,
            "eV/A^3 divided by 160.2, a conversion the wrong way": 1 / GPA_PER_EV_A3,
            "virials, which are -stress x volume": -volume,
            "stress x volume": volume,
        }
        if _correlation(label, virials) > abs(correlation) + 0.5 * (1 - abs(correlation)):
            known = {k: v for k, v in known.items() if abs(v) == volume}
        same = {k: v for k, v in known.items() if v * slope > 0} or known
        likely = min(same, key=lambda k: abs(np.log(abs(slope / same[k]))))
        raise InputError(
            f"stress labels from {labelled[0][0].source} on are {slope:.3g} times the model's (correlation "
            f"{correlation:.2f}): they look like {likely}; expected eV/A^3, positive under tension"
        )
    return slope, correlation


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(abs((a * b).sum()) / (np.linalg.norm(a) * np.linalg.norm(b)))


def elements(structures: Iterable[Labelled]) -> list[int]:
    """Atomic numbers that occur, ascending."""
    return sorted({int(z) for s in structures for z in s.atoms.numbers})


def to_atoms(labelled: Labelled) -> ase.Atoms:
    """The structure with its labels as results of a calculator, as `ase.io.write` stores them."""
    atoms = labelled.atoms.copy()
    results = {}
    if labelled.energy is not None:
        results["energy"] = labelled.energy
    if labelled.forces is not None:
        results["forces"] = labelled.forces
    if labelled.stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(labelled.stress)
    atoms.calc = SinglePointCalculator(atoms, **results)
    if labelled.weight != 1.0:
        atoms.info["weight"] = labelled.weight
    for name, weight in zip(LABELS, labelled.label_weights, strict=True):
        if weight != 1.0:
            atoms.info[f"config_{name}_weight"] = weight
    if labelled.head is not None:
        atoms.info["head"] = labelled.head
    return atoms


def sha256(structures: Iterable[Labelled]) -> str:
    """Fingerprint of a data set: structures, labels and weights, in any order."""
    return hashlib.sha256(b"".join(sorted(_digest(s) for s in structures))).hexdigest()


def _digest(s: Labelled) -> bytes:
    digest = hashlib.sha256()
    fields = (s.atoms.numbers, s.atoms.positions, s.atoms.cell.array, s.atoms.pbc)
    labels = (s.energy, s.forces, s.stress, s.weight, s.tangents, s.hvp)
    more = [] if s.label_weights == (1.0, 1.0, 1.0) else [s.label_weights]
    for x in (*fields, *labels, *more, *([] if s.q is None else [s.q])):
        if x is None:
            digest.update(b"-")
        else:
            digest.update(np.ascontiguousarray(x, complex if np.iscomplexobj(x) else float).tobytes())
    digest.update("".join((s.head or "", *(f" {k} {v}" for k, v in sorted(s.atoms.info.items())))).encode())
    return digest.digest()


class Split(NamedTuple):
    """Indices of a seeded split; plain lists, so that a report can store it."""

    train: list[int]
    valid: list[int]
    seed: int
    fraction: float


def split(number: int, fraction: float, *, seed: int = 0) -> Split:
    """Draw a validation set: round(fraction * number) structures, at least one, leaving at least one to train on.

    Raises:
      InputError: fraction not in (0, 1) or fewer than two structures.
    """
    if not 0 < fraction < 1:
        raise InputError(f"validation fraction {fraction} must be between 0 and 1")
    if number < 2:
        raise InputError(f"{number} structure(s) cannot be split into training and validation: give a validation file")
    size = min(max(1, round(fraction * number)), number - 1)
    order = np.random.default_rng(seed).permutation(number)
    return Split(sorted(order[size:].tolist()), sorted(order[:size].tolist()), seed, fraction)
