"""MACE-MP-0b3 in JAX: convert, fine-tune, differentiate."""

from equijax.config import ModelConfig as ModelConfig
from equijax.forcefield import ForceField as ForceField
from equijax.forcefield import load as load

__version__ = "0.1.0"
