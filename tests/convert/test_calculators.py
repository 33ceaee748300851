"""`mace_mp` by file, folder and published name, and what it refuses."""

import jax
import numpy as np
import pytest

from convert import download, mace_mp, run
from equijax.errors import InputError
from tests.convert.samples import MINI


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    out = tmp_path_factory.mktemp("mini") / "model"
    run.convert(run.ConvertOptions(str(MINI), out))
    return out


def test_a_file_a_folder_and_a_published_name_are_one_model(converted, tmp_path, monkeypatch):
    """The published one is a stand-in, in the cache already."""
    stand_in = tmp_path / download.find("medium-0b3").filename
    stand_in.write_bytes(MINI.read_bytes())
    monkeypatch.setattr(download, "cache_directory", lambda: tmp_path)
    with pytest.warns(download.ChecksumWarning):
        given = [mace_mp(MINI, "cpu", default_dtype="float64"), mace_mp(converted), mace_mp(model="medium-0b3")]
    assert [c.dtype for c in given] == ["float64", "float32", "float32"]
    for calculator in given:
        jax.tree.map(np.testing.assert_array_equal, calculator.forcefield.variables, given[0].forcefield.variables)


def test_dispersion_is_an_option(converted):
    assert mace_mp(converted).forcefield.config.dispersion is None
    found = mace_mp(converted, dispersion=True, dispersion_xc="pbesol").forcefield.config.dispersion
    assert found.functional == "pbesol"


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"device": "cuda"}, InputError, "device = 'cuda': JAX computes on cpu"),
        ({"default_dtype": "half"}, InputError, "dtype 'half'"),
        ({"head": "other"}, InputError, "head 'other'"),
        ({"model": "medium-omat-0"}, PermissionError, "convert it with --accept-licence"),
        ({"model": "nothing.model"}, FileNotFoundError, "there is no file nothing.model"),
    ],
)
def test_refuses(converted, options, error, message):
    with pytest.raises(error, match=message):
        mace_mp(**{"model": converted} | options)
