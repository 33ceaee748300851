"""Dispersion against torch-dftd, by which mace-torch computes `dispersion=True`: from the same tables, to rounding."""

import numpy as np
import pytest
from ase.units import Bohr, Hartree

from equijax import testing
from equijax.config import Compute

torch = pytest.importorskip("torch")
pytest.importorskip("torch_dftd", reason="needs the d3 extra")


@pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy.ndarrays:UserWarning")  # torch-dftd does
def test_energy_forces_and_stress(monkeypatch):
    from torch_dftd.nn import dftd3_module
    from torch_dftd.torch_dftd3_calculator import TorchDFTD3Calculator

    monkeypatch.setattr(dftd3_module, "d3_autoang", Bohr)  # older constants there, of eight digits
    monkeypatch.setattr(dftd3_module, "d3_autoev", Hartree)
    plain = testing.random_forcefield(testing.random_config(channels=4))
    both, exact, tolerance = plain.with_dispersion("pbe"), Compute("float64"), testing.TOLERANCE["float64"]
    images = [testing.structures()[name] for name in ("perovskite", "triclinic", "molecule")]
    found = (ff.evaluate(images, compute=exact) for ff in (both, plain))
    for atoms, a, b in zip(images, *found, strict=True):
        options = {"damping": "bj", "xc": "pbe", "cutoff": both.config.dispersion.cutoff, "dtype": torch.float64}
        atoms.calc = TorchDFTD3Calculator(atoms=atoms, **options)
        energy = atoms.get_potential_energy()
        np.testing.assert_allclose(a.energy - b.energy, energy, rtol=0, atol=tolerance["energy"] * len(atoms))
        np.testing.assert_allclose(a.forces - b.forces, atoms.get_forces(), rtol=0, atol=tolerance["forces"])
        if atoms.pbc.all():
            stress = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(a.stress - b.stress, stress, rtol=0, atol=tolerance["stress"])
