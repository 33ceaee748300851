"""Choice of structures to label: what is chosen, what it is worth, what is refused."""

import dataclasses
import json

import ase.io
import jax
import numpy as np
import pytest

from equijax import testing
from equijax.adapters import committee, lora
from equijax.config import Compute
from equijax.finetune import candidates
from equijax.finetune.defaults import LORA_TARGETS
from equijax.forcefield import ForceField
from equijax.programs import select
from tests.adapters.samples import trained


def test_farthest_covers_what_is_not_known():
    corners = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    points = np.concatenate([corners, corners + 0.01])
    chosen, scores = candidates.farthest(points, 4)
    assert {i % 4 for i in chosen} == {0, 1, 2, 3} and scores[1] > scores[3] > 0.9
    (chosen, _) = candidates.farthest(np.concatenate([corners[:3], points]), 1, given=3)
    assert chosen[0] % 4 == 3
    assert sorted(candidates.farthest(np.zeros((5, 2)), 5)[0]) == list(range(5))


def test_design_gains_the_determinant_of_the_information():
    """Against log det(1 + J^T J) of all rows together, over parameters instead of rows."""
    J = np.random.default_rng(0).normal(size=(6, 2, 4))
    chosen, gains = candidates.d_optimal(J, 3, given=1)

    def information(which):
        rows = np.concatenate([J[i] for i in which])
        return np.linalg.slogdet(np.eye(4) + rows.T @ rows)[1]

    found = [0]
    for i, gain in zip(chosen, gains, strict=True):
        rest = [j for j in range(1, 6) if j not in found]
        values = [information([*found, j]) - information(found) for j in rest]
        assert i + 1 == rest[int(np.argmax(values))] and gain == pytest.approx(max(values), rel=1e-10)
        found.append(i + 1)


def test_gradients_are_changes_of_energies_and_forces(student):
    """Against differences of energies under a change of the adapters' B."""
    atoms = testing.rattled()
    (found,) = candidates.gradients(student, [atoms], compute=Compute("float64"), seed=3)
    params = student.variables["params"]
    start = lora.init_lora(params, candidates.RANK, alpha=candidates.RANK, targets=LORA_TARGETS, key=3, rows=(0, 2))
    rng, step = np.random.default_rng(1), 1e-4
    change = {p: {k: rng.normal(size=x.shape) for k, x in e.items() if k != "A"} for p, e in start.arrays.items()}
    flat = np.concatenate([x.ravel() for entry in change.values() for x in entry.values()])

    def results(sign):
        arrays = {
            p: {k: x + sign * step * change[p].get(k, 0.0) for k, x in e.items()} for p, e in start.arrays.items()
        }
        variables = lora.merge(student.variables, dataclasses.replace(start, arrays=arrays))
        return ForceField(student.config, variables, {}).evaluate([atoms], compute=Compute("float64"))[0]

    more, less = results(1), results(-1)
    per_atom = (more.energy - less.energy) / (2 * step) / len(atoms)
    assert found[0] @ flat == pytest.approx(candidates.PRIOR / candidates.ENERGY_EV * per_atom, rel=1e-4)
    directions = np.random.default_rng(3).normal(size=(candidates.DIRECTIONS, len(atoms), 3))
    slopes = -np.einsum("dnx,nx->d", directions, more.forces - less.forces) / (2 * step)
    scale = candidates.PRIOR / candidates.FORCE_EV_A / np.sqrt(candidates.DIRECTIONS)
    np.testing.assert_allclose(found[1:] @ flat, scale * slopes, rtol=1e-3)


@pytest.fixture(scope="module")
def several(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("select")
    stacked = jax.tree.map(lambda *x: np.stack(x), *(trained(student, seed=m) for m in range(2)))
    committee.save(path / "committee", stacked, base=student)
    images = [testing.rattled(seed=0) for _ in range(3)]
    images[1].rattle(0.2, seed=1)  # the only one that differs
    ase.io.write(path / "candidates.extxyz", images)
    return path


@pytest.mark.parametrize("by", ["farthest", "gradients", "uncertainty", "random"])
def test_program(several, tmp_path, capsys, by):
    argv = [several / "candidates.extxyz", "--model", several / "committee", "--count", 2, "--by", by]
    argv = [str(x) for x in (*argv, "--out", tmp_path / "out")]
    assert select.main(argv) == 0
    said = capsys.readouterr().out
    assert "2 of 3 candidates" in said and "POSCAR-002" in said
    images = ase.io.read(tmp_path / "out" / "structures.extxyz", ":")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(images) == 2 == len(report["scores"]) and images[0].calc is None
    assert by == "random" or report["kinds"][0].startswith("frame 1 of ")
    assert select.main(argv) == 2 and "choose another --out" in capsys.readouterr().err


def test_what_cannot_work_is_refused(several, folder, tmp_path, capsys):
    argv = [str(several / "candidates.extxyz"), "--model", str(folder / "model"), "--out", str(tmp_path / "out")]
    assert select.main([*argv, "--count", "4"]) == 2
    assert "count = 4 must be between 1 and the 3 candidates" in capsys.readouterr().err
    assert select.main([*argv, "--count", "1", "--by", "uncertainty"]) == 2
    assert "asks a committee" in capsys.readouterr().err
