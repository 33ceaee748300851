"""Phonons of a model against reference phonons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from phonopy import Phonopy

from equijax.phonons import force_constants
from equijax.phonons.reference import harmonic, name_of
from equijax.potential import Potential

MESH = (6, 6, 6)  # Gamma-centred
TEMPERATURE_K = 300.0
IMAGINARY_THZ = 0.1  # a mode is imaginary below minus this
THRESHOLDS_THZ = (0.05, 0.1, 0.5)  # at which imaginary modes are compared, q by q


def phonon_errors(ff: Potential, path: str | Path, *, mesh: Sequence[int] = MESH) -> dict:
    """Phonons of a model on the supercell of reference phonons, against these.

    Args:
      ff: the model; its force constants are exact second derivatives in float64.
      path: a file of phonopy or phono3py, see `reference.read`; Born charges in it count on both sides.
      mesh: Gamma-centred q-mesh.

    Returns:
      frequency_mae (THz), omega_max and its reference (THz), entropy (J/K/mol), free_energy (kJ/mol), heat_capacity
      (J/K/mol) at 300 K and the fraction of imaginary modes (below -0.1 THz), each with its reference;
      imaginary_agreement: per threshold in THz, the fraction of q at which both or neither have a mode below minus it.
    """
    reference = harmonic(path)
    phonon = reference.replicate()
    force_constants.force_constants(ff, phonon)
    phonon.nac_params = reference.nac_params
    found, wanted = _spectrum(phonon, mesh), _spectrum(reference, mesh)
    out = {"crystal": name_of(reference, path)}
    frequencies, expected = found.pop("frequencies"), wanted.pop("frequencies")  # [q, modes]
    out["frequency_mae"] = float(np.abs(frequencies - expected).mean())
    lowest = frequencies.min(1), expected.min(1)
    out["imaginary_agreement"] = {str(t): float(((lowest[0] < -t) == (lowest[1] < -t)).mean()) for t in THRESHOLDS_THZ}
    for name, value in found.items():
        out[name], out[f"{name}_reference"] = value, wanted[name]
    return out


def _spectrum(phonon: Phonopy, mesh: Sequence[int]) -> dict[str, Any]:
    frequencies = phonon.run_mesh(mesh, is_mesh_symmetry=False, is_gamma_center=True).frequencies
    thermal = phonon.run_thermal_properties(temperatures=[TEMPERATURE_K], exclude_gamma_acoustic=True)
    return {
        "frequencies": frequencies,
        "omega_max": float(frequencies.max()),
        "free_energy": float(thermal.free_energy[0]),
        "entropy": float(thermal.entropy[0]),
        "heat_capacity": float(thermal.heat_capacity[0]),
        "imaginary": float((frequencies < -IMAGINARY_THZ).mean()),
    }
