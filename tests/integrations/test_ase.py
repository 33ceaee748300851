"""ASE's vibrations, nudged elastic bands and equations of state with our calculator, against equijax's own."""

import ase.vibrations
import numpy as np
import pytest
from ase import units
from ase.eos import EquationOfState
from ase.mep import NEB
from ase.optimize import BFGS

from equijax import hessian
from tests.samples import attached


def test_vibrations(mini, silicon, tmp_path):
    """Its finite differences have the energies of the exact Hessian, meV."""
    atoms = attached(mini, silicon)
    vibrations = ase.vibrations.Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    exact = ase.vibrations.VibrationsData(atoms, hessian.hessian(mini, silicon))
    theirs, ours = (1e3 * v.get_energies().real for v in (vibrations, exact))
    np.testing.assert_allclose(theirs[3:], ours[3:], rtol=0, atol=0.05)


def test_equation_of_state(mini, silicon):
    """Its minimum is the volume that `equijax.relax` finds."""
    cells = [attached(mini, silicon) for _ in range(7)]
    for atoms, scale in zip(cells, np.linspace(0.98, 1.02, 7), strict=True):
        atoms.set_cell(silicon.cell * scale, scale_atoms=True)
    fit = EquationOfState([a.cell.volume for a in cells], [a.get_potential_energy() for a in cells], "birchmurnaghan")
    volume, _, bulk_modulus = fit.fit()
    assert volume == pytest.approx(silicon.cell.volume, rel=1e-3)
    assert 60 < bulk_modulus / units.GPa < 120


def test_elastic_band_of_a_vacancy(mini, silicon):
    """The barrier of a hop into a vacancy: both ends are alike, and the images share one calculator."""
    perfect = silicon.repeat(2)
    neighbour = int(np.argmin(perfect.get_distances(0, range(1, len(perfect)), mic=True))) + 1
    ends = []
    for gone in (0, neighbour):
        keep = [i for i in range(len(perfect)) if i not in (0, neighbour)]
        moving = perfect[[neighbour if gone == 0 else 0]]
        ends.append(perfect[keep] + moving)
    shift = ends[1].positions[-1] - ends[0].positions[-1]
    ends[1].positions[-1] = (
        ends[0].positions[-1] + shift - perfect.cell.cartesian_positions(np.round(perfect.cell.scaled_positions(shift)))
    )
    calculator = mini.calculator()
    for end in ends:
        end.calc = calculator
        BFGS(end, logfile=None).run(fmax=0.02)
    images = [ends[0], *(ends[0].copy() for _ in range(3)), ends[1]]
    band = NEB(images, allow_shared_calculator=True, climb=True, method="improvedtangent")
    band.interpolate(mic=True)
    for image in images:
        image.calc = calculator
    BFGS(band, logfile=None).run(fmax=0.05, steps=50)
    energies = [image.get_potential_energy() for image in images]
    assert energies[0] == pytest.approx(energies[-1], abs=1e-3)
    assert 0.01 < max(energies) - energies[0] < 5
