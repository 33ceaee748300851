"""Mode Grueneisen parameters and quasi-harmonic thermal expansion of a crystal, from a file to tables and figures."""

from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from equijax import outputs, plots, tables
from equijax.phonons import certificate, crystal, force_constants, volumes
from equijax.phonons.certificate import timed
from equijax.phonons.options import ExpansionConfig
from equijax.relax import symmetric
from equijax.units import GPA_PER_EV_A3


class Expansion(NamedTuple):
    """What a run found; arrays over temperatures T."""

    provenance: certificate.Provenance
    formula: str
    options: ExpansionConfig
    relaxation: symmetric.Relaxation
    modes: volumes.Gruneisen
    temperatures: np.ndarray  # [T] K
    volumes: np.ndarray  # [T] A^3 per primitive cell
    thermal_expansion: np.ndarray  # [T] 1/K, of the volume
    bulk_moduli: np.ndarray  # [T] GPa
    seconds: dict[str, float]

    @property
    def mean_gruneisen(self) -> float:
        """Over the modes of the mesh, by the weights of their wave vectors; acoustic modes at Gamma left out."""
        moving = np.isfinite(self.modes.parameters)
        weights = np.broadcast_to(self.modes.weights[:, None], moving.shape)
        return float(np.average(self.modes.parameters[moving], weights=weights[moving]))

    @property
    def lowest_THz(self) -> float:
        """The lowest frequency of the mesh, acoustic modes at Gamma left out."""
        return float(self.modes.frequencies[np.isfinite(self.modes.parameters)].min())

    @property
    def table(self) -> dict[str, np.ndarray]:
        """Columns of expansion.csv."""
        return {
            "temperature_K": self.temperatures,
            "volume_A3_per_primitive_cell": self.volumes,
            "volume_expansion_1/K": self.thermal_expansion,
            "bulk_modulus_GPa": self.bulk_moduli,
        }

    def document(self) -> dict[str, object]:
        """By name, what report.json holds."""
        return {
            **self.provenance._asdict(),
            "formula": self.formula,
            "options": asdict(self.options),
            "relaxation": self.relaxation.document(),
            "mean_gruneisen": self.mean_gruneisen,
            "lowest_THz": self.lowest_THz,
            "table": self.table,
            "seconds": self.seconds,
        }


@outputs.locked
def run(config: ExpansionConfig) -> Expansion:
    """The whole run, from a file to files.

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
    n = len(found.thermal_expansion)
    expansion = Expansion(
        certificate.provenance(ff),
        atoms.get_chemical_formula(),
        options=config,
        relaxation=relaxation,
        modes=modes,
        temperatures=temperatures[:n],
        volumes=found.equilibrium_volumes[:n],
        thermal_expansion=found.thermal_expansion,
        bulk_moduli=found.bulk_moduli[:n] * GPA_PER_EV_A3,
        seconds=seconds,
    )
    write(expansion)
    return expansion


def write(found: Expansion) -> None:
    """expansion.csv, gruneisen.csv, expansion.png and report.json, in the folder of the options."""
    folder, modes, table = found.options.out, found.modes, found.table
    tables.write_csv(folder / "expansion.csv", list(table), rows=zip(*table.values(), strict=True))
    shown = np.isfinite(modes.parameters)
    pairs = modes.frequencies[shown], modes.parameters[shown]
    tables.write_csv(folder / "gruneisen.csv", ["frequency_THz", "gruneisen"], rows=zip(*pairs, strict=True))
    curve = found.temperatures, found.thermal_expansion
    plots.draw_expansion(folder / "expansion.png", modes=pairs, expansion=curve, title=found.formula)
    certificate.write(found.document(), folder / "report.json")


def summary(found: Expansion) -> str:
    """The lines printed at the end of a run."""
    at = int(np.abs(found.temperatures - 300).argmin())
    return "\n".join(
        [
            f"{found.formula}, {found.relaxation.space_group_after}: lowest mode {found.lowest_THz:.3f} THz",
            f"  mean Grueneisen parameter {found.mean_gruneisen:.3f} (acoustic modes at Gamma left out)",
            f"  at {found.temperatures[at]:g} K: volume expansion {1e6 * found.thermal_expansion[at]:.3g} "
            f"1e-6/K, bulk modulus {found.bulk_moduli[at]:.3g} GPa",
            f"  {certificate.times(found.seconds)}",
        ]
    )
