"""Files of phonopy and phono3py as they are written: which program's a file is, and what it and those beside it hold.

Everything comes from the file that is named and from files beside it, nothing from the working directory. Values stay
in the units of the file; `equijax.phonons.reference` makes a Phonopy object in eV and A of them.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from phonopy.file_IO import (
    get_io_module_to_decompress,
    get_supported_file_extensions_for_compression,
    parse_FORCE_CONSTANTS,
    parse_FORCE_SETS,
    read_force_constants_hdf5,
)
from phonopy.interface.calculator import get_force_constant_conversion_factor, read_crystal_structure
from phonopy.interface.phonopy_yaml import PhonopyYamlData, load_phonopy_yaml, load_yaml

from equijax.errors import InputError

Stored = Any  # PhonopyYamlData or that of phono3py, in the units of the file
PACKED = tuple(filter(None, get_supported_file_extensions_for_compression()))  # .xz, .gz, ...
HEADER_LINES = 20  # among which a yaml says whose it is
SYMPREC_A = 1e-5  # phonopy's, where a file states none
DESCRIPTIONS = {  # of a crystal, by program
    "phonopy": ("phonopy_disp.yaml", "phonopy_params.yaml", "phonopy.yaml", "POSCAR-unitcell", "POSCAR"),
    "phono3py": ("phono3py_disp.yaml", "phono3py_params.yaml", "phono3py.yaml"),
}


def program_of(path: str | Path) -> str | None:
    """ "phonopy" or "phono3py" for one of their files, by its name and, for a yaml, its first lines; else None."""
    if _is_yaml(path):
        with get_io_module_to_decompress(path).open(path, "rt") as file:
            for _, line in zip(range(HEADER_LINES), file, strict=False):
                if line.startswith(("phonopy:", "phono3py:")):
                    return line.split(":")[0]
        return None
    return next((program for program, readers in VALUES.items() if _reader(path, readers)), None)


def files_of(path: Path) -> list[Path]:
    """A file of phonopy or phono3py, and those beside it that may hold the rest of what is read with it."""
    program = program_of(path)
    names = () if program is None else (*DESCRIPTIONS[program], *VALUES[program])
    return [path, *(found for found in _beside(path, names) if found != path)]


def has_forces(dataset: Mapping[str, Any] | None) -> bool:
    """Whether a displacement dataset of phonopy has the forces of at least one displacement."""
    if dataset is None:
        return False
    return "forces" in dataset or any("forces" in entry for entry in dataset.get("first_atoms", ()))


def stored_in(path: Path, program: str) -> tuple[Stored, float]:
    """What a file and those beside it hold, in the units of the program that made it, and the symmetry tolerance."""
    if _is_yaml(path):
        stored, tolerance = _described(path)
        if stored.force_constants is None and not has_forces(stored.dataset):
            values = _beside(path, VALUES[program])
            if not any(_enter(stored, value, program=program) for value in values):
                raise InputError(
                    f"{path}: neither forces nor force constants in it, nor any of "
                    f"{', '.join(VALUES[program])} beside it that belong to it"
                )
    else:
        names = DESCRIPTIONS[program]
        if not (found := _beside(path, names)):
            raise FileNotFoundError(f"{path} needs the structure it belongs to: one of {', '.join(names)} beside it")
        stored, tolerance = _described(found[0])
        if not _enter(stored, path, program=program):
            raise InputError(f"{path}: not the forces of the supercell for phonons in {found[0].name}")
    return stored, tolerance


def plain_name(path: str | Path) -> str:
    """A file's name without the ending of a compressed one."""
    path = Path(path)
    return path.stem if path.suffix in PACKED else path.name


def _is_yaml(path: str | Path) -> bool:
    return plain_name(path).endswith((".yaml", ".yml"))


def _reader(path: str | Path, readers: dict[str, "Reader"]) -> "Reader | None":
    """The reader whose name a file has, perhaps with something after it."""
    return next((reader for name, reader in readers.items() if plain_name(path).startswith(name)), None)


def _enter(stored: Stored, path: Path, *, program: str) -> bool:
    """Enter what a file beside a description holds; False where it does not belong to it."""
    reader = _reader(path, VALUES[program])
    return reader is not None and reader(stored, path)


