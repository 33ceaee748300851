"""`python -m equijax.kappa STRUCTURE --model DIR --supercell 2 2 2 --out DIR`: thermal conductivity through phono3py.

Second- and third-order force constants come from exact derivatives, phono3py solves the phonon Boltzmann equation
(Togo, Chaput and Tanaka, Phys. Rev. B 91, 094306).
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from equijax import forcefield, graph, outputs, structures
from equijax.config import Compute
from equijax.phonons import born, certificate, force_constants, projection, third_order
from equijax.phonons.certificate import timed
from equijax.programs import runner
from equijax.relax import symmetric

COMPONENTS = ("xx", "yy", "zz", "yz", "xz", "xy")  # of the conductivity, phono3py's order
SMALLEST_EV_A3 = 1e-8  # third-order force constants below this are rounding: without anharmonicity no resistance


@dataclass(frozen=True)
class KappaConfig:
    """Third-order force constants and lattice thermal conductivity of a crystal (extra `kappa`)."""

    structure: Annotated[Path, tyro.conf.Positional]
    """Any file ASE reads; its last image is used."""
    model: Path
    """Model directory written by `python -m convert`."""
    supercell: tuple[int, ...]
    """3 or 9 integers: of the third-order force constants."""
    phonon_supercell: tuple[int, ...] | None = None
    """3 or 9 integers: of the second-order ones; by default the same."""
    out: Path = Path("kappa_output")
    """Folder for the results."""
    relax: bool = False
    """Relax cell and ions first, keeping the symmetry."""
    allow_unrelaxed: bool = False
    """Go on where forces are above 0.05 eV/A."""
    fmax: float = 1e-5
    """eV/A, where the relaxation stops."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of the model; everything after it is float64."""
    memory: float | None = None
    """GB a device may use for rows of derivatives; by default most of what is free."""
    projection: Literal["none", "symfc"] = "none"
    """Impose sum rules and symmetry on the force constants; the raw residuals are reported in any case."""
    born: Path | None = None
    """BORN file (phonopy's format)."""
    mesh: tuple[int, int, int] = (11, 11, 11)
    """q mesh of the Boltzmann equation."""
    temperatures: tuple[float, ...] = (100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0)
    """K."""
    method: Literal["rta", "lbte"] = "rta"
    """Relaxation time approximation, or the linearised Boltzmann equation solved directly."""
    isotope: bool = False
    """Natural isotopes scatter too."""
    symprec: float = 1e-5
    """A, tolerance of the symmetry search."""
    head: str | None = None
    """Head of a model that has several."""


