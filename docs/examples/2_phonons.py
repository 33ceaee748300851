"""Phonons of silicon: relax, take exact second derivatives, let phonopy do the rest."""

import numpy as np
from ase.build import bulk

import equijax
from equijax import phonons
from equijax.phonons import force_constants
from equijax.relax import symmetric

ff = equijax.load("model")

# float64, keeps the space group
atoms, report = symmetric.relax(ff, bulk("Si", "diamond", a=5.43), fmax=1e-5)
print(f"a = {np.sqrt(2) * atoms.cell.lengths()[0]:.4f} A, {report.space_group_after}, {report.steps} steps")

# a phonopy.Phonopy with exact force constants: no displacement step, nothing symmetrised
phonon = phonons.make_phonon(atoms, (3, 3, 3))
force_constants.force_constants(ff, phonon)
for law, residual in phonons.residuals(phonon)._asdict().items():
    print(f"{law}: {residual:.1e}")

# from here on phonopy's own methods
for name, q in {"Gamma": (0, 0, 0), "X": (0.5, 0, 0.5), "L": (0.5, 0.5, 0.5)}.items():
    print(f"{name:5}", np.round(phonon.run_qpoints([q]).frequencies[0], 3) + 0.0, "THz")
phonon.run_mesh((10, 10, 10), is_gamma_center=True)
phonon.run_thermal_properties(temperatures=[300])
print(f"heat capacity at 300 K: {phonon.thermal_properties.heat_capacity[0]:.2f} J/(K mol)")
phonon.save("silicon.yaml", settings={"force_constants": True})
