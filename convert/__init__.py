"""Converts mace-torch models to equijax checkpoints and back: `python -m convert SOURCE OUT`."""

from typing import TYPE_CHECKING

from equijax.faces import face

if TYPE_CHECKING:
    from convert.calculators import mace_mp as mace_mp

__getattr__, __dir__ = face(__name__, {"mace_mp": "calculators"})
