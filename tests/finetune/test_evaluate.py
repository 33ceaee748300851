"""The evaluate command on a small model: known errors, an adapter, a missing label."""

import csv
import json

import ase.io
import pytest

from equijax import checkpoint, data, testing
from equijax.adapters import files, lora
from equijax.programs import evaluate


@pytest.fixture(scope="module")
def model(student):
    return student


@pytest.fixture(scope="module")
def labelled(model, tmp_path_factory):
    """model/, and salt.extxyz: 4 structures labelled by the model, energies wrong by +0.1 eV/atom, forces by +0.2."""
    path = tmp_path_factory.mktemp("evaluate")
    checkpoint.save(path / "model", model.config, variables=model.variables, metadata={"source": "random"})
    images = [testing.rattled(seed=i) for i in range(4)]
    wrong = []
    for atoms, found in zip(images, model.evaluate(images), strict=True):
        values = {"energy": found.energy - 0.8, "forces": found.forces - 0.2, "stress": found.stress}
        wrong.append(data.to_atoms(data.Labelled(atoms, **values)))
    wrong[3].calc.results.pop("stress")
    ase.io.write(path / "salt.extxyz", wrong)
    return path


def test_errors_are_the_known_ones(labelled, tmp_path, capsys):
    argv = ["--model", str(labelled / "model"), "--data", str(labelled / "salt.extxyz"), "--out", str(tmp_path)]
    assert evaluate.main(argv) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (row,) = report["errors"]
    assert row["structures"] == 4
    assert row["energy MAE (meV/atom)"] == pytest.approx(100, abs=0.01)
    assert row["forces RMSE (meV/A)"] == pytest.approx(200, abs=0.01)
    assert row["stress MAE (meV/A^3)"] == pytest.approx(0, abs=0.01)
    with (tmp_path / "structures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == 4
        and rows[2]["source"] == f"frame 2 of {labelled / 'salt.extxyz'}"
        and rows[3]["stress_mae_meV_per_A3"] == ""
    )
    assert float(rows[0]["forces_max_meV_per_A"]) == pytest.approx(200, abs=0.01)
    assert (tmp_path / "parity.png").stat().st_size > 1000
    assert "salt.extxyz" in capsys.readouterr().out


def test_an_adapter_and_a_missing_label(labelled, model, tmp_path, capsys):
    start = lora.init_delta(model.variables["params"], ("readouts_0",))
    start.arrays["readouts_0/linear"]["delta"] = start.arrays["readouts_0/linear"]["delta"] + 1.0
    files.save(tmp_path / "adapter", start, base=model)
    argv = [
        "--model",
        str(labelled / "model"),
        "--data",
        str(labelled / "salt.extxyz"),
        "--out",
        str(tmp_path / "out"),
        "--adapter",
        str(tmp_path / "adapter"),
        "--energy-key",
        "none",
    ]
    assert evaluate.main(argv) == 0
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())["errors"]
    assert row["energy MAE (meV/atom)"] is None and row["stress MAE (meV/A^3)"] > 0.1
    assert " - " in capsys.readouterr().out


def test_unknown_option_is_an_error(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--modell", "x"])
    assert "modell" in capsys.readouterr().err
