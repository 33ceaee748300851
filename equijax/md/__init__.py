"""Molecular dynamics: a potential for `jax_md.simulate`, and runs with files and restarts."""

from typing import TYPE_CHECKING

from equijax.faces import face

if TYPE_CHECKING:
    from equijax.md.blocks import Lost as Lost
    from equijax.md.blocks import Stepper as Stepper
    from equijax.md.blocks import run_blocks as run_blocks
    from equijax.md.momenta import thermal_momenta as thermal_momenta
    from equijax.md.options import MDConfig as MDConfig
    from equijax.md.potential import energy_neighbor as energy_neighbor
    from equijax.md.run import simulate as simulate
    from equijax.md.simulation import FS as FS

__getattr__, __dir__ = face(
    __name__,
    {
        "FS": "simulation",
        "Lost": "blocks",
        "MDConfig": "options",
        "Stepper": "blocks",
        "run_blocks": "blocks",
        "energy_neighbor": "potential",
        "simulate": "run",
        "thermal_momenta": "momenta",
    },
)
