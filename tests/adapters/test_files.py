"""Adapter directories: tied to their backbone, whole or refused, switched without compiling."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from equijax import checkpoint, pytrees, testing
from equijax.adapters import files, lora
from equijax.errors import InputError
from equijax.forcefield import ForceField
from equijax.programs import adapters
from tests.adapters.samples import trained


@pytest.fixture
def base(student) -> ForceField:
    return student


def test_directory_round_trip_merge_and_refusal(base, tmp_path, capsys):
    saved, energies = trained(base, 0.5), base.variables["constants"]["atomic_energies"] + np.array([0.0, 0.0, 1.5])
    checkpoint.save(tmp_path / "base", base.config, variables=base.variables, metadata={"source": "test"})
    files.save(tmp_path / "a", saved, base=base, energies=energies, dataset_sha256="d")
    found = files.load(tmp_path / "a", base)
    assert (found.adapters.rows, found.adapters.alpha) == (saved.rows, saved.alpha)
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found.adapters), jax.tree.leaves(saved), strict=True)
    )
    np.testing.assert_allclose(found.energies, energies)
    assert list(found.document["energies"]["Default"]) == ["Cl"] and found.document["dataset_sha256"] == "d"
    assert adapters.main(["info", str(tmp_path / "a"), "--model", str(tmp_path / "base")]) == 0
    assert "trainable numbers" in capsys.readouterr().out

    arguments = ["merge", str(tmp_path / "a"), "--model", str(tmp_path / "base"), "--out", str(tmp_path / "merged")]
    assert adapters.main(arguments) == 0
    config, variables, metadata = checkpoint.load(tmp_path / "merged")
    expected = pytrees.paths_of(lora.merge(base.variables, saved, energies=energies))
    assert config == base.config and metadata["base"] == {"source": "test"}
    assert all(np.array_equal(x, expected[path]) for path, x in pytrees.paths_of(variables).items())
    with pytest.raises(InputError, match="belongs to the backbone with fingerprint"):
        files.load(tmp_path / "a", ForceField(config, variables, {}))


def test_the_backbone_is_known_by_options_and_arrays(base, tmp_path):
    """By arrays alone in format 1, which is still read."""
    files.save(tmp_path, trained(base), base=base)
    other = dataclasses.replace(base.config, r_max=base.config.r_max + 0.1)
    with pytest.raises(InputError, match="belongs to the backbone with fingerprint"):
        files.load(tmp_path, ForceField(other, base.variables, {}))
    document = files.info(tmp_path) | {"format": 1, "base_sha256": pytrees.sha256(base.variables)}
    (tmp_path / "adapter.json").write_text(json.dumps(document))
    assert files.load(tmp_path, base).document["format"] == 1


def test_damaged_directories(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="not an adapter directory"):
        files.info(tmp_path)
    files.save(tmp_path, trained(base), base=base)
    document = files.info(tmp_path)
    files.save(tmp_path, trained(base, seed=1), base=base)
    (tmp_path / "adapter.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="not of one save"):
        files.load(tmp_path, base)
    (tmp_path / "adapter.json").write_text(json.dumps({**document, "format": 0}))
    with pytest.raises(InputError, match="adapter format 0"):
        files.info(tmp_path)
    broken = jax.tree.map(lambda x: x * np.nan, trained(base))
    with pytest.raises(InputError, match="non-finite values in"):
        files.save(tmp_path, broken, base=base)


def test_switching_adapters_does_not_recompile(base, tmp_path, programs_made):
    """Adapters of different materials, ranks and species over one backbone: one compiled program."""
    atoms = [testing.rattled()]
    energies = {base.evaluate(atoms)[0].energy}
    before = len(programs_made)
    changes = (trained(base, 1), trained(base, 2, 1), trained(base, 2, 2, rows=(1,)), trained(base, 0.5, rows=None))
    for i, change in enumerate(changes):
        path = files.save(tmp_path / str(i), change, base=base)
        energies.add(files.attach(base, path).evaluate(atoms)[0].energy)
    assert len(programs_made) == before
    assert len(energies) == 5
