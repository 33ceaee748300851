"""Models and a metal for dynamics; programs of the tiny MACE compile in seconds."""

import re

import ase.io
import jax
import numpy as np
import pytest
from ase.build import bulk

from equijax.md import run as md
from equijax.programs.md import main
from equijax.testing import random_config, random_forcefield
from tests.md.samples import Morse, command

# the cheapest model with every kind of layer: programs of it compile in seconds
TINY = {
    "channels": 2,
    "lmax": 1,
    "species": (11, 14, 17),
    "max_ell": 1,
    "correlation": (2, 2),
    "num_radial": 3,
    "radial_mlp": (8, 8),
    "readout_mlp": 4,
}


@pytest.fixture(scope="module")
def tiny():
    ff = random_forcefield(random_config(**TINY))
    ff.variables["constants"]["scale"] = np.array([100.0])  # forces of about 1 eV/A
    return ff


@pytest.fixture(scope="module")
def morse():
    config = random_config(species=(13,), r_max=5.0)
    return Morse(config, {"constants": {"atomic_energies": np.full((1, 1), -2.0)}}, {})


@pytest.fixture
def optimised():
    """Thousands of steps of one program: it is compiled with care."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def loaded(monkeypatch, morse):
    """The command line loads the pair potential, whatever model it is given."""
    monkeypatch.setattr(md, "load", lambda path, head: morse)


@pytest.fixture(scope="module")
def metal(tmp_path_factory):
    path = tmp_path_factory.mktemp("structure") / "metal.extxyz"
    ase.io.write(path, bulk("Al", a=4.3, cubic=True) * (2, 2, 2))
    return path


@pytest.fixture
def refused(capsys):
    """Check that a run ends before it begins, in one line that says why."""

    def check(message, folder, *arguments):
        assert main(command(folder, *arguments)) == 2
        (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("equijax md:"))
        assert re.search(message, line)

    return check
