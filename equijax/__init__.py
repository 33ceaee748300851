"""MACE-MP-0b3 in JAX: convert, fine-tune, differentiate."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equijax.config import ModelConfig as ModelConfig
    from equijax.forcefield import ForceField as ForceField
    from equijax.forcefield import load as load

__version__ = "0.1.0"

# Imported when asked for: a program that only prints its help, or that a file is missing, does not wait for JAX.
_HOMES = {"ModelConfig": "equijax.config", "ForceField": "equijax.forcefield", "load": "equijax.forcefield"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'equijax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
