"""Harmonic thermal properties from phonon frequencies.

F = sum_qv [ h v / 2 + k T ln(1 - e^{-h v / k T}) ],  S = -dF/dT,  C_V = T dS/dT

(Dove, Introduction to Lattice Dynamics, ch. 5)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from phonopy.phonon.dos import TotalDos

from equijax import tables
from equijax.errors import InputError, needed
from equijax.units import KB_EV_PER_K, KJ_PER_MOL_PER_EV, THZ_EV

NUM_ACOUSTIC = 3
GAMMA = 1e-8  # a q vector closer to a reciprocal lattice vector than this is Gamma


@dataclass(frozen=True)
class Thermal:
    """Thermal properties per mole of the cell whose modes were given, and what was left out of the sums."""

    temperatures: np.ndarray  # [T] K
    free_energy: np.ndarray  # [T] kJ/mol
    entropy: np.ndarray  # [T] J/K/mol
    heat_capacity: np.ndarray  # [T] J/K/mol, constant volume
    gamma_acoustic_excluded: int  # the modes at Gamma with the smallest |v|: 3 when Gamma is on the mesh, else 0
    imaginary_excluded: float  # fraction of the remaining modes with v <= cutoff

    def write_csv(self, path: str | Path) -> None:
        """One row a temperature, the unit in each column name."""
        header = ["temperature_K", "free_energy_kJ/mol", "entropy_J/K/mol", "heat_capacity_J/K/mol"]
        columns = (self.temperatures, self.free_energy, self.entropy, self.heat_capacity)
        tables.write_csv(path, header, rows=zip(*columns, strict=True))


def harmonic(
    qpoints: npt.ArrayLike,
    frequencies: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    temperatures: npt.ArrayLike | None = None,
    cutoff_THz: float = 0.0,
) -> Thermal:
    """Harmonic free energy, entropy and heat capacity.

    Args:
      qpoints: [q, 3] in reciprocal lattice vectors.
      frequencies: [q, B] THz, imaginary ones negative.
      weights: [q] multiplicities, default equal.
      temperatures: [T] K, default 0, 10, ..., 1000.
      cutoff_THz: modes at or below it are left out.

    Returns:
      Thermal; the three modes at Gamma with the smallest |v| are always left out, imaginary ones too.

    Raises:
      InputError: shapes that do not match, a negative temperature.
    """
    q, v = np.atleast_2d(qpoints), np.atleast_2d(np.asarray(frequencies, float))
    w = np.ones(len(q)) if weights is None else np.asarray(weights, float)
    T = np.arange(0.0, 1001.0, 10.0) if temperatures is None else np.asarray(temperatures, float)
    if not len(q) == len(v) == len(w):
        raise InputError(f"{len(q)} q vectors, {len(v)} rows of frequencies, {len(w)} weights: expected equal numbers")
    if T.size and T.min() < 0:
        raise InputError(f"temperature {T.min()} K: expected 0 or more")
    acoustic = gamma_acoustic(q, v)
    used = (v > cutoff_THz) & ~acoustic
    energy = THZ_EV * v[used]  # [modes] eV
    weight = np.broadcast_to(w[:, None] / w.sum(), v.shape)[used]
    F, S, C = np.array([_at_temperature(energy, weight, temperature=t) for t in T]).reshape(-1, 3).T
    counted = (np.broadcast_to(w[:, None], v.shape) * ~acoustic).sum()
    dropped = (np.broadcast_to(w[:, None], v.shape) * (~used & ~acoustic)).sum()
    imaginary = float(dropped / counted) if counted else 0.0  # of one atom at Gamma nothing is counted
    to_mol = KJ_PER_MOL_PER_EV
    return Thermal(T, F * to_mol, 1e3 * S * to_mol, 1e3 * C * to_mol, int(acoustic.sum()), imaginary)


def gamma_acoustic(qpoints: npt.ArrayLike, frequencies: npt.ArrayLike) -> np.ndarray:
    """[q, B] mask of the three modes of smallest |v| at Gamma, whose frequency is noise of either sign about zero."""
    q, v = np.atleast_2d(qpoints), np.atleast_2d(frequencies)
    mask = np.zeros(v.shape, bool)
    for i in np.flatnonzero(np.abs(q - np.rint(q)).max(1) < GAMMA):
        mask[i, np.argsort(np.abs(v[i]))[:NUM_ACOUSTIC]] = True
    return mask


def _at_temperature(energy: np.ndarray, weight: np.ndarray, *, temperature: float) -> tuple[float, float, float]:
    """Free energy (eV), entropy and heat capacity (eV/K) of independent oscillators [modes] (eV)."""
    if temperature == 0:
        return 0.5 * (weight * energy).sum(), 0.0, 0.0
    kT = KB_EV_PER_K * temperature
    x = energy / kT
    decay = np.exp(-x)
    F = (weight * (0.5 * energy + kT * np.log1p(-decay))).sum()
    occupation = decay / -np.expm1(-x)
    S = KB_EV_PER_K * (weight * (x * occupation - np.log1p(-decay))).sum()
    C = KB_EV_PER_K * (weight * x**2 * occupation * (1.0 + occupation)).sum()
    return F, S, C


def write_dos(dos: TotalDos, path: str | Path) -> None:
    """frequency (THz), states per THz and primitive cell."""
    tables.write_csv(
        path,
        ["frequency_THz", "dos_1/THz"],
        rows=zip(dos.frequency_points, needed(dos.dos, "phonopy has no density of states"), strict=True),
    )
