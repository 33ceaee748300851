"""What a worker does with one crystal, and the row that comes of it."""

import contextlib
import functools
import io
import os
import time
import warnings
from typing import NamedTuple

import ase
import numpy as np

from equijax import checkpoint, compiled, forcefield, graph
from equijax.config import Compute
from equijax.errors import InputError, NotFinite, needed
from equijax.forcefield import ForceField
from equijax.phonons import born, dynamical, force_constants
from equijax.phonons.thermal import gamma_acoustic, harmonic
from equijax.relax import symmetric
from equijax.screen.crystals import Crystal
from equijax.screen.options import ScreenConfig

FAILURES = (InputError, NotFinite, MemoryError)  # of one crystal; others are bugs, which the client notes all the same


class Unready(OSError):
    """A worker that can compute nothing: the run stops, lest it answers for every crystal."""


class Row(NamedTuple):
    """A crystal in the store: what was computed, or why there is nothing; None and empty lists where there is none."""

    name: str  # FILE:FRAME
    digest: str  # of the structure in that file
    error: str | None = None
    warnings: list[str] = []
    seconds: float = 0.0
    formula: str | None = None
    space_group: str | None = None
    energy_eV_atom: float | None = None
    volume_A3_atom: float | None = None
    max_force_eV_A: float | None = None
    max_stress_GPa: float | None = None
    steps: int | None = None  # of the relaxation
    supercell_atoms: int | None = None
    lowest_THz: float | None = None  # of the mesh, acoustic modes at Gamma left out; imaginary ones are negative
    highest_THz: float | None = None
    imaginary: float | None = None  # fraction of modes, left out of the next three
    free_energy_kJ_mol: float | None = None  # of primitive cells, at the temperature of the run
    entropy_J_K_mol: float | None = None
    heat_capacity_J_K_mol: float | None = None
    numbers: list[int] = []  # [N], the relaxed structure
    positions: list[float] = []  # [N * 3] A
    cell: list[float] = []  # [9] A, vectors as rows
    pbc: list[bool] = []  # [3]
    supercell: list[int] = []  # [9] of phonopy's supercell_matrix
    force_constants: list[float] = []  # [n_p * n_s * 9] eV/A^2, phonopy's compact form


@functools.cache
def model(config: ScreenConfig, digest: str, cores: tuple[int, ...]) -> ForceField:
    """The model, loaded once a process, which from here on keeps to some cores and keeps compiled programs.

    Args:
      config: of the run.
      digest: of the model that the run was begun with.
      cores: numbers of the system; none for all.

    Raises:
      Unready: there is none at that path here, or another one.
    """
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before JAX makes its threads, which inherit it
    compiled.use_cache()
    try:
        ff = forcefield.load(config.model, head=config.head)
    except (InputError, OSError) as error:
        raise Unready(f"a worker cannot start: {error}") from error
    if checkpoint.fingerprint(ff.config, ff.variables) != digest:
        raise Unready(f"a worker cannot start: {config.model} is another model there, give all the same")
    return ff


def compute(crystal: Crystal, config: ScreenConfig, *, digest: str, cores: tuple[int, ...]) -> Row:
    """The row of a crystal; where it fails, with its error and what is known of it.

    Args:
      crystal: from `crystals.read`.
      config: of the run.
      digest, cores: see `model`.

    Raises:
      Unready: see `model`.
    """
    start, row = time.perf_counter(), Row(crystal.name, crystal.digest, crystal.error)
    # bars of relaxations would all be drawn on one terminal; warnings stand in the row
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        ff = model(config, digest, cores)
        try:
            if crystal.atoms is not None:
                graph.check_atoms(crystal.atoms, ff.config, name=crystal.name)
                row, atoms = at_rest(ff, crystal, row=row, config=config)
                if config.task == "phonons" and row.error is None:
                    row = with_phonons(ff, atoms, row=row, config=config)
        except FAILURES as error:
            row = row._replace(error=" ".join(str(error).split()))
    texts = sorted({" ".join(str(w.message).split()) for w in caught})
    return row._replace(warnings=texts, seconds=time.perf_counter() - start)


