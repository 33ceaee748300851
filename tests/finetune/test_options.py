"""Options: each defined once, from flags and files, and what contradicts itself is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from equijax import data
from equijax.finetune.defaults import LOSS, resolve
from equijax.finetune.options import (
    PARTS,
    EvaluateConfig,
    FinetuneOptions,
    LossConfig,
    TrainConfig,
    document,
    flat,
    nested,
    option_names,
)
from equijax.programs import finetune, runner


def test_programs_share_the_key_options():
    flags = ["--virials-key", "v", "--weight-key", "w", "--head-key", "none", "--energy-key", "E"]
    tune = finetune.parse(["--model", "m", "--train", "t", "--out", "o", *flags])
    test = runner.options(EvaluateConfig, ["--model", "m", "--data", "t", *flags], name="equijax evaluate")
    assert tune.keys == test.keys == data.Keys(virials_key="v", weight_key="w", head_key="none", energy_key="E")


def test_every_option_is_defined_once():
    parts = [FinetuneOptions, *PARTS.values()]
    names = [
        f.name for part in parts for f in dataclasses.fields(part) if part is not FinetuneOptions or f.name not in PARTS
    ]
    assert len(names) == len(set(names)) and set(names) == option_names()
    options = FinetuneOptions(model=Path("m"), train=(Path("t"),), out=Path("o"), keys=data.Keys(energy_key="E"))
    assert set(flat(options)) == option_names() and nested(flat(options)) == options


@pytest.mark.parametrize("form", ["--config FILE", "--config=FILE"])
@pytest.mark.parametrize("flag", ["--lr 0.25", "--lr=0.25"])
def test_options_come_from_a_file_and_flags_win(form, flag, tmp_path):
    file = tmp_path / "lr=1.yaml"
    text = "model: m\ntrain: [a.extxyz, b.extxyz]\nout: o\nlr: 0.5\nepochs: 7\nall_species: true\nloss: mae\n"
    file.write_text(text + "energy_key: E\n")
    options = finetune.parse([*form.replace("FILE", str(file)).split(" "), *flag.split(" ")])
    assert options.config == file and options.training == TrainConfig(lr=0.25, epochs=7)
    assert options.loss == LossConfig(loss="mae") and options.keys == data.Keys(energy_key="E")
    assert options.all_species and len(options.train) == 2
    assert resolve(options).loss == dataclasses.replace(LOSS, loss="mae")


def test_multihead_is_kept_by_any_replay():
    options = finetune.parse(["--model", "m", "--train", "t", "--out", "o", "--strategy", "multihead"])
    for given in ({"replay": ("r",)}, {"replay_self": ("r",)}, {"replay_related": 7}):
        resolve(dataclasses.replace(options, **given))


def test_what_a_run_stored_is_read_again(tmp_path):
    options = finetune.parse(["--model", "m", "--train", "t", "--out", "o", "--strategy", "naive", "--no-all-species"])
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(document(resolve(options))))
    again = finetune.parse(["--config", str(stored)])
    assert document(resolve(again)) == {**json.loads(stored.read_text()), "config": str(stored)}


def test_misspelt_options_are_errors(tmp_path, capsys):
    file = tmp_path / "run.json"
    file.write_text('{"model": "m", "train": ["a"], "out": "o", "learning_rate": 1}')
    with pytest.raises(ValueError, match=r"unknown options \['learning_rate'\]"):
        finetune.parse(["--config", str(file)])
    with pytest.raises(SystemExit):
        finetune.parse(["--model", "m", "--train", "a", "--out", "o", "--learning-rate", "1"])
    assert "learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train": ()}, "--train"),
        ({"replay_hessian": True}, "replay_hessian needs"),
        ({"replay_related": -1}, "replay_related = -1 must not be negative"),
        ({"strategy": "multihead"}, "--replay"),
        ({"valid_fraction": 1.0}, "valid_fraction"),
    ],
)
def test_contradictions_are_refused(change, message):
    options = FinetuneOptions(**{"model": "m", "train": ("t",), "out": "o"} | change)
    with pytest.raises(ValueError, match=message):
        resolve(options)
