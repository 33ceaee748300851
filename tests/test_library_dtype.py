"""What is asked for in float64 is computed in float64, called from a process where nobody switched 64 bits on."""

import ase.io
import jax
import numpy as np
import pytest

from equijax import checkpoint, data, graph, hessian, potential
from equijax.config import Compute
from equijax.finetune import replay
from equijax.md import options, simulation
from equijax.phonons import dynamical
from equijax.relax import batched, symmetric
from equijax.testing import random_config, random_forcefield, rattled
from tests.samples import CHEAP

FF = random_forcefield(random_config(**CHEAP))

ATOMS = rattled()


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    """Forces [n, 3] and Hessian [n, 3, n, 3] by JAX alone, 64 bits on."""

    @jax.jit
    def both(variables, g):
        gradient = jax.grad(lambda x: potential.total_energy(FF.config, variables, graph=g, positions=x))
        return -gradient(g.nodes.positions), jax.jacfwd(gradient)(g.nodes.positions)

    n = len(ATOMS)
    with jax.enable_x64(True):
        batch = graph.from_atoms(ATOMS, FF.config)
        forces, second = both(potential.cast(FF.variables, "float64"), potential.cast(batch, "float64"))
        return {"forces": np.asarray(forces)[:n], "hessian": np.asarray(second)[:n, :, :n]}


def calculator():
    atoms = ATOMS.copy()
    atoms.calc = FF.calculator(dtype="float64")
    return atoms.get_forces()


def dynamical_matrix():
    """The Hessian of the cell: at q = 0 all periodic images move alike."""
    root = np.repeat(np.sqrt(ATOMS.get_masses()), 3)
    (found,) = dynamical.dynamical_matrices(FF, ATOMS, qpoints=[[0.0, 0.0, 0.0]]) * np.outer(root, root)
    return (dynamical.phase(ATOMS, [[0.0, 0.0, 0.0]])[0].conj() * found).real.reshape(8, 3, 8, 3)


def relaxed_in_no_steps():
    return batched.relax(FF, [ATOMS], fmax=1e3, steps=1)[0].atoms.get_forces()


LABELLED = data.Labelled(ATOMS)
FUNCTIONS = {
    "evaluate": ("forces", lambda: FF.evaluate([ATOMS], compute=Compute())[0].forces),
    "predictions": ("forces", lambda: data.predictions(FF, [LABELLED], dtype="float64")[0].forces),
    "calculator": ("forces", calculator),
    "pseudo labels": ("forces", lambda: replay.pseudo_label(FF, [LABELLED], dtype="float64")[0].forces),
    "screen": ("forces", relaxed_in_no_steps),
    "hessian": ("hessian", lambda: hessian.hessian(FF, ATOMS)),
    "bloch": ("hessian", dynamical_matrix),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_float64(name, reference):
    assert not jax.config.jax_enable_x64
    quantity, function = FUNCTIONS[name]
    found = function()
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, reference[quantity], rtol=0, atol=1e-10)


def test_float32_would_have_been_noticed(reference):
    found = FF.evaluate([ATOMS])[0].forces
    assert np.abs(found - reference["forces"]).max() > 1e-9


def test_relaxation_is_float64(reference):
    _, report = symmetric.relax(FF, ATOMS, fmax=1e3, cell=False, symprec=None, steps=1)
    largest = np.linalg.norm(reference["forces"], axis=1).max()
    assert report.residuals.max_force_eV_A == pytest.approx(largest, abs=1e-10)


def test_dynamics_is_float64(reference, tmp_path):
    pytest.importorskip("jax_md")
    h5py = pytest.importorskip("h5py")
    from equijax.md import run

    checkpoint.save(tmp_path / "model", FF.config, variables=FF.variables, metadata={})
    ase.io.write(tmp_path / "a.traj", ATOMS)
    config = options.MDConfig(
        tmp_path / "a.traj",
        tmp_path / "model",
        ensemble="nve",
        steps=1,
        log_every=1,
        trajectory_every=1,
        checkpoint_every=1,
        out=tmp_path / "out",
        trajectory="h5",
        dtype="float64",
    )
    run.simulate(config)
    with h5py.File(tmp_path / "out" / "trajectory.h5") as file:
        first = file["particles/all/force/value"][0]
    np.testing.assert_allclose(first, reference["forces"], rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="float64 needs"):
        simulation.prepare(config, FF)
