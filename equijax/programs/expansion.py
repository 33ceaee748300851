"""`python -m equijax.expansion STRUCTURE --model DIR --supercell 3 3 3`: Grueneisen parameters, thermal expansion."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from equijax import forcefield, graph, outputs, structures
from equijax.config import Compute
from equijax.phonons import certificate, force_constants, volumes
from equijax.phonons.certificate import timed
from equijax.programs import runner
from equijax.relax import symmetric
from equijax.units import GPA_PER_EV_A3


@dataclass(frozen=True)
class ExpansionConfig:
    """Mode Grueneisen parameters and quasi-harmonic thermal expansion of a crystal."""

    structure: Annotated[Path, tyro.conf.Positional]
    """Any file ASE reads; its last image is used. Cell and ions are relaxed first, keeping the symmetry."""
    model: Path
    """Model directory written by `python -m convert`."""
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
    head: str | None = None
    """Head of a model that has several."""


@runner.program("equijax expansion")
def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print its summary."""
    config = runner.options(ExpansionConfig, argv, "equijax expansion")
    print(summary(run(config)))
    print(f"Everything is in {config.out}")
    return 0


@outputs.locked
def run(config: ExpansionConfig) -> dict:
    """The whole run; returns what report.json holds.

    Raises:
      ValueError, MemoryError, FileNotFoundError: unusable input, before work starts.
    """
    seconds: dict[str, float] = {}
    ff, atoms = forcefield.load(config.model, head=config.head), structures.read(config.structure)
    graph.check_atoms(atoms, ff.config, str(config.structure))
    phonon = force_constants.make_phonon(atoms, config.supercell)
    for mesh in (config.gruneisen_mesh, config.mesh):
        force_constants.check_mesh(phonon.supercell, phonon.primitive, mesh)
    volumes.check_strains(config.strains)
    first, last, step = config.temperatures
    with timed(seconds, "relaxation"):
        atoms, relaxation = symmetric.relax(ff, atoms, fmax=config.fmax, compute=Compute(progress=True))
    with timed(seconds, "Grueneisen parameters"):
        modes = volumes.gruneisen(ff, atoms, config.supercell, mesh=config.gruneisen_mesh)
    with timed(seconds, "quasi-harmonic approximation"):
        temperatures = np.arange(first, last + 1.5 * step, step)  # phonopy drops the last one
        cells, energies = volumes.series(ff, atoms, config.supercell, config.strains, fmax=config.fmax)
        found = volumes.quasi_harmonic(cells, energies, temperatures=temperatures, mesh=config.mesh)
    n, moving = len(found.thermal_expansion), np.isfinite(modes.parameters)
    weights = np.broadcast_to(modes.weights[:, None], moving.shape)
    columns = {
        "temperature_K": temperatures[:n],
        "volume_A3_per_primitive_cell": found.equilibrium_volumes[:n],
        "volume_expansion_1/K": found.thermal_expansion,
        "bulk_modulus_GPa": found.bulk_moduli[:n] * GPA_PER_EV_A3,
    }
    report = certificate.provenance(ff) | {
        "formula": atoms.get_chemical_formula(),
        "options": asdict(config),
        "relaxation": relaxation,
        "mean_gruneisen": float(np.average(modes.parameters[moving], weights=weights[moving])),
        "lowest_THz": float(modes.frequencies[moving].min()),
        "table": columns,
        "seconds": seconds,
    }
    write(report, modes, config.out)
    return report


def write(report: dict, modes: volumes.Gruneisen, folder: Path) -> None:
    """expansion.csv, gruneisen.csv, expansion.png, report.json."""
    table = report["table"]
    with outputs.beside(folder / "expansion.csv") as part, open(part, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(table)
        rows.writerows([f"{x:.10g}" for x in row] for row in zip(*table.values(), strict=True))
    shown = np.isfinite(modes.parameters)
    frequencies, parameters = modes.frequencies[shown], modes.parameters[shown]
    with outputs.beside(folder / "gruneisen.csv") as part:
        np.savetxt(part, np.column_stack([frequencies, parameters]), delimiter=",", fmt="%.10g",
                   header="frequency_THz,gruneisen", comments="")  # fmt: skip
    import matplotlib.pyplot as plt  # only where a figure is drawn

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    axes[0].plot(frequencies, parameters, ".", ms=3)
    axes[0].set(xlabel="frequency (THz)", ylabel="mode Grüneisen parameter", title=report["formula"])
    axes[1].plot(table["temperature_K"], 1e6 * table["volume_expansion_1/K"])
    axes[1].set(xlabel="temperature (K)", ylabel="volume expansion (10$^{-6}$/K)")
    with outputs.beside(folder / "expansion.png") as part:
        figure.savefig(part, dpi=90)
    plt.close(figure)
    certificate.write(report, folder / "report.json")


def summary(report: dict) -> str:
    """The lines printed at the end of a run."""
    table = report["table"]
    at = int(np.abs(table["temperature_K"] - 300).argmin())
    return "\n".join(
        [
            f"{report['formula']}, {report['relaxation']['space_group_after']}: "
            f"lowest mode {report['lowest_THz']:.3f} THz",
            f"  mean Grueneisen parameter {report['mean_gruneisen']:.3f} (acoustic modes at Gamma left out)",
            f"  at {table['temperature_K'][at]:g} K: volume expansion {1e6 * table['volume_expansion_1/K'][at]:.3g} "
            f"1e-6/K, bulk modulus {table['bulk_modulus_GPa'][at]:.3g} GPa",
            "  " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["seconds"].items()),
        ]
    )
