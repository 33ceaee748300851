"""The demo end to end, against numbers that mace-torch and phonopy finite differences gave for the bundled model."""

import json
import os
from pathlib import Path

import pytest

from equijax.finetune import run
from equijax.programs import demo
from tests.samples import tree


@pytest.mark.parametrize("where", ["other run", "foreign file"])
def test_the_demo_replaces_only_its_own_fine_tuning(tmp_path, capsys, where):
    path = tmp_path / "finetuned"
    path.mkdir()
    document = dict.fromkeys(run.RUN.keys, "") | {"model": str(tmp_path / "model")}
    if where == "other run":
        document["model"] = "/models/mine"
    else:
        (path / "notes.txt").write_text("years of work")
    (path / "config.json").write_text(json.dumps(document))
    before = tree(tmp_path)
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert "refusing to replace" in capsys.readouterr().err and tree(tmp_path) == before


# README of the bundled data: 0.01 A finite differences with mace-torch on the same supercells and mesh
FREQUENCY_MAE_THZ = {"Si (diamond)": 0.594, "NaCl (rocksalt)": 0.162}

FORCE_MAE_MEV_PER_A = {"Si-dia_test": 72, "NaCl-rs_test": 14}


@pytest.mark.demo
def test_demo_reproduces_the_published_errors_of_the_bundled_model():
    """Of the demo as a user runs it: `make demo-numbers` tells where that wrote."""
    out = Path(os.environ["EQUIJAX_DEMO_OUTPUT"])
    report = json.loads((out / "report.json").read_text())
    *starting, tuned = report["phonons"]
    assert len(starting) == 2 and tuned["crystal"] == "Si (diamond), fine-tuned"
    assert tuned["frequency MAE (THz)"] < 0.5 * FREQUENCY_MAE_THZ["Si (diamond)"]
    for row in starting:
        assert row["frequency MAE (THz)"] == pytest.approx(FREQUENCY_MAE_THZ[row["crystal"]], abs=0.005)
    found = {row["file"]: row["forces (meV/A)"] for row in report["errors"]}
    for name, expected in FORCE_MAE_MEV_PER_A.items():
        assert found[name] == pytest.approx(expected, abs=0.6)
    for artefact in (
        "bands.png",
        "Si-dia_phonopy_params.yaml",
        "NaCl-rs_phonopy_params.yaml",
        "model/config.json",
        "finetuned/adapter/adapter.json",
        "finetuned/Si-dia_phonopy_params.yaml",
    ):
        assert (out / artefact).is_file()


def test_a_failed_conversion_stops_the_demo(tmp_path, capfd):
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--model", "no_such.model", "--out", str(tmp_path)])
    assert "there is no file no_such.model" in capfd.readouterr().err
