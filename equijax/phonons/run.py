"""A phonon run: relaxation, force constants, results and their certificate."""

import ase.io
import numpy as np
from phonopy import Phonopy

from equijax import outputs, plots
from equijax.phonons import born, certificate, crystal, force_constants
from equijax.phonons.certificate import timed
from equijax.phonons.options import PhononsConfig
from equijax.phonons.thermal import gamma_acoustic, harmonic, write_dos
from equijax.relax import symmetric


@outputs.locked
def run(config: PhononsConfig) -> dict:
    """The whole run: input checks, relaxation, force constants, results, files; returns the certificate.

    Raises:
      InputError, MemoryError, FileNotFoundError: unusable input, before work starts.
    """
    seconds: dict[str, float] = {}
    ff, atoms = crystal.prepare(config)
    phonon = _phonopy(config, atoms)  # with its Born charges, so that a bad file is known before work starts
    force_constants.check_mesh(phonon.supercell, phonon.primitive, mesh=config.mesh)
    ff = ff.specialise(atoms.numbers) if config.fast else ff
    report: dict = {"relaxation": None}
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
        report["relaxation"] = relaxation.document()
        phonon = _phonopy(config, atoms)
    with outputs.beside(config.out / "structure.extxyz") as part:
        ase.io.write(part, atoms)
    with timed(seconds, "forces"):
        report |= crystal.rest(ff, atoms, config=config, phonon=phonon)
    report |= {
        "supercell_matrix": phonon.supercell_matrix,
        "projection": config.projection,
        "spot_check": None,
        "born": config.born,
    }
    with timed(seconds, "force constants"):
        force_constants.force_constants(ff, phonon, full=config.full, compute=crystal.compute(config))
    report["raw_residuals"] = force_constants.residuals(phonon)._asdict()
    if config.check:
        with timed(seconds, "spot check"):
            report["spot_check"] = force_constants.spot_check(ff, phonon, seed=config.seed)._asdict()
    if config.projection != "none":
        force_constants.project(phonon, config.projection)
        report["projected_residuals"] = force_constants.residuals(phonon)._asdict()
    with timed(seconds, "results"):
        report |= results(phonon, config)
    report["seconds"] = seconds
    certificate.write(report, config.out / "report.json")
    return report


def _phonopy(config: PhononsConfig, atoms: ase.Atoms) -> Phonopy:
    phonon = force_constants.make_phonon(atoms, config.supercell, primitive=config.primitive, symprec=config.symprec)
    if config.born is not None:
        born.set_born(phonon, config.born)
    return phonon


def results(phonon: Phonopy, config: PhononsConfig) -> dict:
    """Write phonopy_params.yaml, bands.png, dos.csv, thermal.csv; return what the certificate says of them."""
    with outputs.beside(config.out / "phonopy_params.yaml") as part:
        phonon.save(part, settings={"force_constants": True})
    mesh = phonon.run_mesh(config.mesh, is_gamma_center=True)
    dos = phonon.run_total_dos()
    write_dos(dos, config.out / "dos.csv")
    plots.draw_bands(config.out / "bands.png", phonon, title=phonon.unitcell.formula, dos=dos)
    first, last, step = config.temperature
    thermal = harmonic(
        mesh.qpoints, mesh.frequencies, weights=mesh.weights, temperatures=np.arange(first, last + 0.5 * step, step)
    )
    thermal.write_csv(config.out / "thermal.csv")
    optical = np.sort(mesh.frequencies[~gamma_acoustic(mesh.qpoints, mesh.frequencies)])
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
