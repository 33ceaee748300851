"""Born effective charges for LO-TO splitting: reading a BORN file, and saying when a crystal seems to need one."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from phonopy import Phonopy
from phonopy.file_IO import parse_BORN
from phonopy.structure.symmetry import Symmetry

from equijax.errors import InputError

ELEMENTS = (1, *range(3, 10), *range(11, 18), *range(19, 36), *range(37, 54), *range(55, 85), *range(87, 95))
VALUES = """
    2.20
    0.98 1.57 2.04 2.55 3.04 3.44 3.98
    0.93 1.31 1.61 1.90 2.19 2.58 3.16
    0.82 1.00 1.36 1.54 1.63 1.66 1.55 1.83 1.88 1.91 1.90 1.65 1.81 2.01 2.18 2.55 2.96
    0.82 0.95 1.22 1.33 1.60 2.16 1.90 2.20 2.28 2.20 1.93 1.69 1.78 1.96 2.05 2.10 2.66
    0.79 0.89 1.10 1.12 1.13 1.14 1.13 1.17 1.20 1.20 1.10 1.22 1.23 1.24 1.25 1.10 1.27
    1.30 1.50 2.36 1.90 2.20 2.20 2.28 2.54 2.00 1.62 2.33 2.02 2.00
    0.70 0.90 1.10 1.30 1.50 1.38 1.36 1.28
"""
# Pauling electronegativities by atomic number (CRC Handbook of Chemistry and Physics); elements without one are absent
PAULING = dict(zip(ELEMENTS, map(float, VALUES.split()), strict=True))
POLAR_DIFFERENCE = 0.4  # GaAs has 0.37 and a small splitting, AlN 1.43: above this LO-TO splitting is rarely negligible
NON_METALS = {1, *range(5, 10), *range(14, 18), *range(32, 36), *range(51, 54)}


def set_born(phonon: Phonopy, path: str | Path) -> None:
    """Read a BORN file (phonopy's format) into `phonon.nac_params`.

    Raises:
      FileNotFoundError: no such file.
      InputError: not a BORN file of this crystal; the message names the atoms that need a line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"BORN file {path} does not exist")
    tolerance = phonon.symmetry.tolerance
    independent = Symmetry(phonon.primitive, tolerance).get_independent_atoms()  # isotopes have the same charges
    lines = [line.split("#")[0].split() for line in path.read_text().splitlines()[1:]]
    sizes = [len(line) for line in lines if line]
    expected = [9] * (1 + len(independent))
    if sizes != expected:
        symbols = ", ".join(f"{phonon.primitive.symbols[i]} (atom {i})" for i in independent)
        raise InputError(
            f"{path}: {len(sizes)} lines of {sizes} numbers after the first line, expected {len(expected)} lines of 9: "
            f"the dielectric tensor and one Born charge tensor for each independent atom of the primitive cell: "
            f"{symbols}"
        )
    phonon.nac_params = parse_BORN(phonon.primitive, tolerance, filename=path)


def looks_polar(numbers: Iterable[int]) -> bool:
    """True for a compound with a non-metal whose electronegativities differ enough for LO-TO splitting to matter.

    A rule of thumb: it knows nothing of band gaps, so a metallic compound may be called polar.
    """
    present = set(map(int, numbers))
    values = [PAULING[z] for z in present if z in PAULING]
    return bool(values) and max(values) - min(values) > POLAR_DIFFERENCE and bool(NON_METALS & present)


def warn_polar(phonon: Phonopy, stacklevel: int = 2) -> list[str]:
    """Warn, and return the text, when a compound that looks polar has no Born charges."""
    numbers = np.unique(phonon.primitive.numbers)
    if phonon.nac_params is not None or not looks_polar(numbers):
        return []
    name = "-".join(chemical_symbols[z] for z in numbers)
    text = (
        f"{name} looks polar and no BORN file was given: if it is an insulator, the optical branches lack their LO-TO "
        "splitting at Gamma (--born FILE)"
    )
    warnings.warn(text, stacklevel=stacklevel + 1)
    return [text]
