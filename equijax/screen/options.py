"""Options of a screening run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from equijax.errors import InputError


@dataclass(frozen=True)
class ScreenConfig:
    """Relax many crystals and compute their phonons, over the processes of this machine or of a cluster.

    A second start with the same --out and options computes what is missing.

    Raises:
      InputError: a number that cannot be.
    """

    structures: tuple[Path, ...]
    """Files that ASE reads, every frame of each; of folders, all files below them."""
    model: Path
    """Model directory, under the same path on every worker."""
    out: Path = Path("screen_output")
    """Folder for the store, results.parquet."""
    task: Literal["phonons", "relax"] = "phonons"
    """Phonons of the relaxed crystals, or relaxations alone."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786; without one, processes of this machine."""
    workers: int = 1
    """Processes of this machine, each with its share of the cores."""
    retry: bool = False
    """Compute those again that failed."""
    head: str | None = None
    """Head of a model that has several."""
    relax: bool = True
    """Relax each crystal first, keeping its symmetry; without, forces above 0.05 eV/A are an error."""
    fixed_cell: bool = False
    """Relax the ions alone."""
    fmax: float = 1e-4
    """eV/A, where a relaxation stops."""
    steps: int = 500
    """Of a relaxation, at most; a crystal that needs more has failed."""
    symprec: float = 1e-5
    """A, tolerance of the symmetry search."""
    supercell: tuple[int, ...] | None = None
    """3 or 9 integers, for every crystal; by default each has its own, by --length."""
    length: float = 10.0
    """A: the smallest diagonal supercell whose images are so far apart in every direction."""
    mesh: tuple[int, int, int] = (11, 11, 11)
    """Gamma-centred q mesh of lowest frequencies and thermal properties."""
    temperature: float = 300.0
    """K, of the thermal properties."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of the force constants; relaxations are float64."""
    memory: float | None = None
    """GB a worker may use for rows of derivatives; by default most of what is free, shared by --workers."""

    def __post_init__(self) -> None:
        if self.task == "relax" and not self.relax:
            raise InputError("--task relax --no-relax computes nothing: leave one out")
        for name in ("workers", "fmax", "steps", "length"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} = {getattr(self, name)} must be positive")
        if self.temperature < 0 or min(self.mesh) < 1:
            raise InputError(
                f"temperature {self.temperature} K, mesh {self.mesh}: expected 0 K or more, 1 point or more"
            )


# What may differ when a run is continued: it changes no result but in its last digits.
MAY_CHANGE = frozenset({"structures", "out", "scheduler", "workers", "retry", "memory"})