@runner.program("equijax kappa")
def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print its summary."""
    config = runner.options(KappaConfig, argv, "equijax kappa")
    print(summary(run(config)))
    print(f"Everything is in {config.out}")
    return 0


@outputs.locked
def run(config: KappaConfig) -> dict:
    """The whole run: checks, relaxation, force constants, conductivity, files; returns what report.json holds.

    Raises:
      ValueError, MemoryError, FileNotFoundError: unusable input, before work starts.
      ImportError: phono3py is not installed.
    """
    seconds: dict[str, float] = {}
    ff, atoms = forcefield.load(config.model, head=config.head), structures.read(config.structure)
    graph.check_atoms(atoms, ff.config, str(config.structure))
    if min(config.temperatures, default=-1.0) <= 0:
        raise ValueError(f"temperatures {config.temperatures}: expected positive numbers")
    if max(config.mesh) == 1:
        raise ValueError(f"mesh {config.mesh} is Gamma alone, where no heat flows: use a finer one")
    ph3 = _phono3py(config, atoms)
    force_constants.check_mesh(ph3.phonon_supercell, ph3.phonon_primitive, config.mesh)
    report: dict = {"relaxation": None}
    if config.relax:
        with timed(seconds, "relaxation"):
            atoms, report["relaxation"] = symmetric.relax(
                ff, atoms, fmax=config.fmax, symprec=config.symprec, compute=Compute(progress=True)
            )
        ph3 = _phono3py(config, atoms)
    with timed(seconds, "forces"):
        residual = symmetric.static_residuals(ff, atoms)
    if not config.allow_unrelaxed:
        symmetric.refuse_unrelaxed(residual, str(config.structure))
    notes = symmetric.warn_unrelaxed(residual) + symmetric.warn_fixed(atoms) + born.warn_polar(ph3)
    memory = None if config.memory is None else int(config.memory * 1e9)
    with timed(seconds, "force constants"):
        third_order.force_constants(ff, ph3, compute=Compute(config.dtype, memory, progress=True))
    raw = third_order.residuals(ph3)
    if raw.scale_eV_A3 < SMALLEST_EV_A3:
        raise ValueError(
            f"third-order force constants of this supercell vanish, the largest is {raw['scale_eV_A3']:.1e} eV/A^3: an "
            "image on the other side cancels each; use a larger supercell"
        )
    if config.projection == "symfc":
        ph3.fc3 = projection.project(ph3.fc3, ph3.supercell, ph3.primitive, ph3.symmetry)
        ph3.fc2 = projection.project(ph3.fc2, ph3.phonon_supercell, ph3.phonon_primitive, ph3.phonon_supercell_symmetry)
    with timed(seconds, "conductivity"):
        conductivity, frequencies = solve(ph3, config)
    report |= certificate.provenance(ff) | {
        "formula": atoms.get_chemical_formula(),
        "space_group": symmetric.space_group(atoms, config.symprec),
        "options": asdict(config),
        "supercell_atoms": len(ph3.supercell),
        "dtype": config.dtype,
        "residual": residual.document(),
        "warnings": notes,
        "raw_residuals": raw._asdict(),
        "projection": config.projection,
        "lowest_THz": float(frequencies.min()),
        "temperatures_K": config.temperatures,
        "components": COMPONENTS,
        "conductivity_W_m_K": conductivity,
        "seconds": seconds,
    }
    write(ph3, report, config.out)
    return report


def _phono3py(config, atoms):
    ph3 = third_order.make_phono3py(atoms, config.supercell, config.phonon_supercell, symprec=config.symprec)
    if config.born is not None:
        born.set_born(ph3, config.born)
    return ph3


def solve(ph3, config: KappaConfig) -> tuple[np.ndarray, np.ndarray]:
    """Conductivity [T, 6] in W/m/K (xx yy zz yz xz xy) and the frequencies in THz of the mesh."""
    ph3.mesh_numbers = config.mesh
    ph3.init_phph_interaction()
    ph3.run_thermal_conductivity(
        is_LBTE=config.method == "lbte", temperatures=config.temperatures, is_isotope=config.isotope
    )
    found = ph3.thermal_conductivity
    return np.asarray(found.kappa)[0], np.asarray(found.frequencies)


def write(ph3, report: dict, folder: Path) -> None:
    """fc2.hdf5, fc3.hdf5, phono3py_params.yaml, kappa.csv, kappa.png, report.json."""
    from phono3py.file_IO import write_fc2_to_hdf5, write_fc3_to_hdf5

    with outputs.beside(folder / "fc2.hdf5") as part:
        write_fc2_to_hdf5(ph3.fc2, str(part), p2s_map=ph3.phonon_primitive.p2s_map)
    with outputs.beside(folder / "fc3.hdf5") as part:
        write_fc3_to_hdf5(ph3.fc3, filename=str(part), p2s_map=ph3.primitive.p2s_map)
    with outputs.beside(folder / "phono3py_params.yaml") as part:
        ph3.save(part)
    temperatures, conductivity = report["temperatures_K"], report["conductivity_W_m_K"]
    with outputs.beside(folder / "kappa.csv") as part, open(part, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["temperature_K", *(f"kappa_{c}_W/m/K" for c in COMPONENTS)])
        rows.writerows([f"{x:.10g}" for x in (t, *k)] for t, k in zip(temperatures, conductivity, strict=True))
    import matplotlib.pyplot as plt  # only where a figure is drawn

    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for c in range(3):
        axes.plot(temperatures, conductivity[:, c], ".-", label=f"$\\kappa_{{{COMPONENTS[c]}}}$")
    axes.set(xlabel="temperature (K)", ylabel="lattice thermal conductivity (W/m/K)", title=report["formula"],
             xlim=(0, None), ylim=(0, None))  # fmt: skip
    axes.legend()
    with outputs.beside(folder / "kappa.png") as part:
        figure.savefig(part, dpi=120)
    plt.close(figure)
    certificate.write(report, folder / "report.json")


def summary(report: dict) -> str:
    """The lines printed at the end of a run."""
    raw = report["raw_residuals"]
    rows = zip(report["temperatures_K"], report["conductivity_W_m_K"], strict=True)
    return "\n".join(
        [
            f"{report['formula']}, {report['space_group']}, {report['supercell_atoms']} atoms, {report['dtype']}",
            f"  residual force {report['residual']['max_force_eV_A']:.1e} eV/A",
            f"  third-order force constants, before any cleaning: sum rule {raw['sum_rule_eV_A3']:.1e}, permutation "
            f"{raw['permutation_eV_A3']:.1e} eV/A^3 (largest entry {raw['scale_eV_A3']:.3g})",
            f"  lowest frequency {report['lowest_THz']:.3f} THz",
            *(f"  {t:g} K: " + ", ".join(f"{c} {x:.4g}" for c, x in zip(COMPONENTS, k, strict=True)) for t, k in rows),
            "  " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["seconds"].items()),
        ]
    )
