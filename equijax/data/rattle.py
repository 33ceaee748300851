"""Rattled, strained and relaxing supercells worth a DFT calculation."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import ase
import ase.io
import numpy as np
from ase.filters import UnitCellFilter
from ase.optimize import FIRE
from tqdm import tqdm

from equijax import forcefield, outputs, structures
from equijax.data.options import RattleConfig
from equijax.data.select import descriptors, farthest
from equijax.errors import InputError
from equijax.graph.neighbours import check_atoms, neighbour_list
from equijax.potential import Potential

MAX_ATTEMPTS = 50  # draws of one rattled structure before its shortest distance is given up
FMAX = 0.02  # eV/A, where a relaxation ends
MAX_STEP_A = 0.1


class Picked(NamedTuple):
    """What a run wrote."""

    kinds: list[str]  # what made each structure, POSCAR-001 first
    candidates: int  # so many it was picked from
    formula: str  # of the supercell


@outputs.locked
def run(options: RattleConfig) -> Picked:
    """Make candidates, pick from them and write what was picked to `options.out`.

    Raises:
      FileExistsError: structures of another run are there.
      InputError: a crystal that cannot be made into candidates.
    """
    check_free(options.out)
    crystal = structures.read(options.structure)
    if not crystal.pbc.all() or crystal.cell.rank < 3:
        raise InputError(f"{options.structure} is not periodic in three directions")
    ff = None if options.model is None else forcefield.load(options.model, head=options.head)
    if ff is not None:
        check_atoms(crystal, ff.config, name=str(options.structure))
    supercell = make_supercell(crystal, options.supercell, min_length=options.min_length)
    candidates = rattled(supercell, options)
    if ff is not None:
        candidates += relaxations(ff, supercell, options=options)
    chosen = sorted(farthest(descriptors([atoms for atoms, _ in candidates]), options.number, seed=options.seed))
    report = {"options": asdict(options), "atoms": len(supercell)}
    write(options.out, [candidates[i] for i in chosen], report=report)
    return Picked([candidates[i][1] for i in chosen], len(candidates), supercell.get_chemical_formula())


def summary(picked: Picked) -> str:
    """The lines printed at the end of a run."""
    head = f"{len(picked.kinds)} of {picked.candidates} structures of {picked.formula}:"
    return "\n".join([head, *(f"  POSCAR-{i:03d}  {kind}" for i, kind in enumerate(picked.kinds, start=1))])


def check_free(out: Path) -> None:
    """Refuse to mix structures of two runs in one folder, before work starts."""
    left = sorted(p.name for p in (out / "poscars").glob("POSCAR-*"))
    if left:
        raise FileExistsError(f"{out / 'poscars'} holds {left[0]} and more already: choose another --out")


def write(out: Path, picked: Sequence[tuple[ase.Atoms, str]], *, report: dict) -> None:
    """structures.extxyz, one POSCAR each, and report.json.

    Args:
      out: folder.
      picked: structures, and what made them.
      report: what report.json holds beside their kinds.
    """
    folder = out / "poscars"
    folder.mkdir(parents=True, exist_ok=True)
    for i, (atoms, kind) in enumerate(picked, start=1):
        atoms.info["kind"] = kind
        with outputs.beside(folder / f"POSCAR-{i:03d}") as part:
            ase.io.write(part, atoms, format="vasp", direct=True, vasp5=True)
    with outputs.beside(out / "structures.extxyz") as part:
        ase.io.write(part, [atoms for atoms, _ in picked])
    outputs.write_json(out / "report.json", report | {"kinds": [kind for _, kind in picked]})


def make_supercell(crystal: ase.Atoms, repeat: Sequence[int] | None, *, min_length: float) -> ase.Atoms:
    """The crystal repeated, without calculator or constraints, atoms of one element together.

    Args:
      crystal: to repeat.
      repeat: along the cell vectors, or None for the fewest that make every height at least `min_length`.
      min_length: A.
    """
    if repeat is None:
        heights = crystal.get_volume() / np.linalg.norm(np.cross(*_pairs(crystal.cell.array)), axis=1)
        repeat = [max(1, math.ceil(min_length / height - 1e-6)) for height in heights]
    if min(repeat) < 1:
        raise InputError(f"supercell {tuple(repeat)}: expected positive repetitions")
    bare = ase.Atoms(crystal.numbers, crystal.positions, cell=crystal.cell, pbc=True)
    whole = bare.repeat(repeat)
    return whole[np.argsort(whole.numbers, kind="stable")]


def rattled(supercell: ase.Atoms, options: RattleConfig) -> list[tuple[ase.Atoms, str]]:
    """Candidates with a random strain and random displacements, each with a description.

    Raises:
      InputError: a rattle too large for the shortest distance allowed.
    """
    rng = np.random.default_rng(options.seed)
    shortest = options.min_distance * shortest_distance(supercell)
    out = []
    for i in range(options.candidates):
        sigma = options.rattle[i % len(options.rattle)]
        for _ in range(MAX_ATTEMPTS):
            atoms = strained(supercell, rng.uniform(-options.strain, options.strain, 6))
            shift = rng.normal(0.0, sigma, (len(atoms), 3))
            atoms.positions += shift - shift.mean(0)
            if shortest_distance(atoms) >= shortest:
                break
        else:
            raise InputError(
                f"rattling by {sigma} A brings atoms closer than {shortest:.3g} A in {MAX_ATTEMPTS} draws: "
                "choose smaller --rattle or --strain, or a smaller --min-distance"
            )
        change = atoms.get_volume() / supercell.get_volume() - 1
        out.append((atoms, f"rattled {sigma:g} A, volume {change:+.1%}"))
    return out


def strained(atoms: ase.Atoms, voigt: np.ndarray) -> ase.Atoms:
    """Deformed by the symmetric strain (xx, yy, zz, yz, xz, xy), atoms moving with the cell."""
    xx, yy, zz, yz, xz, xy = voigt
    deformation = np.eye(3) + np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return out


def shortest_distance(atoms: ase.Atoms) -> float:
    """Shortest distance between two atoms or an atom and its image, A; the longest looked for is 6 A."""
    edges = neighbour_list(atoms, 6.0)
    if not len(edges.senders):
        return 6.0
    ends = atoms.positions[edges.senders] + edges.shifts @ atoms.cell.array
    return float(np.linalg.norm(ends - atoms.positions[edges.receivers], axis=1).min())


def relaxations(ff: Potential, supercell: ase.Atoms, *, options: RattleConfig) -> list[tuple[ase.Atoms, str]]:
    """Frames of relaxations of ions and cell by the model, from the largest rattle."""
    starts = rattled(supercell, _with(options, candidates=options.relaxations))
    out: list[tuple[ase.Atoms, str]] = []
    with tqdm(total=options.relaxations * options.relaxation_steps, desc="relax", unit="step") as progress:
        for number, (atoms, _) in enumerate(starts, start=1):
            atoms.calc = ff.calculator("float32")
            # ASE's annotations know neither filters nor silence
            optimizer = FIRE(UnitCellFilter(atoms), logfile=None, maxstep=MAX_STEP_A)  # pyright: ignore[reportArgumentType]
            for step, _ in enumerate(optimizer.irun(fmax=FMAX, steps=options.relaxation_steps)):
                bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
                out.append((bare, f"relaxation {number}, step {step}"))
                progress.update(step > 0)
    return out


def _pairs(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Second and third, third and first, first and second cell vectors."""
    return cell[[1, 2, 0]], cell[[2, 0, 1]]


def _with(options: RattleConfig, *, candidates: int) -> RattleConfig:
    """The same draws, a few candidates, at the largest rattle alone."""
    return replace(options, candidates=candidates, number=1, rattle=(max(options.rattle),))
