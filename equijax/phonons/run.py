"""A phonon run: relaxation, force constants, results and their certificate."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import ase.io
import numpy as np
from phonopy import Phonopy

from equijax import outputs, plots
from equijax.adapters.committee import Committee
from equijax.phonons import born, certificate, crystal, force_constants, uncertainty
from equijax.phonons.certificate import timed
from equijax.phonons.options import PhononsConfig
from equijax.phonons.thermal import Thermal, gamma_acoustic, harmonic, write_dos
from equijax.phonons.uncertainty import Apart, Disagreement
from equijax.relax import symmetric


class Spectrum(NamedTuple):
    """What a mesh of wave vectors says of a crystal."""

    mesh: tuple[int, int, int]
    lowest_THz: np.ndarray  # [5], without the acoustic modes at Gamma
    highest_THz: float
    verdict: dict[str, str]  # threshold -> "stable" or "unstable"
    thermal: Thermal
    primitive_atoms: int  # thermal properties are per mole of such cells
    committee: Disagreement | None = None  # of the members, where the model is a committee

    def document(self) -> dict[str, object]:
        """By name, for the certificate; the thermal properties themselves are in thermal.csv."""
        return {
            "mesh": self.mesh,
            "lowest_THz": self.lowest_THz,
            "highest_THz": self.highest_THz,
            "verdict": self.verdict,
            "thermal": {
                "per": f"mole of primitive cells of {self.primitive_atoms} atoms",
                "gamma_acoustic_excluded": self.thermal.gamma_acoustic_excluded,
                "imaginary_excluded": self.thermal.imaginary_excluded,
            },
            **({} if self.committee is None else {"committee": self.committee._asdict()}),
        }


class Phonons(NamedTuple):
    """What a run found, and how far it can be trusted."""

    phonon: Phonopy  # with its force constants
    relaxation: symmetric.Relaxation | None
    rest: crystal.Rest
    projection: str
    born: Path | None
    raw_residuals: force_constants.Residuals  # before any projection
    projected_residuals: force_constants.Residuals | None
    spot_check: force_constants.SpotCheck | None
    spectrum: Spectrum
    seconds: dict[str, float]

    def document(self) -> dict[str, object]:
        """The certificate, report.json."""
        relaxation, check, projected = self.relaxation, self.spot_check, self.projected_residuals
        return {
            "relaxation": None if relaxation is None else relaxation.document(),
            **self.rest.document(),
            "supercell_matrix": self.phonon.supercell_matrix,
            "projection": self.projection,
            "spot_check": None if check is None else check._asdict(),
            "born": self.born,
            "raw_residuals": self.raw_residuals._asdict(),
            **({} if projected is None else {"projected_residuals": projected._asdict()}),
            **self.spectrum.document(),
            "seconds": self.seconds,
        }


@outputs.locked
def run(config: PhononsConfig) -> Phonons:
    """The whole run: input checks, relaxation, force constants, results, files.

    Raises:
      InputError, MemoryError, FileNotFoundError: unusable input, before work starts.
    """
    seconds: dict[str, float] = {}
    ff, atoms = crystal.prepare(config)
    phonon = _phonopy(config, atoms)  # with its Born charges, so that a bad file is known before work starts
    force_constants.check_mesh(phonon.supercell, phonon.primitive, mesh=config.mesh)
    ff = ff.specialise(atoms.numbers) if config.fast else ff
    relaxation = check = projected = apart = None
    if config.check:
        force_constants.reserve(ff, phonon)
    if config.relax:
        with timed(seconds, "relaxation"):
            atoms, relaxation = symmetric.relax(
                ff,
                atoms,
                fmax=config.fmax,
                cell=not config.fixed_cell,
                symprec=config.symprec,
            )
        phonon = _phonopy(config, atoms)
    with outputs.beside(config.out / "structure.extxyz") as part:
        ase.io.write(part, atoms)
    with timed(seconds, "forces"):
        rest = crystal.rest(ff, atoms, config=config, phonon=phonon)
    with timed(seconds, "force constants"):
        options = {"full": config.full, "compute": crystal.compute(config)}
        if isinstance(ff, Committee):
            apart = uncertainty.apart(ff, phonon, copy=partial(_phonopy, config, atoms), **options)
        else:
            force_constants.force_constants(ff, phonon, **options)
    raw = force_constants.residuals(phonon)
    if config.check:
        with timed(seconds, "spot check"):
            check = force_constants.spot_check(ff, phonon, seed=config.seed)
    if config.projection != "none":
        for one in (phonon, *(apart.phonons if apart else ())):
            force_constants.project(one, config.projection)
        projected = force_constants.residuals(phonon)
    with timed(seconds, "results"):
        spectrum = write_results(phonon, config, apart=apart)
    found = Phonons(
        phonon,
        relaxation,
        rest,
        projection=config.projection,
        born=config.born,
        raw_residuals=raw,
        projected_residuals=projected,
        spot_check=check,
        spectrum=spectrum,
        seconds=seconds,
    )
    certificate.write(found.document(), config.out / "report.json")
    return found


def _phonopy(config: PhononsConfig, atoms: ase.Atoms) -> Phonopy:
    phonon = force_constants.make_phonon(atoms, config.supercell, primitive=config.primitive, symprec=config.symprec)
    if config.born is not None:
        born.set_born(phonon, config.born)
    return phonon


def write_results(phonon: Phonopy, config: PhononsConfig, *, apart: Apart | None = None) -> Spectrum:
    """Write phonopy_params.yaml, bands.png, dos.csv, thermal.csv; return what the certificate says of them.

    Args:
      phonon: with force constants.
      config: of the run.
      apart: the members of a committee: also thermal_std.csv, and an error band in bands.png.
    """
    with outputs.beside(config.out / "phonopy_params.yaml") as part:
        phonon.save(part, settings={"force_constants": True})
    mesh = phonon.run_mesh(config.mesh, is_gamma_center=True)
    dos = phonon.run_total_dos()
    write_dos(dos, config.out / "dos.csv")
    plots.draw_bands(config.out / "bands.png", phonon, title=phonon.unitcell.formula, dos=dos, apart=apart)
    first, last, step = config.temperature
    temperatures = np.arange(first, last + 0.5 * step, step)
    thermal = harmonic(mesh.qpoints, mesh.frequencies, weights=mesh.weights, temperatures=temperatures)
    thermal.write_csv(config.out / "thermal.csv")
    optical = np.sort(mesh.frequencies[~gamma_acoustic(mesh.qpoints, mesh.frequencies)])
    return Spectrum(
        config.mesh,
        optical[:5],
        highest_THz=mesh.frequencies.max(),
        verdict=certificate.verdict(float(optical[0])),
        thermal=thermal,
        primitive_atoms=len(phonon.primitive),
        committee=apart and uncertainty.write(config.out, apart, mesh=config.mesh, temperatures=temperatures),
    )


def summary(found: Phonons) -> str:
    """The lines printed at the end of a run."""
    rest, raw, spectrum = found.rest, found.raw_residuals, found.spectrum
    residual, thermal = rest.residual, spectrum.thermal
    stress = "" if residual.max_stress_GPa is None else f", stress {residual.max_stress_GPa:.1e} GPa"
    lines = [
        f"{rest.formula}, {rest.space_group}, {rest.supercell_atoms} atoms, {rest.dtype}",
        f"  residual: force {residual.max_force_eV_A:.1e} eV/A{stress}",
        f"  force constants, before any cleaning: sum rule {raw.sum_rule_eV_A2:.1e}, permutation "
        f"{raw.permutation_eV_A2:.1e}, space group {raw.space_group_eV_A2:.1e} eV/A^2 "
        f"(largest entry {raw.scale_eV_A2:.3g}); projection: {found.projection}",
    ]
    if check := found.spot_check:
        lines.append(
            f"  a random column against finite differences: {check.max_difference_eV_A2:.1e} of "
            f"{check.max_entry_eV_A2:.3g} eV/A^2"
        )
    low = ", ".join(f"{v:.3f}" for v in spectrum.lowest_THz)
    return "\n".join(
        [
            *lines,
            f"  lowest frequencies on the mesh (Gamma acoustic modes left out): {low} THz",
            "  " + ", ".join(f"{word} at {limit}" for limit, word in spectrum.verdict.items()),
            f"  thermal properties: {thermal.gamma_acoustic_excluded} acoustic modes at Gamma excluded, "
            f"{100 * thermal.imaginary_excluded:.2g} % of the others excluded as imaginary",
            *([] if spectrum.committee is None else [f"  {uncertainty.text(spectrum.committee)}"]),
            f"  {certificate.times(found.seconds)}",
        ]
    )
