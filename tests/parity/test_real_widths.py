"""Energies and forces at the widths of the published MACE-MH-1 and MACE-OMOL, random weights, against mace-torch.

Minutes and 2.6 GB: a part of `make matrix`, not of `make parity`. The scales are small enough for float32's absolute
limits: at 250 (MH-1) and 8 (OMOL) float64 agrees as well, float32 to 1.2e-4 and 3e-5 eV/atom.
"""

import os

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from e3nn import o3
from mace.calculators import MACECalculator

from convert import mapping
from convert.torch_model import read_model
from equijax import testing
from equijax.config import Compute
from equijax.forcefield import ForceField
from tests.parity.test_convert_parity import VARIANTS, torch_model

pytestmark = [
    pytest.mark.skipif("EQUIJAX_MATRIX" not in os.environ, reason="takes minutes: make matrix"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # e3nn 0.4.4 and mace call torch.load the old way
    pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning"),
]

SPECIES = [1, 8, 12]
COMMON = {
    "r_max": 6.0,
    "max_ell": 3,
    "radial_MLP": [64, 64, 64],
    "MLP_irreps": o3.Irreps("16x0e"),
    "atomic_numbers": SPECIES,
    "num_elements": len(SPECIES),
}
CASES = {
    "mh-1": {
        "hidden_irreps": "512x0e+512x1o",
        "edge_irreps": o3.Irreps("128x0e+128x1o"),
        "num_bessel": 10,
        "heads": ["matpes_r2scan", "mp_pbe_refit_add", "spice_wB97M", "oc20_usemppbe", "omol", "omat_pbe"],
        "atomic_inter_scale": [5.0, 6.0, 7.0, 8.0, 9.0, 10.0],  # forces of about 0.05 eV/A, as of the other
        "atomic_inter_shift": [0.1, 0.15, 0.2, 0.25, 0.3, 0.35],
    },
    "omol": {
        "hidden_irreps": "1024x0e+1024x1o+1024x2e",
        "edge_irreps": o3.Irreps("128x0e+128x1o+128x2e"),
        "num_bessel": 8,
    },
}


def structures():
    water = molecule("H2O")
    water.info |= {"charge": 1, "spin": 2}
    oxide = bulk("MgO", "rocksalt", a=4.2)
    oxide.rattle(0.05, seed=1)
    return [water, oxide]


@pytest.mark.parametrize("case", CASES)
def test_same_energies_and_forces_as_mace_torch(case, tmp_path):
    options = VARIANTS[case] | COMMON | CASES[case]
    heads = options.get("heads", ["Default"])
    energies = np.linspace(-3.0, -1.0, len(heads) * len(SPECIES)).reshape(len(heads), -1)
    torch.save(torch_model(**options, atomic_energies=energies), tmp_path / "a.model")
    ff, images = ForceField(*mapping.to_flax(read_model(tmp_path / "a.model")), {}), structures()
    ff = ff.with_head(heads[-1])
    oracle = MACECalculator(tmp_path / "a.model", device="cpu", default_dtype="float64", head=heads[-1])
    theirs = []
    for atoms in images:
        atoms.calc = oracle
        theirs.append((atoms.get_potential_energy(), atoms.get_forces()))
    for dtype, tolerance in testing.TOLERANCE.items():
        for (energy, forces), ours in zip(theirs, ff.evaluate(images, compute=Compute(dtype)), strict=True):
            assert ours.energy == pytest.approx(energy, rel=0, abs=tolerance["energy"] * len(forces))
            np.testing.assert_allclose(ours.forces, forces, rtol=0, atol=tolerance["forces"])
