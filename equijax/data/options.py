"""Options that programs on labelled structures share, and those that make structures to label."""

from dataclasses import dataclass
from pathlib import Path

from equijax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Names of the labels in a file, the same options in every program; "none" reads nothing."""

    energy_key: str = "auto"
    """Name of the total energy (eV) in extxyz files; auto: REF_energy, else ASE's own; none: do not read."""
    forces_key: str = "auto"
    """Name of the forces (eV/A); auto: REF_forces or REF_force, else forces or force."""
    stress_key: str = "auto"
    """Name of the stress (eV/A^3, positive under tension, as ASE's); auto: REF_stress, else stress."""
    virials_key: str = "auto"
    """Name of the virials (eV), stress = -virials / volume where there is no stress; auto: REF_virials or REF_virial,
    else virials or virial."""
    weight_key: str = "auto"
    """Name of a structure's weight in the loss; auto: config_weight or weight, and config_energy_weight,
    config_forces_weight, config_stress_weight and config_virials_weight for its labels."""
    head_key: str = "auto"
    """Name of the head of the model that a structure belongs to; auto: head."""


@dataclass(frozen=True)
class RattleConfig:
    """Make rattled and strained supercells of a crystal and pick the ones that differ most."""

    structure: Path
    """Crystal: any file ASE reads (POSCAR, cif, extxyz, ...)."""
    out: Path
    """Folder for structures.extxyz, poscars/POSCAR-001 ... and report.json."""
    number: int = 10
    """Structures to pick."""
    candidates: int = 100
    """Structures to pick from."""
    supercell: tuple[int, int, int] | None = None
    """Repetitions along the cell vectors; by default the fewest that give --min-length."""
    min_length: float = 8.0
    """Smallest height of the supercell, A, where --supercell is not given."""
    rattle: tuple[float, ...] = (0.02, 0.05, 0.1)
    """Standard deviations of the displacements, A; candidates take them in turn."""
    strain: float = 0.03
    """Largest component of the symmetric strain; each candidate draws its own, 0 for none."""
    min_distance: float = 0.7
    """Shortest distance allowed, relative to the shortest in the crystal."""
    model: Path | None = None
    """Checkpoint: also take the frames of relaxations that start from rattled supercells."""
    relaxations: int = 3
    """Relaxations to take frames of, with --model."""
    relaxation_steps: int = 30
    """Steps of each."""
    head: str | None = None
    """Head of a model that has several."""
    seed: int = 0
    """Of all draws."""

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.candidates:
            raise InputError(f"number {self.number} must be between 1 and the {self.candidates} candidates")
        if not self.rattle or min(self.rattle) < 0 or not 0 <= self.strain < 0.3:
            raise InputError(f"rattle {self.rattle} must not be negative and strain {self.strain} be in [0, 0.3)")
        if not 0 <= self.min_distance < 1:
            raise InputError(f"min_distance {self.min_distance} must be in [0, 1)")
