"""Structures: read from files, checked for disorder, and as phonopy's cells."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import spglib
from ase.data import chemical_symbols
from phonopy.structure.atoms import PhonopyAtoms
from phonopy.structure.cells import guess_primitive_matrix

from equijax.errors import InputError, needed


def read(path: str | Path) -> ase.Atoms:
    """The last structure in a file that ASE reads.

    Raises:
      FileNotFoundError: no such file.
      InputError: a file that ASE cannot read, or a structure that is not ordered: see `check_ordered`.
    """
    return read_all(path, index="-1:")[-1]


def read_all(path: str | Path, index: str = ":") -> list[ase.Atoms]:
    """The structures in a file that ASE reads, at least one; errors as `read`."""
    found = list(images(path, index))
    if not found or not all(len(atoms) for atoms in found):
        raise InputError(f"{path}: no structure, or one without atoms")
    for i, atoms in enumerate(found):
        check_ordered(atoms, f"frame {i} of {path}" if len(found) > 1 else str(path))
    return found


def images(path: str | Path, index: str = ":") -> Iterator[ase.Atoms]:
    """What ASE finds in a file, one after another, unchecked; errors as `read`, where ASE can read no further."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"structure file {path} does not exist")
    try:
        yield from ase.io.iread(path, index)
    # the readers of ASE raise whatever their parsing meets; all of it means an unreadable file
    except Exception as error:
        raise InputError(f"{path}: ASE cannot read it: {error}") from error


def check_ordered(atoms: ase.Atoms, name: str) -> None:
    """Refuse sites that are shared by elements or not always occupied: ASE keeps one full atom there, and says so.

    Raises:
      InputError: such a site, named by its elements and its place.
    """
    kinds = atoms.arrays.get("spacegroup_kinds", np.zeros(0, int))
    sites = atoms.info.get("occupancy")
    for kind, site in (sites if isinstance(sites, dict) else {}).items():
        shares = {symbol: share for symbol, share in site.items() if isinstance(share, int | float)}  # not "?" or "."
        if len(site) > 1 or any(share != 1 for share in shares.values()):
            found = np.flatnonzero(kinds == int(kind))
            place = f"site {kind}" if not len(found) else f"atom {found[0]} at {atoms.get_scaled_positions()[found[0]]}"
            content = " ".join(f"{symbol}{share:g}" for symbol, share in shares.items())
            raise InputError(
                f"{name}: {place} is occupied by {content}, expected one element at every site: replace the disorder "
                "by an ordered supercell, and remove the occupancies from the file"
            )
    shares = np.asarray(atoms.arrays.get("occupancy", []), float)  # of PDB files, where 0 stands for none given
    if len(partly := np.flatnonzero((shares > 0) & (shares < 1))):
        atom = partly[0]
        raise InputError(
            f"{name}: {atoms.symbols[atom]}, atom {atom}, has occupancy {shares[atom]:g}, expected 1: keep one of each "
            "set of alternatives"
        )


def right_handed(atoms: ase.Atoms) -> ase.Atoms:
    """The same crystal, all three vectors of a left-handed cell turned round: phonopy and jax_md need it so."""
    turned = atoms.copy()
    if np.linalg.det(atoms.cell.array) < 0:
        turned.set_cell(-atoms.cell.array)
    return turned


def to_ase(cell: PhonopyAtoms) -> ase.Atoms:
    """A phonopy cell as periodic ase.Atoms, with its masses."""
    return ase.Atoms(
        numbers=cell.numbers, cell=cell.cell, scaled_positions=cell.scaled_positions, masses=cell.masses, pbc=True
    )


def to_phonopy(atoms: ase.Atoms) -> PhonopyAtoms:
    """The same cell for phonopy; masses only where they were set by hand, isotopes as symbols with a number.

    Of a left-handed cell all three vectors are turned round: the same crystal, right-handed as phonopy wants it.

    Raises:
      InputError: not periodic in three directions, or a cell without volume.
    """
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise InputError(
            f"{atoms.get_chemical_formula()} is periodic along {atoms.pbc.tolist()}: phonons need a crystal periodic "
            "in three directions; for a slab or a molecule set a cell with vacuum and pbc=True"
        )
    atoms = right_handed(atoms)
    return PhonopyAtoms(
        symbols=_labels(atoms.numbers, atoms.get_masses()),
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.get_masses() if atoms.has("masses") else None,
    )


def for_spglib(atoms: ase.Atoms, kinds: np.ndarray | None = None) -> Any:
    """Cell, fractional positions and kinds of atoms (their elements by default): what spglib calls a cell.

    Arrays, which it takes, where its annotations ask for lists.
    """
    return atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers if kinds is None else kinds


def space_group_number(atoms: ase.Atoms, symprec: float) -> int:
    """International number at a tolerance in A.

    Raises:
      InputError: spglib finds none.
    """
    found = spglib.get_symmetry_dataset(for_spglib(atoms), symprec)
    message = f"spglib finds no space group of {atoms.get_chemical_formula()} at {symprec} A: use another tolerance"
    return int(needed(found, message).number)


def isotopes(numbers: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """[N] the same number for atoms of one element and one mass (amu)."""
    return np.unique(np.column_stack([numbers, masses]), axis=0, return_inverse=True)[1].ravel()


def mixes_isotopes(numbers: np.ndarray, masses: np.ndarray) -> bool:
    """Whether an element has several masses: the symmetry of the crystal is then not that of its frequencies."""
    return isotopes(numbers, masses).max() + 1 > len(np.unique(numbers))


def _labels(numbers: np.ndarray, masses: np.ndarray) -> list[str]:
    """Chemical symbols, with a number where an element has several masses."""
    symbols = [chemical_symbols[z] for z in numbers]
    if not mixes_isotopes(numbers, masses):
        return symbols
    return [f"{symbol}{kind + 1}" for symbol, kind in zip(symbols, isotopes(numbers, masses), strict=True)]


def primitive_matrix(cell: PhonopyAtoms, primitive: Any = "auto", *, symprec: float = 1e-5) -> Any:
    """phonopy's primitive_matrix with "auto" resolved: the smallest cell that repeats, masses included.

    Args:
      cell: the unit cell.
      primitive: "auto", or anything phonopy takes, which is returned.
      symprec: A, tolerance of the symmetry search.
    """
    if not isinstance(primitive, str) or primitive != "auto":
        return primitive
    kinds = PhonopyAtoms(
        symbols=_labels(cell.numbers, cell.masses), cell=cell.cell, scaled_positions=cell.scaled_positions
    )
    return guess_primitive_matrix(kinds, symprec, distinguish_symbol_index=True)
