"""Relaxation of many structures side by side: one batched evaluation a step, a FIRE state for each structure."""

from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from tqdm import tqdm

from equijax.config import Compute
from equijax.constraints import free_components, refuse_fixed
from equijax.potential import Evaluated, Potential

# Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006); time in sqrt(amu A^2 / eV) with unit masses
DT, DT_MAX, N_MIN, GROW, SHRINK, ALPHA, ALPHA_DECAY = 0.1, 1.0, 5, 1.1, 0.5, 0.1, 0.99
MAX_STEP_A = 0.2  # longest step of the whole structure's coordinate vector


@dataclass(frozen=True)
class Relaxed:
    """Outcome of one structure: `error` says why there is none, `converged` whether fmax was reached."""

    atoms: ase.Atoms  # relaxed copy with energy, forces and stress attached; the input where there is an error
    converged: bool
    steps: int
    fmax: float  # eV/A reached; NaN where there is an error
    error: str | None = None


@dataclass
class _Fire:
    """Coordinates x = (q, n F) of one structure: r = q F^T, cell = cell_0 F^T, with their FIRE velocity and step."""

    atoms: ase.Atoms
    cell: np.ndarray  # cell_0, rows are vectors
    x: np.ndarray  # [n (+ 3), 3]
    v: np.ndarray
    free: np.ndarray  # [n, 3] bool, what constraints leave free
    dt: float = DT
    alpha: float = ALPHA
    downhill: int = 0
    steps: int = 0
    fmax: float = np.inf
    result: Evaluated | None = None
    evaluated: ase.Atoms | None = None  # what `result` belongs to


def relax(
    ff: Potential,
    images: Sequence[ase.Atoms],
    *,
    fmax: float = 0.01,
    steps: int = 500,
    cell: bool = False,
    compute: Compute = Compute(),
) -> list[Relaxed]:
    """Relax structures in batches; those that have converged leave the batch.

    Args:
      ff: a force field (its `evaluate` is called once a step for all that are left).
      images: structures; they are not changed. Fixed atoms and components stay fixed.
      fmax: largest force allowed on an atom, eV/A; with `cell`, also of the virial per atom, eV.
      steps: at most this many evaluations of each structure.
      cell: relax the cell of structures that are periodic in three directions.
      compute: dtype, float64 for fmax below 1e-3; progress shows a bar of converged structures.

    Returns:
      one `Relaxed` per structure in input order; a bad structure is reported in its `error`, the others go on.

    Raises:
      InputError: a constraint other than fixed atoms and components, or with `cell` any; the structure is named.
    """
    for i, atoms in enumerate(images):
        name = f"structure {i} ({atoms.get_chemical_formula()})"
        free_components(atoms, name)
        if cell and atoms.pbc.all():
            refuse_fixed(
                atoms, name, why="a cell is relaxed with all atoms free; use cell=False, or remove the constraints"
            )
    fires = [_start(atoms, cell and bool(atoms.pbc.all())) for atoms in images]
    outcomes: list[Relaxed | None] = [None] * len(images)
    left = list(range(len(images)))
    with tqdm(total=len(images), desc="relax", unit="structure", disable=not compute.progress) as bar:
        for _ in range(steps):
            results = ff.evaluate([fires[i].atoms for i in left], compute=compute, errors="report")
            for i, result in zip(left, results, strict=True):
                outcomes[i] = _advance(fires[i], result, original=images[i], fmax=fmax)
            remaining = [i for i in left if outcomes[i] is None]
            bar.update(len(left) - len(remaining))
            left = remaining
            if not left:
                break
    return [_outcome(fires[i], False) if outcome is None else outcome for i, outcome in enumerate(outcomes)]


def _start(atoms: ase.Atoms, cell: bool) -> _Fire:
    atoms = atoms.copy()
    x = np.vstack([atoms.positions, len(atoms) * np.eye(3)]) if cell else atoms.positions.copy()
    return _Fire(atoms, atoms.cell.array.copy(), x, np.zeros_like(x), free_components(atoms))


def _advance(fire: _Fire, result: Evaluated, *, original: ase.Atoms, fmax: float) -> Relaxed | None:
    """Judge one structure by its new forces, or take its next step."""
    error = result.error
    if error is None and not np.isfinite(result.forces).all():
        error = "the potential returned a non-finite force"
    if error is not None:
        return Relaxed(original, False, fire.steps, float("nan"), error)
    n = len(fire.atoms)
    fire.steps += 1
    fire.result, fire.evaluated = result, fire.atoms.copy()
    force = result.forces * fire.free
    if len(fire.x) > n:
        F = fire.x[n:] / n
        virial = -fire.atoms.get_volume() * result.stress
        # dE = -f.dr - virial:d(strain), with dr = dq F^T and d(strain) = dF F^-1
        force = np.vstack([force @ F, np.linalg.solve(F, virial.T).T / n])
    fire.fmax = float(np.linalg.norm(force, axis=1).max())
    if fire.fmax <= fmax:
        return _outcome(fire, True)
    _step(fire, force)
    return None


def _step(fire: _Fire, force: np.ndarray) -> None:
    """One FIRE step of x, then the atoms that go with it."""
    power = float((force * fire.v).sum())
    if power > 0:
        fire.v = (1 - fire.alpha) * fire.v + fire.alpha * force * np.linalg.norm(fire.v) / np.linalg.norm(force)
        fire.downhill += 1
        if fire.downhill > N_MIN:
            fire.dt, fire.alpha = min(fire.dt * GROW, DT_MAX), fire.alpha * ALPHA_DECAY
    else:
        fire.v = np.zeros_like(fire.v)
        fire.dt, fire.alpha, fire.downhill = fire.dt * SHRINK, ALPHA, 0
    fire.v = fire.v + fire.dt * force
    step = fire.dt * fire.v
    fire.x = fire.x + step * min(1.0, MAX_STEP_A / np.linalg.norm(step))
    n = len(fire.atoms)
    if len(fire.x) > n:
        F = fire.x[n:] / n
        fire.atoms.set_cell(fire.cell @ F.T)
        fire.atoms.positions = fire.x[:n] @ F.T
    else:
        fire.atoms.positions = fire.x


def _outcome(fire: _Fire, converged: bool) -> Relaxed:
    atoms, result = fire.evaluated, fire.result
    assert atoms is not None and result is not None  # `relax` evaluates before it judges
    stress = {"stress": full_3x3_to_voigt_6_stress(result.stress)} if np.isfinite(result.stress).all() else {}
    atoms.calc = SinglePointCalculator(atoms, energy=result.energy, forces=result.forces, **stress)
    return Relaxed(atoms, converged, fire.steps, fire.fmax)