def _beside(path: Path, names: Iterable[str]) -> list[Path]:
    """The existing ones of some files in the folder of `path`, compressed or not."""
    candidates = (path.with_name(name + extension) for name in names for extension in ("", *PACKED))
    return [candidate for candidate in candidates if candidate.is_file()]


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The file itself, or a plain copy of a compressed one."""
    if path.suffix not in PACKED:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, get_io_module_to_decompress(path).open(path, "rb") as file:
        copy = Path(folder) / path.stem
        copy.write_bytes(file.read())
        yield copy


def _described(path: Path) -> tuple[Stored, float]:
    """Crystal, supercell and what else a file holds, in its own units, and the symmetry tolerance."""
    if not _is_yaml(path):
        cell, _ = read_crystal_structure(path, interface_mode="vasp")
        matrix, tolerance = _configured(path)
        return PhonopyYamlData(unitcell=cell, supercell_matrix=matrix), tolerance
    document = load_yaml(path)
    third = "phono3py" in document
    stored = _third_order(path, document) if third else load_phonopy_yaml(document)
    if stored.unitcell is None or stored.supercell_matrix is None:
        raise InputError(f"{path}: no unit cell or supercell matrix")
    if stored.unitcell.is_site_mixture:
        raise InputError(f"{path}: a crystal with mixed sites, expected one element at every site")
    return stored, float(document["phono3py" if third else "phonopy"].get("symmetry_tolerance", SYMPREC_A))


def _configured(path: Path) -> tuple[np.ndarray, float]:
    """Supercell matrix and symmetry tolerance of the .conf files beside a POSCAR."""
    tags: dict[str, set[str]] = {"DIM": set(), "TOLERANCE": set()}
    for conf in path.parent.glob("*.conf"):
        for tag, value in re.findall(r"^\s*(\w+)\s*=([^#\n]*)", conf.read_text(), re.MULTILINE):
            tags.setdefault(tag.upper(), set()).add(" ".join(value.split()))
    numbers = [int(n) for n in next(iter(tags["DIM"]), "").split()]
    if len(tags["DIM"]) != 1 or len(numbers) not in (3, 9):
        raise FileNotFoundError(
            f"{path}: {len(tags['DIM'])} supercells (DIM) in .conf files beside it, expected one, of 3 or 9 integers: "
            "put phonopy_disp.yaml there, or phonopy.conf with the DIM that the forces were made with"
        )
    if len(tags["TOLERANCE"]) > 1:
        raise InputError(
            f"{path}: symmetry tolerances {', '.join(sorted(tags['TOLERANCE']))} (TOLERANCE) in .conf files beside it, "
            "expected one: keep the .conf that the forces were made with"
        )
    matrix = np.diag(numbers) if len(numbers) == 3 else np.reshape(numbers, (3, 3))
    return matrix, float(next(iter(tags["TOLERANCE"]), SYMPREC_A))


def _third_order(path: Path, document: dict) -> Stored:
    """What phono3py stores, cut to its supercell of phonons where it has a larger one for them."""
    try:
        from phono3py.interface.phono3py_yaml import load_phono3py_yaml
    except ImportError as error:
        raise InputError(f"{path}: a file of phono3py needs phono3py: pip install 'equijax[kappa]'") from error
    stored: Stored = load_phono3py_yaml(document)
    if stored.phonon_supercell_matrix is not None:
        stored.supercell_matrix, stored.supercell = stored.phonon_supercell_matrix, stored.phonon_supercell
        stored.dataset = stored.phonon_dataset
    return stored


def _force_sets(stored: Stored, path: Path) -> bool:
    number = len(stored.unitcell) * abs(round(np.linalg.det(stored.supercell_matrix)))
    with _unpacked(path) as plain:
        stored.dataset, stored.force_constants = parse_FORCE_SETS(plain, natom=number), None
    return True


def _force_constants(stored: Stored, path: Path) -> bool:
    with _unpacked(path) as plain:
        stored.force_constants = parse_FORCE_CONSTANTS(plain)
    return True


def _hdf5(stored: Stored, path: Path) -> bool:
    with _unpacked(path) as plain:
        values, unit = read_force_constants_hdf5(plain, return_physical_unit=True)
    unit = "eV/angstrom^2" if unit is None and stored.command_name == "phono3py" else unit  # all of its are
    factor = 1.0 if unit is None else get_force_constant_conversion_factor(unit, stored.calculator)
    stored.force_constants = factor * values
    return True


def _phono3py_forces(stored: Stored, path: Path) -> bool:
    """FORCES_FC2 or FORCES_FC3; False where they belong to the other one of phono3py's supercells."""
    from phono3py.file_IO import parse_FORCES_FC2, parse_FORCES_FC3

    of_phonons = plain_name(path).startswith("FORCES_FC2")
    if of_phonons != (stored.phonon_supercell_matrix is not None):
        return False
    with _unpacked(path) as plain:
        first = next((line for line in plain.read_text().splitlines() if line.strip() and line[0] != "#"), "")
        if len(first.split()) == 6:  # displacement and force of each atom
            return _force_sets(stored, plain)
        if stored.dataset is None or "first_atoms" not in stored.dataset:
            raise InputError("the displacements of these forces are not in the yaml beside them")
        (parse_FORCES_FC2 if of_phonons else parse_FORCES_FC3)(stored.dataset, plain)
    return True


Reader = Callable[[Stored, Path], bool]  # enters what a file holds; whether it belongs there
VALUES: dict[str, dict[str, Reader]] = {  # by program, best first
    "phonopy": {
        "FORCE_SETS": _force_sets,
        "FORCE_CONSTANTS": _force_constants,
        "force_constants.hdf5": _hdf5,
    },
    "phono3py": {"FORCES_FC2": _phono3py_forces, "FORCES_FC3": _phono3py_forces, "fc2.hdf5": _hdf5},
}
