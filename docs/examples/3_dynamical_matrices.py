"""Dynamical matrices and group velocities at any q, on the primitive cell: no supercell, no interpolation."""

import numpy as np
from ase.build import bulk

import equijax
from equijax.phonons import dynamical

ff = equijax.load("model")
atoms = bulk("Si", "diamond", a=5.43)
qpoints = np.array([[0, 0, 0], [0.5, 0, 0.5], [0.1, 0.2, 0.3]])

D = dynamical.dynamical_matrices(ff, atoms, qpoints=qpoints)  # [Q, 3N, 3N], eV/(A^2 amu)
print("Hermitian to", f"{np.abs(D - D.conj().swapaxes(1, 2)).max():.0e}", "eV/(A^2 amu)")
for q, frequencies in zip(qpoints, dynamical.frequencies(D), strict=True):
    print(q, np.round(frequencies, 3) + 0.0, "THz")

# group velocities differentiate D with respect to q; here against a finite difference of the frequencies
q, h = qpoints[2], 1e-4
velocities = dynamical.group_velocities(ff, atoms, qpoints=[q])[0]  # [3N, 3] THz A
step = h * atoms.cell.array.T[0]  # h / A along Cartesian x, in reciprocal lattice vectors
around = dynamical.frequencies(dynamical.dynamical_matrices(ff, atoms, qpoints=[q + step, q - step]))
print("along x:          ", np.round(velocities[:, 0], 3), "THz A")
print("finite difference:", np.round((around[0] - around[1]) / (2 * h), 3), "THz A")
