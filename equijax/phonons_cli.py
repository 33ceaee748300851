"""`python -m equijax.phonons STRUCTURE --model DIR --supercell 4 4 4 --out DIR`: a phonon run and its certificate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import ase.io
import numpy as np
import tyro

import equijax
from equijax import bands, certificate, graph, nac, phonons, relax, structures, thermo
from equijax.certificate import timed


@dataclass(frozen=True)
class PhononsConfig:
    """Force constants, band structure, density of states and thermal properties of a crystal."""

    structure: Annotated[Path, tyro.conf.Positional]
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 on success, 2 with one line on standard error for input that cannot be used."""
    config = tyro.cli(PhononsConfig, args=argv, prog="equijax phonons")
    return certificate.command("phonons", run, config, certificate.summary)


def run(config: PhononsConfig) -> dict:
    """The whole run: input checks, relaxation, force constants, results, files; returns the certificate.

    Raises:
      ValueError, MemoryError, FileNotFoundError: unusable input, before work starts.
    """
    seconds: dict[str, float] = {}
    ff = equijax.load(config.model)
    head = ff.config.heads[ff.head_index(config.head)]
    atoms = structures.read(config.structure)
    phonon = phonons.make_phonon(atoms, config.supercell, config.primitive, config.symprec)
    phonons.check_mesh(phonon.supercell, phonon.primitive, config.mesh)
    graph.check_atoms(atoms, ff.config, str(config.structure))
    ff = ff.specialise(atoms.numbers) if config.fast else ff
    if config.born is not None:
        nac.set_born(phonon, config.born)  # once here, so that a bad file is known before work starts
    config.out.mkdir(parents=True, exist_ok=True)
    report: dict = {"relaxation": None}
    if config.relax:
        with timed(seconds, "relaxation"):
            atoms, report["relaxation"] = relax.relax(
                ff, atoms, config.fmax, cell=not config.fixed_cell, symprec=config.symprec, head=head, progress=True
            )
        phonon = phonons.make_phonon(atoms, config.supercell, config.primitive, config.symprec)
        if config.born is not None:
            nac.set_born(phonon, config.born)
    ase.io.write(config.out / "structure.extxyz", atoms)
    with timed(seconds, "forces"):
        report |= describe(ff, atoms, phonon, config, head)
    with timed(seconds, "force constants"):
        memory = None if config.memory is None else int(config.memory * 1e9)
        phonons.force_constants(ff, phonon, config.full, config.dtype, memory, progress=True, head=head)
    report["raw_residuals"] = phonons.residuals(phonon)
    if config.check:
        with timed(seconds, "spot check"):
            report["spot_check"] = phonons.spot_check(ff, phonon, config.seed, head)
    if config.projection != "none":
        phonons.project(phonon, config.projection)
        report["projected_residuals"] = phonons.residuals(phonon)
    with timed(seconds, "results"):
        report |= results(phonon, config)
    report["seconds"] = seconds
    certificate.write(report, config.out / "report.json")
    return report


def describe(ff, atoms, phonon, config: PhononsConfig, head: str) -> dict:
    """Certificate entries known before the force constants, warnings included."""
    residual = relax.static_residuals(ff, atoms, head)
    if not config.allow_unrelaxed:
        relax.refuse_unrelaxed(residual, str(config.structure))
    notes = relax.warn_unrelaxed(residual) + nac.warn_polar(phonon)
    return {
        "formula": atoms.get_chemical_formula(),
        "space_group": relax.space_group(atoms, config.symprec),
        "supercell_matrix": phonon.supercell_matrix,
        "supercell_atoms": len(phonon.supercell),
        "dtype": config.dtype,
        "residual": residual,
        "warnings": notes,
        "projection": config.projection,
        "spot_check": None,
        "born": config.born,
    } | certificate.provenance(ff, head)


def results(phonon, config: PhononsConfig) -> dict:
    """Write phonopy_params.yaml, bands.png, dos.csv, thermal.csv; return what the certificate says of them."""
    phonon.save(config.out / "phonopy_params.yaml", settings={"force_constants": True})
    mesh = phonon.run_mesh(config.mesh, is_gamma_center=True)
    dos = phonon.run_total_dos()
    bands.write_dos(dos, config.out / "dos.csv")
    bands.draw(phonon, config.out / "bands.png", phonon.unitcell.formula, dos)
    first, last, step = config.temperature
    thermal = thermo.harmonic(mesh.qpoints, mesh.frequencies, mesh.weights, np.arange(first, last + 0.5 * step, step))
    thermal.write_csv(config.out / "thermal.csv")
    optical = np.sort(mesh.frequencies[~thermo.gamma_acoustic(mesh.qpoints, mesh.frequencies)])
    return {
        "mesh": config.mesh,
        "lowest_THz": optical[:5],
        "highest_THz": mesh.frequencies.max(),
        "verdict": certificate.verdict(float(optical[0])),
        "thermal": {
            "per": f"mole of primitive cells of {len(phonon.primitive)} atoms",
            "gamma_acoustic_excluded": thermal.gamma_acoustic_excluded,
            "imaginary_excluded": thermal.imaginary_excluded,
        },
    }
