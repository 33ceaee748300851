"""Lattice thermal conductivity of a crystal, from a file to tables and figures (extra `kappa`).

Second- and third-order force constants come from exact derivatives, phono3py solves the phonon Boltzmann equation
(Togo, Chaput and Tanaka, Phys. Rev. B 91, 094306).
"""

from dataclasses import asdict
from typing import Any, NamedTuple

import ase
import numpy as np

from equijax import outputs, plots, tables
from equijax.errors import InputError
from equijax.phonons import born, certificate, crystal, force_constants, projection, third_order
from equijax.phonons.certificate import timed
from equijax.phonons.options import KappaConfig
from equijax.relax import symmetric

COMPONENTS = ("xx", "yy", "zz", "yz", "xz", "xy")  # of the conductivity, phono3py's order
SMALLEST_EV_A3 = 1e-8  # third-order force constants below this are rounding: without anharmonicity no resistance


class Solved(NamedTuple):
    """What the Boltzmann equation gives."""

    conductivity: np.ndarray  # [T, 6] W/m/K, by `COMPONENTS`
    frequencies: np.ndarray  # [q, bands] THz, of the mesh


class Conductivity(NamedTuple):
    """What a run found."""

    rest: crystal.Rest
    options: KappaConfig
    relaxation: symmetric.Relaxation | None
    raw_residuals: third_order.Residuals  # before any projection
    solved: Solved
    seconds: dict[str, float]

    @property
    def lowest_THz(self) -> float:
        """The lowest frequency of the mesh."""
        return float(self.solved.frequencies.min())

    def document(self) -> dict[str, object]:
        """By name, what report.json holds."""
        return {
            "relaxation": None if self.relaxation is None else self.relaxation.document(),
            **self.rest.document(),
            "options": asdict(self.options),
            "raw_residuals": self.raw_residuals._asdict(),
            "projection": self.options.projection,
            "lowest_THz": self.lowest_THz,
            "temperatures_K": self.options.temperatures,
            "components": COMPONENTS,
            "conductivity_W_m_K": self.solved.conductivity,
            "seconds": self.seconds,
        }


@outputs.locked
def run(config: KappaConfig) -> Conductivity:
    """The whole run: checks, relaxation, force constants, conductivity, files.

    Raises:
      InputError, MemoryError, FileNotFoundError: unusable input, before work starts.
      ImportError: phono3py is not installed.
    """
    seconds: dict[str, float] = {}
    ff, atoms = crystal.prepare(config)
    if min(config.temperatures, default=-1.0) <= 0:
        raise InputError(f"temperatures {config.temperatures}: expected positive numbers")
    if set(config.mesh) == {1}:
        raise InputError(f"mesh {config.mesh} is Gamma alone, where no heat flows: use a finer one")
    ph3 = _phono3py(config, atoms)
    force_constants.check_mesh(ph3.phonon_supercell, ph3.phonon_primitive, mesh=config.mesh)
    relaxation = None
    if config.relax:
        with timed(seconds, "relaxation"):
            atoms, relaxation = symmetric.relax(ff, atoms, fmax=config.fmax, symprec=config.symprec)
        ph3 = _phono3py(config, atoms)
    with timed(seconds, "forces"):
        rest = crystal.rest(ff, atoms, config=config, phonon=ph3)
    with timed(seconds, "force constants"):
        third_order.force_constants(ff, ph3, compute=crystal.compute(config))
    raw = third_order.residuals(ph3)
    if raw.scale_eV_A3 < SMALLEST_EV_A3:
        raise InputError(
            f"third-order force constants of this supercell vanish, the largest is {raw.scale_eV_A3:.1e} eV/A^3: an "
            "image on the other side cancels each; use a larger supercell"
        )
    if config.projection == "symfc":
        third = projection.Cells(ph3.supercell, ph3.primitive, ph3.symmetry)
        second = projection.Cells(ph3.phonon_supercell, ph3.phonon_primitive, ph3.phonon_supercell_symmetry)
        ph3.fc3 = projection.project(ph3.fc3, third)
        ph3.fc2 = projection.project(ph3.fc2, second)
    with timed(seconds, "conductivity"):
        solved = solve(ph3, config)
    found = Conductivity(rest, config, relaxation=relaxation, raw_residuals=raw, solved=solved, seconds=seconds)
    write(ph3, found)
    return found


def _phono3py(config: KappaConfig, atoms: ase.Atoms) -> Any:  # Phono3py, of the extra
    ph3 = third_order.make_phono3py(
        atoms, config.supercell, phonon_supercell=config.phonon_supercell, symprec=config.symprec
    )
    if config.born is not None:
        born.set_born(ph3, config.born)
    return ph3


def solve(ph3: Any, config: KappaConfig) -> Solved:
    """Solve the Boltzmann equation on the mesh of the options."""
    ph3.mesh_numbers = config.mesh
    ph3.init_phph_interaction()
    ph3.run_thermal_conductivity(
        is_LBTE=config.method == "lbte", temperatures=config.temperatures, is_isotope=config.isotope
    )
    found = ph3.thermal_conductivity
    return Solved(np.asarray(found.kappa)[0], np.asarray(found.frequencies))


def write(ph3: Any, found: Conductivity) -> None:
    """fc2.hdf5, fc3.hdf5, phono3py_params.yaml, kappa.csv, kappa.png, report.json in the folder of the options."""
    # here, because phono3py comes with an extra
    from phono3py.file_IO import write_fc2_to_hdf5, write_fc3_to_hdf5

    folder = found.options.out
    with outputs.beside(folder / "fc2.hdf5") as part:
        write_fc2_to_hdf5(ph3.fc2, str(part), p2s_map=ph3.phonon_primitive.p2s_map)
    with outputs.beside(folder / "fc3.hdf5") as part:
        write_fc3_to_hdf5(ph3.fc3, filename=str(part), p2s_map=ph3.primitive.p2s_map)
    with outputs.beside(folder / "phono3py_params.yaml") as part:
        ph3.save(part)
    temperatures, conductivity = found.options.temperatures, found.solved.conductivity
    header = ["temperature_K", *(f"kappa_{c}_W/m/K" for c in COMPONENTS)]
    tables.write_csv(
        folder / "kappa.csv", header, rows=((t, *k) for t, k in zip(temperatures, conductivity, strict=True))
    )
    curves: dict[str, np.ndarray] = dict(zip(COMPONENTS[:3], conductivity.T[:3], strict=True))
    plots.draw_conductivity(folder / "kappa.png", curves, temperatures=temperatures, title=found.rest.formula)
    certificate.write(found.document(), folder / "report.json")


def summary(found: Conductivity) -> str:
    """The lines printed at the end of a run."""
    rest, raw = found.rest, found.raw_residuals
    rows = zip(found.options.temperatures, found.solved.conductivity, strict=True)
    return "\n".join(
        [
            f"{rest.formula}, {rest.space_group}, {rest.supercell_atoms} atoms, {rest.dtype}",
            f"  residual force {rest.residual.max_force_eV_A:.1e} eV/A",
            f"  third-order force constants, before any cleaning: sum rule {raw.sum_rule_eV_A3:.1e}, permutation "
            f"{raw.permutation_eV_A3:.1e} eV/A^3 (largest entry {raw.scale_eV_A3:.3g})",
            f"  lowest frequency {found.lowest_THz:.3f} THz",
            *(f"  {t:g} K: " + ", ".join(f"{c} {x:.4g}" for c, x in zip(COMPONENTS, k, strict=True)) for t, k in rows),
            f"  {certificate.times(found.seconds)}",
        ]
    )
