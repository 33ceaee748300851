"""MACE-MP-0b3 in JAX: convert, fine-tune, differentiate."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equijax.config import Compute as Compute
    from equijax.config import ModelConfig as ModelConfig
    from equijax.forcefield import ForceField as ForceField
    from equijax.forcefield import load as load

__version__ = "0.1.0"
HOMES = {"Compute": "config", "ModelConfig": "config", "ForceField": "forcefield", "load": "forcefield"}


def __getattr__(name: str):
    """JAX is imported with the first of these names and not before: `equijax --help` answers without it."""
    if name not in HOMES:
        raise AttributeError(f"module 'equijax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"equijax.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *HOMES]
