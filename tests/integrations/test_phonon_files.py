"""phonopy-load and Euphonic read what `python -m equijax.phonons` writes."""

import subprocess
import sys
from pathlib import Path

import ase.io
import euphonic
import numpy as np
import phonopy
import pytest
import yaml

from equijax import checkpoint, phonons
from equijax.phonons import force_constants
from equijax.programs import phonons as program

QPOINTS = [[0.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.1, 0.2, 0.3]]


@pytest.fixture(scope="module")
def written(mini, silicon, tmp_path_factory):
    """The folder of a run, and the frequencies that our force constants have in phonopy itself."""
    folder = tmp_path_factory.mktemp("phonons")
    ase.io.write(folder / "silicon.extxyz", silicon)
    checkpoint.save(folder / "model", mini.config, variables=mini.variables, metadata=mini.metadata)
    files = f"{folder}/silicon.extxyz --model {folder}/model --out {folder}/out"
    assert program.main([*files.split(), "--supercell", "2", "2", "2"]) == 0
    phonon = phonons.make_phonon(silicon, (2, 2, 2))
    force_constants.force_constants(mini, phonon)
    return folder / "out", phonon.run_qpoints(QPOINTS).frequencies


def test_phonopy_load(written):
    folder, expected = written
    load = Path(sys.executable).with_name("phonopy-load")
    flat = [str(x) for q in QPOINTS for x in q]
    subprocess.run([load, "phonopy_params.yaml", "--qpoints", *flat], cwd=folder, check=True, capture_output=True)
    points = yaml.safe_load((folder / "qpoints.yaml").read_text())["phonon"]
    found = [[mode["frequency"] for mode in point["band"]] for point in points]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert phonopy.load(folder / "phonopy_params.yaml").force_constants.shape[1] == 16


@pytest.mark.filterwarnings(
    "ignore:\nMore than one OpenMP library:UserWarning", "ignore:.*More than one OpenMP library"
)
def test_euphonic(written):
    folder, expected = written
    constants = euphonic.ForceConstants.from_phonopy(path=folder, summary_name="phonopy_params.yaml")
    modes = constants.calculate_qpoint_phonon_modes(np.array(QPOINTS), asr=None)
    found = modes.frequencies.to("THz").magnitude
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[0, 3:], expected[0, 3:], rtol=0, atol=1e-4)
