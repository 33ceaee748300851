"""LAMMPS with our energy, forces and virial, through `fix external` of its Python interface: its thermostats, its
barostats, its computes, our potential.

from lammps import lammps
lmp = lammps()
lmp.commands_string("units metal\nboundary p p p\nread_data crystal.data")
equijax.lammps.attach(lmp, ff.calculator(), species=["Na", "Cl"])
lmp.commands_string("fix 1 all npt temp 300 300 0.1 iso 0 0 1\nrun 1000")

One process alone, that is without domain decomposition: for runs over many, `python -m convert --to-torch` writes the
file that mace-torch makes its LAMMPS model of.
"""

from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers
from ase.stress import voigt_6_to_full_3x3_stress

from equijax.errors import InputError

UNITS = "metal"  # eV, A, bar


def attach(lmp: Any, calculator: Calculator, *, species: Sequence[str], fix: str = "equijax") -> None:
    """Add a fix to a LAMMPS instance that computes with a calculator, its energy and virial counted.

    A callback cannot raise through LAMMPS: where the calculator fails, Python prints the error, energy and forces are
    NaN, and the run stops early.

    Args:
      lmp: lammps.lammps, with its box and atoms made, in units metal.
      calculator: an ASE calculator that has stress, such as `ForceField.calculator`.
      species: chemical symbol of each LAMMPS atom type, from type 1 on.
      fix: name of the fix.

    Raises:
      InputError: other units, no box, another number of types, several processes, no such element.
    """
    if (units := lmp.extract_global("units")) != UNITS:
        raise InputError(f"LAMMPS computes in units {units!r}: expected 'units metal' before the box is made")
    if not lmp.extract_setting("box_exist"):
        raise InputError("LAMMPS has no box yet: call attach after read_data or create_box")
    if (types := lmp.extract_global("ntypes")) != len(species):
        raise InputError(f"species = {list(species)}: LAMMPS has {types} atom types, name the element of each")
    if unknown := [symbol for symbol in species if symbol not in atomic_numbers]:
        raise InputError(f"species: {unknown} are no chemical symbols")
    if (processes := lmp.extract_setting("world_size")) != 1:
        raise InputError(f"LAMMPS runs on {processes} processes: fix external serves one, start it without mpirun")
    numbers = np.array([atomic_numbers[symbol] for symbol in species])

    def computed(tag: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        order, kinds = np.argsort(tag.ravel()), numbers[lmp.numpy.extract_atom("type")[: len(tag)] - 1]
        cell, corner, periodic = _box(lmp)
        atoms = ase.Atoms(kinds[order], positions=x[order] - corner, cell=cell, pbc=periodic)
        atoms.calc = calculator
        virial = -voigt_6_to_full_3x3_stress(atoms.get_stress()) * atoms.cell.volume
        lmp.fix_external_set_energy_global(fix, atoms.get_potential_energy())
        lmp.fix_external_set_virial_global(fix, virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]].tolist())
        f[order] = atoms.get_forces()

    def callback(_: Any, step: int, count: int, tag: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        f[:] = np.nan
        lmp.fix_external_set_energy_global(fix, np.nan)
        try:
            computed(tag, x, f)
        except Exception:
            lmp.lib.lammps_force_timeout(lmp.lmp)
            raise

    lmp.command(f"fix {fix} all external pf/callback 1 1")
    lmp.command(f"fix_modify {fix} energy yes virial yes")
    lmp.set_fix_external_callback(fix, callback, None)


def _box(lmp: Any) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Cell vectors [3, 3] A as rows, the corner [3] A they start from, and which are periodic."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    x, y, z = np.subtract(high, low)
    return np.array([[x, 0, 0], [xy, y, 0], [xz, yz, z]]), np.array(low), [bool(p) for p in periodic]
