"""Model directories: written and read again."""

import pytest

from equijax import checkpoint, load, testing


def test_checkpoint_round_trip(ff, tmp_path):
    checkpoint.save(tmp_path / "a", ff.config, variables=ff.variables, metadata={"source": "test"})
    again = load(tmp_path / "a")
    assert again.config == ff.config and again.metadata == {"source": "test"}
    atoms = testing.rattled()
    assert again.evaluate([atoms])[0].energy == ff.evaluate([atoms])[0].energy
    checkpoint.save(tmp_path / "a", ff.config, variables=ff.variables, metadata={"source": "second"})
    assert load(tmp_path / "a").metadata == {"source": "second"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"], "nothing is left beside"
    with pytest.raises(FileNotFoundError, match="config.json"):
        load(tmp_path)
