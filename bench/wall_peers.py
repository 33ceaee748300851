"""What a person with mace-torch runs for the rows of `wall.py`: `python bench/wall_peers.py TASK ...`.

Each does what equijax's command of that name does, the way mace-torch, ASE and phonopy document it.
"""

import os
import sys
from pathlib import Path

import ase.io
import numpy as np

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn 0.4.4 loads its constants with torch.load
FMAX = 1e-4  # eV/A, as `python -m equijax.phonons --relax`


def calculator(model: str, dtype: str = "float64"):
    """mace-torch's ASE calculator."""
    from mace.calculators import MACECalculator

    return MACECalculator(model_paths=model, device="cpu", default_dtype=dtype)


def energy(model: str, structure: str) -> None:
    """Energy and forces once."""
    atoms = ase.io.read(structure)
    atoms.calc = calculator(model)
    print(atoms.get_potential_energy(), np.abs(atoms.get_forces()).max())


def relaxation(model: str, structure: str) -> ase.Atoms:
    """Ions and cell, keeping the symmetry."""
    from ase.constraints import FixSymmetry
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    atoms = ase.io.read(structure)
    atoms.calc = calculator(model)
    atoms.set_constraint(FixSymmetry(atoms))
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=FMAX, steps=500)
    print(atoms.get_potential_energy(), atoms.cell.lengths())
    return atoms


def phonons(model: str, structure: str, out: str) -> None:
    """Relaxation, finite differences on a 3 x 3 x 3 supercell, bands and thermal properties."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    atoms = relaxation(model, structure)
    cell = PhonopyAtoms(numbers=atoms.numbers, cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions())
    phonon = Phonopy(cell, np.diag([3, 3, 3]), primitive_matrix="auto")
    phonon.generate_displacements(distance=0.01)
    forces = []
    for moved in phonon.supercells_with_displacements:
        image = ase.Atoms(moved.symbols, positions=moved.positions, cell=moved.cell, pbc=True)
        image.calc = atoms.calc
        forces.append(image.get_forces())
    phonon.forces = forces
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    phonon.auto_band_structure(plot=True).savefig(Path(out) / "bands.png")
    phonon.run_mesh([20, 20, 20])
    phonon.run_thermal_properties(t_step=10, t_max=1000)
    phonon.save(Path(out) / "phonopy_params.yaml", settings={"force_constants": True})


def md(model: str, structure: str) -> None:
    """1,000 steps at 300 K in float32."""
    from ase import units
    from ase.md.nose_hoover_chain import NoseHooverChainNVT
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

    atoms = ase.io.read(structure)
    atoms.calc = calculator(model, "float32")
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    NoseHooverChainNVT(atoms, timestep=units.fs, temperature_K=300, tdamp=100 * units.fs).run(1000)
    print(atoms.get_temperature())


def finetune(model: str, train: str, valid: str, out: str) -> None:
    """Twelve passes over ten structures, all parameters."""
    from mace.cli.run_train import main

    os.chdir(out)
    options = {
        "name": "tuned",
        "foundation_model": model,
        "train_file": train,
        "valid_file": valid,
        "E0s": "foundation",
        "energy_key": "energy",
        "forces_key": "forces",
        "stress_key": "stress",
        "energy_weight": 1,
        "forces_weight": 10,
        "stress_weight": 100,
        "compute_stress": True,
        "loss": "universal",
        "lr": 1e-3,
        "batch_size": 1,
        "valid_batch_size": 4,
        "max_num_epochs": 12,
        "eval_interval": 1,
        "device": "cpu",
        "default_dtype": "float32",
        "multiheads_finetuning": False,
        "ema": True,
        "ema_decay": 0.999,
        "seed": 0,
    }
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    sys.argv = ["mace_run_train", *flags]
    main()


if __name__ == "__main__":
    {f.__name__: f for f in (energy, relaxation, phonons, md, finetune)}[sys.argv[1]](*sys.argv[2:])
