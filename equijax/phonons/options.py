"""Options of a phonon run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class PhononsConfig:
    """Force constants, band structure, density of states and thermal properties of a crystal."""

    structure: Path
    """Any file ASE reads; its last image is used."""
    model: Path
    """Model directory written by `python -m convert`."""
    supercell: tuple[int, ...]
    """3 or 9 integers."""
    out: Path = Path("phonons_output")
    """Folder for the results."""
    relax: bool = False
    """Relax cell and ions first, keeping the symmetry."""
    allow_unrelaxed: bool = False
    """Go on where forces are above 0.05 eV/A."""
    fmax: float = 1e-4
    """eV/A, where the relaxation stops."""
    fixed_cell: bool = False
    """Relax the ions alone."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of the model; everything after it is float64."""
    fast: bool = False
    """Specialise the model for the structure's elements first: faster, and the errors are printed and reported."""
    memory: float | None = None
    """GB a device may use for Hessian rows; by default most of what is free."""
    projection: Literal["none", "symfc", "phonopy"] = "none"
    """Impose sum rules and symmetry on the force constants; the raw residuals are reported in any case."""
    born: Path | None = None
    """BORN file (phonopy's format) for LO-TO splitting."""
    mesh: tuple[int, int, int] = (20, 20, 20)
    """Gamma-centred q mesh of the density of states and the thermal properties."""
    temperature: tuple[float, float, float] = (0.0, 1000.0, 10.0)
    """K: first, last, step."""
    symprec: float = 1e-5
    """A, tolerance of the symmetry search."""
    primitive: Literal["auto", "P"] = "auto"
    """"auto" finds the primitive cell; "P" takes the structure as it is."""
    full: bool = False
    """Full instead of compact force constants."""
    check: bool = True
    """Compare one random column of the force constants with finite differences."""
    seed: int = 0
    """Of that column."""
    head: str | None = None
    """Head of a model that has several."""
