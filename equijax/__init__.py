"""MACE-MP-0b3 in JAX: convert, fine-tune, differentiate."""

from typing import TYPE_CHECKING

from equijax.faces import face

if TYPE_CHECKING:
    from equijax.adapters.committee import load_committee as load_committee
    from equijax.config import Compute as Compute
    from equijax.config import ModelConfig as ModelConfig
    from equijax.forcefield import ForceField as ForceField
    from equijax.forcefield import load as load

__version__ = "0.1.0"
__getattr__, __dir__ = face(
    __name__,
    {
        "Compute": "config",
        "ModelConfig": "config",
        "ForceField": "forcefield",
        "load": "forcefield",
        "load_committee": "adapters.committee",
    },
)
