"""Mode Grueneisen parameters and quasi-harmonic thermal expansion of a crystal, from a file to tables and figures."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from equijax import outputs, plots, tables
from equijax.phonons import certificate, crystal, force_constants, volumes
from equijax.phonons.certificate import timed
from equijax.phonons.options import ExpansionConfig
from equijax.relax import symmetric
from equijax.units import GPA_PER_EV_A3


@outputs.locked
def run(config: ExpansionConfig) -> dict:
    """The whole run; returns what report.json holds.

    Raises:
      InputError, MemoryError, FileNotFoundError: unusable input, before work starts.
    """
    seconds: dict[str, float] = {}
    ff, atoms = crystal.prepare(config)
    phonon = force_constants.make_phonon(atoms, config.supercell)
    for mesh in (config.gruneisen_mesh, config.mesh):
        force_constants.check_mesh(phonon.supercell, phonon.primitive, mesh=mesh)
    volumes.check_strains(config.strains)
    first, last, step = config.temperatures
    with timed(seconds, "relaxation"):
        atoms, relaxation = symmetric.relax(ff, atoms, fmax=config.fmax)
    with timed(seconds, "Grueneisen parameters"):
        modes = volumes.gruneisen(ff, atoms, supercell=config.supercell, mesh=config.gruneisen_mesh)
    with timed(seconds, "quasi-harmonic approximation"):
        temperatures = np.arange(first, last + 1.5 * step, step)  # phonopy drops the last one
        cells, energies = volumes.series(
            ff, atoms, supercell=config.supercell, strains=config.strains, fmax=config.fmax
        )
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
        "relaxation": relaxation.document(),
        "mean_gruneisen": float(np.average(modes.parameters[moving], weights=weights[moving])),
        "lowest_THz": float(modes.frequencies[moving].min()),
        "table": columns,
        "seconds": seconds,
    }
    write(report, modes, folder=config.out)
    return report


def write(report: dict, modes: volumes.Gruneisen, *, folder: Path) -> None:
    """expansion.csv, gruneisen.csv, expansion.png, report.json."""
    table = report["table"]
    tables.write_csv(folder / "expansion.csv", list(table), rows=zip(*table.values(), strict=True))
    shown = np.isfinite(modes.parameters)
    found = modes.frequencies[shown], modes.parameters[shown]
    tables.write_csv(folder / "gruneisen.csv", ["frequency_THz", "gruneisen"], rows=zip(*found, strict=True))
    curve = table["temperature_K"], table["volume_expansion_1/K"]
    plots.draw_expansion(folder / "expansion.png", modes=found, expansion=curve, title=report["formula"])
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
            f"  {certificate.times(report['seconds'])}",
        ]
    )
