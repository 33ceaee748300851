"""Phonons of a model against reference phonons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from phonopy import Phonopy

from equijax.phonons import force_constants
from equijax.phonons.reference import harmonic, name_of
from equijax.potential import Potential

MESH = (6, 6, 6)  # Gamma-centred
TEMPERATURE_K = 300.0
IMAGINARY_THZ = 0.1  # a mode is imaginary below minus this
THRESHOLDS_THZ = (0.05, 0.1, 0.5)  # at which imaginary modes are compared, q by q


class Spectrum(NamedTuple):
    """What is read from the frequencies on a mesh; at 300 K, per mole of primitive cells."""

    omega_max: float  # THz
    free_energy: float  # kJ/mol
    entropy: float  # J/K/mol
    heat_capacity: float  # J/K/mol
    imaginary: float  # fraction of modes below -0.1 THz


class PhononErrors(NamedTuple):
    """Phonons of a model and the reference that they are compared with."""

    crystal: str
    frequency_mae: float  # THz
    imaginary_agreement: dict[str, float]  # by threshold in THz: share of q at which both or neither go below minus it
    found: Spectrum
    reference: Spectrum

    def document(self) -> dict[str, Any]:
        """By name, what the reference has as NAME_reference, for reports."""
        values = {"crystal": self.crystal, "frequency_mae": self.frequency_mae}
        values["imaginary_agreement"] = self.imaginary_agreement
        for name, value in self.found._asdict().items():
            values |= {name: value, f"{name}_reference": getattr(self.reference, name)}
        return values


def phonon_errors(ff: Potential, path: str | Path, *, mesh: Sequence[int] = MESH) -> PhononErrors:
    """Phonons of a model on the supercell of reference phonons, against these.

    Args:
      ff: the model; its force constants are exact second derivatives in float64.
      path: a file of phonopy or phono3py, see `reference.read`; Born charges in it count on both sides.
      mesh: Gamma-centred q-mesh.
    """
    reference = harmonic(path)
    phonon = reference.replicate()
    force_constants.force_constants(ff, phonon)
    phonon.nac_params = reference.nac_params
    (frequencies, found), (expected, wanted) = (_spectrum(p, mesh) for p in (phonon, reference))  # [q, modes]
    lowest = frequencies.min(1), expected.min(1)
    return PhononErrors(
        name_of(reference, path),
        float(np.abs(frequencies - expected).mean()),
        imaginary_agreement={str(t): float(((lowest[0] < -t) == (lowest[1] < -t)).mean()) for t in THRESHOLDS_THZ},
        found=found,
        reference=wanted,
    )


def _spectrum(phonon: Phonopy, mesh: Sequence[int]) -> tuple[np.ndarray, Spectrum]:
    """Frequencies [q, modes] (THz) on all of the mesh, and what is read from them."""
    frequencies = phonon.run_mesh(mesh, is_mesh_symmetry=False, is_gamma_center=True).frequencies
    thermal = phonon.run_thermal_properties(temperatures=[TEMPERATURE_K], exclude_gamma_acoustic=True)
    found = {name: getattr(thermal, name) for name in ("free_energy", "entropy", "heat_capacity")}
    return frequencies, Spectrum(
        float(frequencies.max()),
        **{name: float(values[0]) for name, values in found.items()},
        imaginary=float((frequencies < -IMAGINARY_THZ).mean()),
    )