def at_rest(ff: ForceField, crystal: Crystal, *, row: Row, config: ScreenConfig) -> tuple[Row, ase.Atoms]:
    """The crystal, relaxed if asked, and the row with its energy, residuals and structure."""
    atoms = needed(crystal.atoms, f"{crystal.name} has no atoms")
    if config.relax:
        atoms, report = symmetric.relax(
            ff, atoms, fmax=config.fmax, cell=not config.fixed_cell, steps=config.steps, symprec=config.symprec
        )
        row = row._replace(steps=report.steps)
        if not report.converged:
            text = f"the relaxation has not converged to {config.fmax:g} eV/A in {report.steps} steps: raise --steps"
            row = row._replace(error=f"{crystal.name}: {text}")
    atoms.calc = ff.calculator(dtype="float64")
    residual = symmetric.residuals(atoms)
    if not config.relax:
        symmetric.refuse_unrelaxed(residual, crystal.name)
    symmetric.warn_unrelaxed(residual)
    row = row._replace(
        formula=atoms.get_chemical_formula(),
        space_group=symmetric.space_group(atoms, config.symprec),
        energy_eV_atom=atoms.get_potential_energy() / len(atoms),
        volume_A3_atom=atoms.cell.volume / len(atoms) or None,
        max_force_eV_A=residual.max_force_eV_A,
        max_stress_GPa=residual.max_stress_GPa,
        numbers=atoms.numbers.tolist(),
        positions=atoms.positions.ravel().tolist(),
        cell=atoms.cell.array.ravel().tolist(),
        pbc=atoms.pbc.tolist(),
    )
    return row, atoms


def with_phonons(ff: ForceField, atoms: ase.Atoms, *, row: Row, config: ScreenConfig) -> Row:
    """The row with force constants, from the primitive cell alone, and what follows from them on the q mesh."""
    supercell = config.supercell or diagonal(atoms, config.length)
    phonon = force_constants.make_phonon(atoms, supercell, symprec=config.symprec)
    force_constants.check_mesh(phonon.supercell, phonon.primitive, mesh=config.mesh)
    symmetric.warn_fixed(atoms)
    born.warn_polar(phonon)
    memory = None if config.memory is None else int(config.memory * 1e9)
    dynamical.force_constants(ff, phonon, compute=Compute(config.dtype, memory))
    mesh = phonon.run_mesh(config.mesh, is_gamma_center=True)
    moving = mesh.frequencies[~gamma_acoustic(mesh.qpoints, mesh.frequencies)]
    thermal = harmonic(mesh.qpoints, mesh.frequencies, weights=mesh.weights, temperatures=[config.temperature])
    return row._replace(
        supercell_atoms=len(phonon.supercell),
        lowest_THz=float(moving.min()),
        highest_THz=float(moving.max()),
        imaginary=thermal.imaginary_excluded,
        free_energy_kJ_mol=float(thermal.free_energy[0]),
        entropy_J_K_mol=float(thermal.entropy[0]),
        heat_capacity_J_K_mol=float(thermal.heat_capacity[0]),
        supercell=phonon.supercell_matrix.ravel().tolist(),
        force_constants=force_constants.compact(phonon).ravel().tolist(),
    )


def diagonal(atoms: ase.Atoms, length: float) -> list[int]:
    """The smallest [3] repeats of a cell in which its opposite faces are at least `length` A apart.

    Raises:
      InputError: a cell that does not span space.
    """
    if atoms.cell.rank < 3:
        raise InputError(f"{atoms.get_chemical_formula()} has no three cell vectors: phonons need a crystal")
    heights = 1 / np.linalg.norm(atoms.cell.reciprocal().array, axis=1)
    return [max(1, int(n)) for n in np.ceil(length / heights - 1e-6)]
