"""Options of the runs on a crystal: phonons, conductivity, thermal expansion, soft modes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class CrystalConfig:
    """A crystal and a model."""

    structure: Path
    """Any file ASE reads; its last image is used."""
    model: Path
    """Model directory written by `python -m convert`."""
    head: str | None = None
    """Head of a model that has several."""


@dataclass(frozen=True, kw_only=True)
class ForceConstantsConfig(CrystalConfig):
    """Force constants of a crystal on a supercell."""

    supercell: tuple[int, ...]
    """3 or 9 integers."""
    relax: bool = False
    """Relax cell and ions first, keeping the symmetry."""
    allow_unrelaxed: bool = False
    """Go on where forces are above 0.05 eV/A."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of the model; everything after it is float64."""
    memory: float | None = None
    """GB a device may use for rows of derivatives; by default most of what is free."""
    born: Path | None = None
    """BORN file (phonopy's format) for LO-TO splitting."""
    symprec: float = 1e-5
    """A, tolerance of the symmetry search."""


@dataclass(frozen=True, kw_only=True)
class PhononsConfig(ForceConstantsConfig):
    """Force constants, band structure, density of states and thermal properties of a crystal."""

    out: Path = Path("phonons_output")
    """Folder for the results."""
    fmax: float = 1e-4
    """eV/A, where the relaxation stops."""
    fixed_cell: bool = False
    """Relax the ions alone."""
    fast: bool = False
    """Specialise the model for the structure's elements first: faster, and the errors are printed and reported."""
    projection: Literal["none", "symfc", "phonopy"] = "none"
    """Impose sum rules and symmetry on the force constants; the raw residuals are reported in any case."""
    mesh: tuple[int, int, int] = (20, 20, 20)
    """Gamma-centred q mesh of the density of states and the thermal properties."""
    temperature: tuple[float, float, float] = (0.0, 1000.0, 10.0)
    """K: first, last, step."""
    primitive: Literal["auto", "P"] = "auto"
    """"auto" finds the primitive cell; "P" takes the structure as it is."""
    full: bool = False
    """Full instead of compact force constants."""
    check: bool = True
    """Compare one random column of the force constants with finite differences."""
    seed: int = 0
    """Of that column."""


@dataclass(frozen=True, kw_only=True)
class KappaConfig(ForceConstantsConfig):
    """Third-order force constants and lattice thermal conductivity of a crystal (extra `kappa`)."""

    phonon_supercell: tuple[int, ...] | None = None
    """3 or 9 integers: of the second-order force constants; by default the same as of the third-order ones."""
    out: Path = Path("kappa_output")
    """Folder for the results."""
    fmax: float = 1e-5
    """eV/A, where the relaxation stops."""
    projection: Literal["none", "symfc"] = "none"
    """Impose sum rules and symmetry on the force constants; the raw residuals are reported in any case."""
    mesh: tuple[int, int, int] = (11, 11, 11)
    """q mesh of the Boltzmann equation."""
    temperatures: tuple[float, ...] = (100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0)
    """K."""
    method: Literal["rta", "lbte"] = "rta"
    """Relaxation time approximation, or the linearised Boltzmann equation solved directly."""
    isotope: bool = False
    """Natural isotopes scatter too."""


@dataclass(frozen=True, kw_only=True)
class ExpansionConfig(CrystalConfig):
    """Mode Grueneisen parameters and quasi-harmonic thermal expansion of a crystal.

    Cell and ions are relaxed first, keeping the symmetry.
    """

    supercell: tuple[int, ...]
    """3 or 9 integers."""
    out: Path = Path("expansion_output")
    """Folder for the results."""
    strains: tuple[float, ...] = (-0.03, -0.015, 0.0, 0.015, 0.03, 0.045, 0.06)
    """Volume strains dV / V, at least 5."""
    mesh: tuple[int, int, int] = (21, 21, 21)
    """q mesh of the free energy, odd numbers."""
    gruneisen_mesh: tuple[int, int, int] = (8, 8, 8)
    """q mesh of the Grueneisen parameters."""
    temperatures: tuple[float, float, float] = (0.0, 1000.0, 10.0)
    """K: first, last, step."""
    fmax: float = 1e-5
    """eV/A, where relaxations stop."""


@dataclass(frozen=True, kw_only=True)
class ModesConfig(CrystalConfig):
    """Follow the soft modes of a crystal to the phases they lead to."""

    out: Path = Path("modes_output")
    """Folder for structures, plots and the table."""
    mesh: tuple[int, int, int] = (2, 2, 2)
    """Modes commensurate with this supercell of the primitive cell are looked at; later rounds keep its extent."""
    threshold: float = 0.2
    """THz: a mode is unstable below minus this."""
    rounds: int = 3
    """At most."""
    keep: int = 2
    """Lowest unstable phases of a round that the next one starts from."""
    max_modes: int = 3
    """Order parameters followed in one structure, most unstable first."""
    max_directions: int = 6
    """Distortions followed for one order parameter, smallest cells and highest symmetries first."""
    max_atoms: int = 40
    """Largest cell."""
    random_directions: int = 4
    """Directions of low symmetry tried beside the special ones."""
    fmax: float = 1e-3
    """eV/A, where relaxations stop."""
    steps: int = 300
    """Of a relaxation, at most."""
    fixed_cell: bool = False
    """Relax the ions alone."""
    reference: Path | None = None
    """Structures known to be stable; the phases found are scored against them."""
    seed: int = 0
    """Of the random directions."""
