"""Soft modes end to end: the bundled model takes rocksalt GeTe to its rhombohedral ferroelectric phase."""

import json
from importlib import resources
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk

from convert.__main__ import main as convert
from equijax.phonons import soft_modes
from equijax.programs import modes

MINI = Path(str(resources.files("equijax"))) / "assets" / "mini.model"


def test_scores():
    found = soft_modes.scores(
        [("GeTe", 160), ("GeTe", 160), ("GeTe", 44)], [("GeTe", 160), ("GeTe", 62), ("BaTiO3", 99)]
    )
    assert found == (0.5, pytest.approx(1 / 3), pytest.approx(0.4))
    assert soft_modes.scores([], []) == (0.0, 0.0, 0.0)


def test_rocksalt_gete_becomes_rhombohedral(tmp_path, capsys):
    convert([str(MINI), str(tmp_path / "model")])
    ase.io.write(tmp_path / "rocksalt.extxyz", bulk("GeTe", "rocksalt", a=6.0))
    reference = bulk("GeTe", "rocksalt", a=6.0)
    reference.positions[1] += 0.1  # along [111]: R3m
    ase.io.write(tmp_path / "reference.extxyz", reference)
    options = f"--out {tmp_path}/out --mesh 1 1 1 --rounds 1 --max-directions 2 --random-directions 0 --keep 2"
    code = modes.main(
        [
            str(tmp_path / "rocksalt.extxyz"),
            "--model",
            str(tmp_path / "model"),
            "--reference",
            str(tmp_path / "reference.extxyz"),
            *options.split(),
        ]
    )
    assert code == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    start, *found = report["phases"]
    assert start["space_group"] == "Fm-3m (225)" and not start["stable"] and start["lowest_THz"] < -1.0
    ferroelectric = next(phase for phase in found if phase["space_group"] == "R3m (160)")
    assert ferroelectric["stable"] and ferroelectric["energy_meV_atom"] < -5.0
    assert ferroelectric["well_meV_atom"] > 1.0 and abs(ferroelectric["Q_min"]) > 0.5
    assert report["scores"]["recall"] == 1.0
    for name in ("table.txt", "energy_of_Q.png", "phase_0.extxyz", "phase_1.vasp"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_refuses(tmp_path, capsys):
    assert modes.main([str(tmp_path / "none.vasp"), "--model", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
