"""A starting model, a teacher close to it, and a few structures that the teacher labelled."""

import ase.io
import jax
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from equijax import checkpoint, testing
from equijax.forcefield import ForceField

SMALL = {"channels": 4, "lmax": 1, "species": (11, 14, 17), "max_ell": 1, "correlation": (2, 2), "radial_mlp": (8,)}


@pytest.fixture(scope="session")
def student() -> ForceField:
    return testing.random_forcefield(testing.random_config(**SMALL))


@pytest.fixture(scope="session")
def folder(student, tmp_path_factory):
    """A folder with model/, train.extxyz (6 structures), test.extxyz (2) and other.extxyz (2, silicon)."""
    path = tmp_path_factory.mktemp("finetune")
    checkpoint.save(path / "model", student.config, student.variables, {"source": "random"})
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda w: w * (1 + 0.2 * rng.normal(size=w.shape)), student.variables["params"])
    teacher = ForceField(student.config, {**student.variables, "params": params}, {})
    salt = [testing.rattled(seed=i) for i in range(8)]
    silicon = [testing.rattled("Si", "diamond", 5.4, seed=i) for i in range(2)]
    for name, images in (("train", salt[:6]), ("test", salt[6:]), ("other", silicon)):
        for atoms, found in zip(images, teacher.evaluate(images), strict=True):
            labels = {"energy": found.energy, "forces": found.forces}
            atoms.calc = SinglePointCalculator(atoms, **labels, stress=found.stress.ravel()[[0, 4, 8, 5, 2, 1]])
        ase.io.write(path / f"{name}.extxyz", images)
    return path


@pytest.fixture(scope="session")
def arguments(folder):
    """Command line of a short run: out folder, then anything that differs."""

    def make(out, *more):
        given = {"--model": folder / "model", "--train": folder / "train.extxyz", "--out": out, "--epochs": 2,
                 "--rank": 2, "--batch-size": 2, "--lr": 0.01, "--warmup": 1}  # fmt: skip
        given |= dict(zip(more[::2], more[1::2], strict=True))
        return [str(x) for pair in given.items() for x in pair]

    return make
