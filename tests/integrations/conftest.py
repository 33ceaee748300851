"""The bundled model and the crystals that every program is given."""

from pathlib import Path

import ase.io
import pytest

from convert import mace_mp
from equijax.forcefield import ForceField
from equijax.relax import symmetric

ASSETS = Path(__file__).resolve().parents[2] / "equijax" / "assets"


@pytest.fixture(scope="session")
def mini() -> ForceField:
    """The bundled model."""
    return mace_mp(ASSETS / "mini.model").forcefield


@pytest.fixture(scope="session")
def silicon(mini):
    """The primitive cell of silicon, relaxed by the bundled model."""
    return symmetric.relax(mini, ase.io.read(ASSETS / "Si-dia_relaxed.extxyz"), fmax=1e-6)[0]
