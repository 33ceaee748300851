"""Options of a molecular dynamics run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from equijax.errors import InputError


@dataclass(frozen=True)
class MDConfig:
    """Molecular dynamics of one structure."""

    structure: Path
    """Any file ASE reads. Its momenta, less their drift, serve one replica of one cell; its fixed atoms stay."""
    model: Path
    """Model directory."""
    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    """NPT scales the cell isotropically."""
    temperature: float = 300.0
    """K. In NVE that of the momenta drawn: a relaxed crystal settles at about half of it."""
    pressure: float = 0.0
    """GPa, NPT only."""
    steps: int = 1000
    """Number of the last step; a continued run goes on until there."""
    timestep: float = 1.0
    """fs."""
    thermostat: Literal["nose-hoover", "langevin"] = "nose-hoover"
    """NVT only."""
    thermostat_time: float = 100.0
    """fs: period of the Nose-Hoover chain, or inverse friction of Langevin."""
    barostat_time: float = 1000.0
    """fs."""
    replicas: int = 1
    """Copies with momenta and noise of their own, advanced in one program; each writes its own files."""
    repeat: tuple[int, int, int] = (1, 1, 1)
    """Repeat the cell along its vectors."""
    out: Path = Path("md_output")
    """Output folder."""
    trajectory: Literal["extxyz", "h5"] = "extxyz"
    """File format; h5 follows H5MD. A run that is killed while it writes h5 may leave a file that --restart refuses;
    extxyz is continued whenever the run was killed."""
    log_every: int = 100
    """Steps between rows of the thermo log; also the length of a compiled block."""
    trajectory_every: int = 100
    """Steps between frames, a multiple of log_every."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, a multiple of log_every; one is always written at the end."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of everything: float64 for strict energy conservation."""
    fast: bool = False
    """Specialise the model for the structure's elements: several times faster, errors printed at the start."""
    skin: float = 0.5
    """A beyond the cutoff that a neighbour list covers."""
    head: str | None = None
    """Head of a model that has several."""
    seed: int = 0
    """Of initial momenta and of Langevin noise."""
    restart: bool = False
    """Continue from the output folder's checkpoint."""

    def __post_init__(self) -> None:
        positive = ("timestep", "steps", "thermostat_time", "barostat_time", "skin", "log_every", "replicas")
        for name in positive:
            if not getattr(self, name) > 0:
                raise InputError(f"{name} = {getattr(self, name)}: expected a positive number")
        if not self.temperature >= 0 or (self.ensemble != "nve" and self.temperature == 0):
            raise InputError(f"temperature = {self.temperature} K: expected a positive number")
        for name in ("trajectory_every", "checkpoint_every"):
            if getattr(self, name) < 1 or getattr(self, name) % self.log_every:
                raise InputError(f"{name} = {getattr(self, name)}: expected a multiple of log_every = {self.log_every}")
