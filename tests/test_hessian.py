"""Hessian-vector products against a dense jax.hessian, structures batched against alone, eight devices against one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from equijax import executables, graph, hessian, potential
from equijax.config import Compute
from equijax.testing import TOLERANCE, random_config, random_forcefield, rattled
from tests.phonons.samples import SMALL

ROOT = Path(__file__).resolve().parents[2]
EXACT = TOLERANCE["float64"]["hessian"]


@pytest.fixture(scope="module")
def ff():
    return random_forcefield(random_config(**SMALL))


@pytest.fixture(scope="module")
def atoms():
    return rattled()


@pytest.fixture(scope="module")
def full(ff, atoms):
    return hessian.hessian(ff, atoms)


def dense(ff, atoms):
    """[N, 3, N, 3] by jax.hessian of the energy."""
    with jax.enable_x64(True):
        batch = jax.device_put(potential.cast(graph.from_atoms(atoms, ff.config), "float64"))
        variables = ff.device_variables("float64")
        energy = jax.jit(jax.hessian(lambda r: potential.total_energy(ff.config, variables, graph=batch, positions=r)))
        return np.asarray(energy(batch.nodes.positions))


def test_full_hessian_is_the_dense_one_and_obeys_its_laws(ff, atoms, full):
    reference = dense(ff, atoms)
    assert np.abs(reference).max() > 0.01
    np.testing.assert_allclose(full, reference, rtol=0, atol=EXACT)
    np.testing.assert_allclose(full, full.transpose(2, 3, 0, 1), rtol=0, atol=EXACT)
    np.testing.assert_allclose(full.sum(2), 0, rtol=0, atol=EXACT)


def test_structures_of_different_size_in_one_call(ff, atoms, full):
    doubled = atoms.repeat((2, 1, 1))
    found = hessian.hessians(ff, [atoms, doubled, atoms], rows=[[7], [5], []])
    assert [h.shape for h in found] == [(1, 3, 8, 3), (1, 3, 16, 3), (0, 3, 8, 3)]
    np.testing.assert_allclose(found[0], full[[7]], rtol=0, atol=EXACT)
    # an atom and its periodic image moving together: the images' columns add up to those of the small cell
    np.testing.assert_allclose(found[1].reshape(3, 2, 8, 3).sum(1)[None], full[[5]], rtol=0, atol=EXACT)


def test_a_budget_too_small_for_one_row_is_an_error_that_says_what_is_needed(ff, atoms):
    with pytest.raises(MemoryError, match="one Hessian row of .* atoms .* the budget is 0.00 GB"):
        hessian.hessians(ff, [atoms, atoms.repeat((2, 1, 1)), atoms], rows=[[7], [5], []], compute=Compute(memory=1000))


def test_tangents_are_linear_and_a_second_call_compiles_nothing(ff, atoms, full):
    tangents = np.random.default_rng(0).normal(size=(20, len(atoms), 3))
    before = set(executables.programs)
    found = hessian.hvp(ff, atoms, tangents=tangents)
    assert set(executables.programs) == before
    np.testing.assert_allclose(found, np.einsum("bia,iajc->bjc", tangents, full), rtol=0, atol=10 * EXACT)


def test_float32_with_sums_in_float64(ff, atoms, full):
    """Errors of single precision; edge vectors are the only edge arrays in float64."""
    found = hessian.hessian(ff, atoms, compute=Compute("float32"))
    assert 0 < np.abs(found - full).max() < 1e-5 * np.abs(full).max()
    np.testing.assert_allclose(found.sum(2), 0, rtol=0, atol=1e-6 * np.abs(full).max())
    (program, _), *_ = [p for key, p in executables.programs.items() if "float32" in key and key[1] == ff.config]
    wide = {shape for shape in re.findall(r"f64\[([\d,]+)\]", program.as_text()) if int(shape.split(",")[-1]) > 3}
    assert not wide


def test_wrong_input_is_refused_before_work(ff, atoms):
    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected \[B, 8, 3\]"):
        hessian.hvp(ff, atoms, tangents=np.zeros((1, 3)))
    with pytest.raises(ValueError, match="not all finite"):
        hessian.hvp(ff, atoms, tangents=np.full((1, 8, 3), np.nan))
    with pytest.raises(IndexError, match=r"0\.\.7"):
        hessian.hessian(ff, atoms, rows=[8])
    with pytest.raises(ValueError, match="bfloat16"):
        hessian.hvp(ff, atoms, tangents=np.zeros((1, 8, 3)), compute=Compute("bfloat16"))
    unknown = atoms.copy()
    unknown.numbers[0] = 92
    with pytest.raises(ValueError, match="element U"):
        hessian.hessian(ff, unknown)


def test_eight_devices_give_the_rows_of_one(ff, atoms, full, tmp_path):
    code = (
        "import jax, numpy as np, sys\n"
        "from equijax import hessian\n"
        "from equijax.testing import random_config, random_forcefield, rattled\n"
        "assert jax.local_device_count() == 8\n"
        f"ff = random_forcefield(random_config(**{SMALL!r}))\n"
        "np.save(sys.argv[1], hessian.hessian(ff, rattled(), rows=[0, 1, 2]))\n"
    )
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([sys.executable, "-c", code, tmp_path / "rows.npy"], check=True, env=environment, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), full[:3], rtol=0, atol=EXACT)
