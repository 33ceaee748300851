"""Energies, forces and stress against mace-torch on every kind of structure, for every block type and both dtypes."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from e3nn import o3
from mace.calculators import MACECalculator

from convert import mapping, run
from convert.torch_model import read_model
from equijax import derivatives, graph, testing
from equijax.descriptors import descriptors
from equijax.forcefield import ForceField
from tests.parity.test_convert_parity import VARIANTS, torch_model

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # e3nn 0.4.4 and mace call torch.load the old way
    pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning"),
]

MINI = Path(__file__).resolve().parents[2] / "equijax" / "assets" / "mini.model"
SPECIES = [8, 11, 12, 14, 17, 20, 22]  # those of testing.structures()
PUBLISHED = {  # MACE-MP-0b3-medium but for its 82 other elements
    "first": "Density",
    "later": "DensityResidual",
    "r_max": 6.0,
    "num_bessel": 10,
    "max_ell": 3,
    "correlation": 3,
    "hidden_irreps": "128x0e+128x1o",
    "MLP_irreps": o3.Irreps("16x0e"),
    "radial_MLP": [64, 64, 64],
    "distance_transform": "Agnesi",
    "pair_repulsion": True,
}
CASES = VARIANTS | {"published": PUBLISHED, "published, reduced": PUBLISHED | {"reduced": True}}


@pytest.mark.parametrize("case", [c for c in CASES if c != "chebyshev"])  # torch lacks that basis's derivative
def test_same_numbers_as_mace_torch(case, tmp_path):
    options = dict(CASES[case])
    heads = options.get("heads", ["Default"])
    energies = np.linspace(-3.0, -1.0, len(heads) * len(SPECIES)).reshape(len(heads), -1)
    options |= {"num_elements": len(SPECIES), "atomic_numbers": SPECIES, "atomic_energies": energies}
    path = tmp_path / "a.model"
    torch.save(torch_model(**options), path)
    config, variables = mapping.to_flax(read_model(path))
    images = testing.structures()
    batch = graph.from_atoms(list(images.values()), config, heads=[len(heads) - 1] * len(images))
    for dtype, tolerance in testing.TOLERANCE.items():
        # the oracle always runs in float64: in float32 its own rounding is as large as ours
        torch.set_default_dtype(torch.float64)
        oracle = MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64", head=heads[-1])
        ours = derivatives.evaluate(config, variables, graph=batch, dtype=dtype)
        first = 0
        for i, (name, atoms) in enumerate(images.items()):
            atoms.calc = oracle
            rows = slice(first, first := first + len(atoms))
            error = {
                "energy": (atoms.get_potential_energy() - ours.energy[i]) / len(atoms),
                "forces": atoms.get_forces() - ours.forces[rows],
            }
            if atoms.pbc.all():
                error["stress"] = atoms.get_stress(voigt=False) - ours.stress[i]
            for key, value in error.items():
                worst = np.abs(value).max()
                assert worst <= tolerance[key], f"{name}, {dtype}: {key} differs by {worst:.2e}"


@pytest.mark.parametrize("case", ["L2", "narrow"])
@pytest.mark.parametrize("invariants_only", [True, False])
def test_same_descriptors_as_mace_torch(case, invariants_only, tmp_path):
    options = CASES[case] | {"num_elements": len(SPECIES), "atomic_numbers": SPECIES, "atomic_energies": [-1.0] * 7}
    path = tmp_path / "a.model"
    torch.save(torch_model(**options), path)
    ff = ForceField(*mapping.to_flax(read_model(path)), {})
    torch.set_default_dtype(torch.float64)
    oracle = MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64")
    images = list(testing.structures().values())
    for layers in (1, None):
        found = descriptors(ff, images, invariants_only=invariants_only, num_layers=layers)
        for atoms, ours in zip(images, found, strict=True):
            theirs = oracle.get_descriptors(atoms, invariants_only=invariants_only, num_layers=layers or -1)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def mini():
    """The bundled model, and mace-torch's calculator of it: {"ours": ForceField, "theirs": MACECalculator}."""
    torch.set_default_dtype(torch.float64)
    with warnings.catch_warnings(action="ignore"):
        theirs = MACECalculator(
            model_paths=str(MINI), device="cpu", default_dtype="float64", compute_atomic_stresses=True
        )
    return {"ours": ForceField(*mapping.to_flax(read_model(MINI)), {}), "theirs": theirs}


def test_same_calculator_as_mace_torch(mini):
    """`results`, Hessian and descriptors under the same names, in the same shapes.

    To the precision of float32, in which the file was built.
    """
    atoms = testing.rattled()
    ours, theirs = mini["ours"].calculator(), mini["theirs"]
    for calculator in (ours, theirs):
        calculator.calculate(atoms, ["energy", "stresses"])
    assert set(theirs.results) - {"virials"} == set(ours.results)
    values = {name: (c.results[name] for c in (ours, theirs)) for name in ours.results}
    values["hessian"] = (c.get_hessian(atoms) for c in (ours, theirs))
    for options in ((), (False,), (True, 1), (False, 1)):
        values[f"descriptors{options}"] = (c.get_descriptors(atoms, *options) for c in (ours, theirs))
    for name, (found, expected) in values.items():
        assert np.shape(found) == np.shape(expected), name
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=name)
    assert ours.get_hessian(atoms).shape == (3 * len(atoms), len(atoms), 3)


def test_lammps_model_of_a_model_converted_back(mini, tmp_path):
    """What mace-torch's `create_lammps_model` makes of a file of --to-torch has our energies and forces."""
    run.convert(run.ConvertOptions(str(MINI), tmp_path / "model"))
    run.convert(run.ConvertOptions(str(tmp_path / "model"), tmp_path / "back.model", to_torch=True))
    command = [sys.executable, "-m", "mace.cli.create_lammps_model", str(tmp_path / "back.model")]
    subprocess.run(command, check=True, capture_output=True)
    engine = torch.jit.load(tmp_path / "back.model-lammps.pt")
    atoms = testing.rattled()
    batch = mini["theirs"]._atoms_to_batch(atoms).to_dict()
    found = engine(batch, torch.ones(len(atoms)), False)
    ours = mini["ours"].calculator()
    assert float(found["node_energy"].detach().sum()) == pytest.approx(ours.get_potential_energy(atoms), rel=1e-7)
    np.testing.assert_allclose(found["forces"].detach(), ours.get_forces(atoms), rtol=0, atol=1e-6)
