"""Force constants, dynamical matrices, phonons and what follows from them, by exact derivatives of the energy."""

from typing import TYPE_CHECKING

from equijax.faces import face

if TYPE_CHECKING:
    from equijax.phonons.dynamical import band_structure as band_structure
    from equijax.phonons.dynamical import dynamical_matrices as dynamical_matrices
    from equijax.phonons.dynamical import group_velocities as group_velocities
    from equijax.phonons.force_constants import make_phonon as make_phonon
    from equijax.phonons.force_constants import project as project
    from equijax.phonons.force_constants import residuals as residuals
    from equijax.phonons.third_order import make_phono3py as make_phono3py
    from equijax.phonons.volumes import gruneisen as gruneisen
    from equijax.phonons.volumes import quasi_harmonic as quasi_harmonic
    from equijax.phonons.volumes import series as series

__getattr__, __dir__ = face(
    __name__,
    {
        "band_structure": "dynamical",
        "dynamical_matrices": "dynamical",
        "group_velocities": "dynamical",
        "gruneisen": "volumes",
        "make_phono3py": "third_order",
        "make_phonon": "force_constants",
        "project": "force_constants",
        "quasi_harmonic": "volumes",
        "residuals": "force_constants",
        "series": "volumes",
    },
)
