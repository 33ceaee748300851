"""Physical constants and unit conversions; the unit is in the name or the comment.

Lengths are in Angstrom, energies in eV, masses in amu, frequencies in THz, temperatures in K (CODATA 2014, as in
`ase.units` and phonopy 4, so that numbers agree with both).
"""

import math

from ase import units as _ase

EV_J = _ase._e  # J per eV
AMU_KG = _ase._amu  # kg per amu
KB_EV_PER_K = _ase.kB
PLANCK_EV_S = _ase._hplanck / _ase._e  # eV s
THZ_EV = PLANCK_EV_S * 1e12  # energy h nu of a 1 THz quantum, eV
GPA_PER_EV_A3 = 1.0 / _ase.GPa  # GPa in 1 eV/A^3
KJ_PER_MOL_PER_EV = _ase.mol / _ase.kJ  # kJ/mol in 1 eV per particle
# sqrt(eV/(A^2 amu)) is an angular frequency; divide by 2 pi for a frequency in THz
SQRT_EV_A2_AMU_THZ = math.sqrt(EV_J / AMU_KG) / 1e-10 / (2 * math.pi) / 1e12
