"""Reference phonons: files of phonopy and phono3py in, a Phonopy object in eV and A out."""

from pathlib import Path

import numpy as np
import yaml
from phonopy import Phonopy
from phonopy.interface.calculator import get_force_constant_conversion_factor
from phonopy.physical_units import get_calculator_physical_units
from phonopy.structure.atoms import PhonopyAtoms
from phonopy.structure.symmetry import Symmetry

from equijax import structures
from equijax.errors import InputError, needed
from equijax.phonons import projection
from equijax.phonons.files import DESCRIPTIONS, VALUES, Stored, has_forces, plain_name, program_of, stored_in
from equijax.phonons.force_constants import compact

SAME_A = 1e-3  # two supercells are one where no atom differs by more
# what the readers of phonopy and phono3py raise when a file is not what they expect
UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    OSError,
    yaml.YAMLError,
)


def read(path: str | Path) -> Phonopy:
    """A Phonopy object with the forces or force constants of a file, in eV and A, and Born charges where it has them.

    Args:
      path: a yaml of phonopy; FORCE_SETS, FORCE_CONSTANTS or force_constants.hdf5 beside one, or beside POSCAR and a
        .conf with DIM; of phono3py, which must be installed, the harmonic part of a yaml, FORCES_FC2, FORCES_FC3 or
        fc2.hdf5. All may be compressed. Symmetry tolerance and units are those that the yaml states; where it holds
        no forces they are looked for beside it.

    Raises:
      FileNotFoundError: no such file, or nothing beside it that describes the crystal.
      InputError: unreadable, neither forces nor force constants, or values that do not fit the crystal.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    program = program_of(path)
    if program is None:
        raise InputError(f"{path}: not a file of phonopy or phono3py, such as phonopy.yaml or FORCE_SETS")
    try:
        stored, tolerance = stored_in(path, program)
        return _phonon(_in_eV_A(stored), tolerance, path=path)
    except UNREADABLE as error:
        if isinstance(error, FileNotFoundError) or str(error).startswith(str(path.parent)):
            raise
        raise InputError(f"{path}: {program} cannot use it: {' '.join(str(error).split())}") from error


def harmonic(path: str | Path) -> Phonopy:
    """`read`, with force constants [n_p, n_s, 3, 3] or full, made from the forces where the file stores none."""
    phonon = read(path)
    produce(phonon, path)
    return phonon


def produce(phonon: Phonopy, source: str | Path) -> None:
    """Force constants of `phonon` from its forces, sum rules and symmetry imposed, unless it has some.

    Random displacements are fitted by symfc, those of single atoms solved for by phonopy.

    Raises:
      InputError: displacements without forces, or too few of them.
    """
    if phonon.force_constants is not None:
        return
    dataset = needed(phonon.dataset, f"{source} has neither force constants nor displacements")
    entries = dataset.get("first_atoms", ())
    if missing := sum("forces" not in entry for entry in entries):
        raise InputError(f"{source}: {missing} of {len(entries)} displacements have no forces")
    cells = projection.Cells(phonon.supercell, phonon.primitive, phonon.symmetry)
    try:
        if entries:
            phonon.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
            phonon.force_constants = projection.project(compact(phonon), cells)
        else:
            phonon.force_constants = projection.fit(dataset, cells)
    except (*UNREADABLE, np.linalg.LinAlgError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{source}: its displacements do not give force constants: {text}") from error


def name_of(phonon: Phonopy, path: str | Path) -> str:
    """What a crystal is called: folder, file unless phonopy names all such files so, and formula."""
    path = Path(path).resolve()
    common = {Path(name).stem for program in VALUES for name in (*DESCRIPTIONS[program], *VALUES[program])}
    stem = Path(plain_name(path)).stem
    file = "" if stem in common else "/" + stem.removesuffix("_phonopy")
    formula = structures.to_ase(phonon.primitive).symbols.formula.reduce()[0].format("metal")
    return f"{path.parent.name}{file} {formula}"


def _in_eV_A(stored: Stored) -> Stored:
    """The same in eV, A and their combinations, from the units of the program that made the forces."""
    units = get_calculator_physical_units(stored.calculator)
    length, constants = units.distance_to_A, get_force_constant_conversion_factor(units.force_constants_unit, None)
    factors = {"displacement": length, "forces": units.force_to_eVperA, "supercell_energy": units.energy_to_eV}
    factors |= {"displacements": length, "supercell_energies": units.energy_to_eV}

    def scaled(entry: dict) -> dict:
        return {k: factors[k] * np.asarray(x) for k, x in entry.items() if k in factors}

    for cell in (stored.unitcell, stored.supercell):
        if cell is not None:
            cell.cell = length * cell.cell
    if stored.dataset is not None:
        entries = stored.dataset.get("first_atoms")
        stored.dataset = (
            scaled(stored.dataset)
            if entries is None
            else {
                "natom": stored.dataset["natom"],
                "first_atoms": [scaled(entry) | {"number": entry["number"]} for entry in entries],
            }
        )
    if stored.force_constants is not None:
        stored.force_constants = constants * stored.force_constants
    if stored.nac_params is not None:  # a force constant times a volume
        stored.nac_params["factor"] = stored.nac_params.get("factor", units.nac_factor) * constants * length**3
    return stored


def _phonon(stored: Stored, tolerance: float, *, path: Path) -> Phonopy:
    """A Phonopy object of values in eV and A.

    Raises:
      InputError: values of another number of atoms, or a supercell that phonopy would order differently.
    """
    primitive = structures.primitive_matrix(stored.unitcell, symprec=tolerance)
    primitive = primitive if stored.primitive_matrix is None else stored.primitive_matrix
    for snf in (False, True):  # phonopy has two ways to number the atoms of a supercell
        phonon = Phonopy(
            stored.unitcell,
            stored.supercell_matrix,
            primitive_matrix=primitive,
            symprec=tolerance,
            use_SNF_supercell=snf,
            log_level=0,
        )
        if stored.supercell is None or _same(stored.supercell, phonon.supercell):
            break
    else:
        raise InputError(f"{path}: its supercell is not the one that phonopy makes of its unit cell")
    dataset, constants, n = stored.dataset, stored.force_constants, len(phonon.supercell)
    if has_forces(dataset):
        entries = dataset.get("first_atoms", [{"forces": forces} for forces in dataset.get("forces", ())])
        shapes = {entry["forces"].shape for entry in entries if "forces" in entry}
        if shapes != {(n, 3)}:
            raise InputError(f"{path}: forces of shape {sorted(shapes)}, expected ({n}, 3) of the supercell")
    if constants is not None and constants.shape[:2] not in ((n, n), (len(phonon.primitive), n)):
        raise InputError(
            f"{path}: force constants of shape {constants.shape}, expected ({n}, {n}, 3, 3) or "
            f"({len(phonon.primitive)}, {n}, 3, 3)"
        )
    phonon.dataset = dataset
    if constants is None and stored.command_name == "phono3py" and "displacements" in (dataset or {}):
        constants = _fit_with_third_order(phonon, stored)
    if constants is not None:
        phonon.force_constants = constants
    if stored.nac_params is not None:
        phonon.nac_params = stored.nac_params
    return phonon


def _same(a: PhonopyAtoms, b: PhonopyAtoms) -> bool:
    """Whether two cells hold the same atoms in the same order."""
    if len(a) != len(b) or (a.numbers != b.numbers).any() or np.abs(a.cell - b.cell).max() > SAME_A:
        return False
    apart = a.scaled_positions - b.scaled_positions
    return bool(np.abs((apart - np.rint(apart)) @ b.cell).max() < SAME_A)


def _fit_with_third_order(phonon: Phonopy, stored: Stored) -> np.ndarray:
    """Second-order force constants of random displacements large enough for third order, which is fitted beside."""
    from phono3py import Phono3py

    tolerance = phonon.symmetry.tolerance
    cell = projection.exact(stored.unitcell, Symmetry(stored.unitcell, tolerance))
    ph3 = Phono3py(
        cell, stored.supercell_matrix, primitive_matrix=phonon.primitive_matrix, symprec=tolerance, log_level=0
    )
    ph3.dataset = stored.dataset
    ph3.produce_fc3(fc_calculator="symfc")
    return needed(ph3.fc2, "phono3py made no force constants of second order")
