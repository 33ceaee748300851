"""Phonons of a committee: force constants of every member, and how far frequencies and what follows from them disagree.

The energy of a committee is the mean of its members', so its force constants are the mean of theirs, exactly. All of
them are taken at one geometry, that of the mean.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from phonopy import Phonopy

from equijax import tables
from equijax.adapters.committee import Committee, force_factor
from equijax.config import Compute
from equijax.phonons import force_constants
from equijax.phonons.thermal import harmonic

PROPERTIES = ("free_energy", "entropy", "heat_capacity")
HEADER = ("temperature_K", "free_energy_std_kJ/mol", "entropy_std_J/K/mol", "heat_capacity_std_J/K/mol")


class Disagreement(NamedTuple):
    """Standard deviations over the members of a committee, times a factor."""

    members: int
    factor: float  # by which errors of forces were larger than their deviations when the committee was trained
    mean_THz: float  # of frequencies, over the modes of the mesh
    largest_THz: float
    heat_capacity_300K: float | None  # J/K/mol; None where 300 K is not among the temperatures


class Apart(NamedTuple):
    """The members of a committee, each with force constants of its own."""

    phonons: list[Phonopy]
    factor: float  # see `Disagreement`


def apart(ff: Committee, phonon: Phonopy, *, copy: Callable[[], Phonopy], full: bool, compute: Compute) -> Apart:
    """Phonopy objects with the force constants of each member; `phonon` gets their mean.

    Args:
      ff: the committee.
      phonon: see `force_constants.force_constants`.
      copy: makes another object of the same cells.
      full: as there.
      compute: as there.
    """
    members = []
    for one in ff.members:
        members.append(copy())
        force_constants.force_constants(one, members[-1], full=full, compute=compute)
    phonon.force_constants = np.mean([m.force_constants for m in members], axis=0)
    return Apart(members, force_factor(ff))


def write(out: Path, found: Apart, *, mesh: Sequence[int], temperatures: np.ndarray) -> Disagreement:
    """Write thermal_std.csv, standard deviations times the factor, one row a temperature; return how members disagree.

    Args:
      out: folder.
      found: the members.
      mesh: 3 integers, Gamma-centred.
      temperatures: [T] K.
    """
    meshes = [phonon.run_mesh(mesh, is_gamma_center=True) for phonon in found.phonons]
    thermal = [harmonic(m.qpoints, m.frequencies, weights=m.weights, temperatures=temperatures) for m in meshes]
    columns = [found.factor * np.std([getattr(t, name) for t in thermal], axis=0) for name in PROPERTIES]
    tables.write_csv(out / "thermal_std.csv", HEADER, rows=zip(temperatures, *columns, strict=True))
    deviation = found.factor * np.std([m.frequencies for m in meshes], axis=0)  # [q, branches]
    at = np.flatnonzero(np.isclose(temperatures, 300.0))
    heat = float(columns[-1][at[0]]) if at.size else None
    mean = float(np.average(deviation.mean(1), weights=meshes[0].weights))
    return Disagreement(
        len(meshes), found.factor, mean_THz=mean, largest_THz=float(deviation.max()), heat_capacity_300K=heat
    )


def text(found: Disagreement) -> str:
    """A line of a summary."""
    heat = found.heat_capacity_300K
    return (
        f"{found.members} members disagree: frequencies {found.mean_THz:.3f} THz, at most {found.largest_THz:.3f} "
        f"(standard deviation times {found.factor:.2g}, that of force errors)"
        + ("" if heat is None else f"; heat capacity at 300 K {heat:.2g} J/K/mol")
    )
