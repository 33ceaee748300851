"""Energies on another reference, E0s and heads of the data, precision of a run called as a library."""

import json

import ase
import ase.io
import jax
import numpy as np
import pytest

import equijax
from equijax import data
from equijax.adapters import files
from equijax.config import Compute
from equijax.errors import InputError
from equijax.finetune import report, run, setup
from equijax.finetune.defaults import resolve
from equijax.programs import evaluate, finetune
from tests.data.samples import lone, written

OFFSET = -100.0  # eV/atom


@pytest.fixture(scope="module")
def shifted(folder, tmp_path_factory):
    """train.extxyz with every energy lowered by 100 eV/atom."""
    path = tmp_path_factory.mktemp("shifted") / "shifted.extxyz"
    images = ase.io.read(folder / "train.extxyz", ":")
    for atoms in images:
        atoms.calc.results["energy"] += OFFSET * len(atoms)
    ase.io.write(path, images)
    return path


def options_of(arguments, out, *more):
    return resolve(finetune.parse(arguments(out, *more)))


def test_another_reference_is_warned_of_and_evaluate_says_so_too(shifted, arguments, folder, tmp_path, capsys):
    made = setup.begin(options_of(arguments, tmp_path / "run", "--train", shifted))
    (told,) = (text for text in made.messages if "WARNING" in text)
    assert "eV/atom off those of the model with model E0s" in told and "--e0 refit" in told
    assert made.e0 == "model" and made.graphs is made.untouched_graphs
    assert f"{shifted}: 6 structures; read energies of 6 (energy), forces of 6" in made.messages[0]
    argv = ["--model", folder / "model", "--data", shifted, "--out", tmp_path / "evaluation"]
    evaluate.main([str(x) for x in argv])
    (warning,) = json.loads((tmp_path / "evaluation" / "report.json").read_text())["warnings"]
    said = capsys.readouterr().out
    assert "--e0 refit" in warning and f"WARNING: {warning}" in said and f"{shifted}: 6 structures; read" in said


def test_zero_shot_is_the_untouched_model_and_refitted_energies_a_row_of_their_own(
    shifted, folder, arguments, tmp_path
):
    out = tmp_path / "run"
    argv = arguments(
        out,
        "--train",
        shifted,
        "--valid",
        shifted,
        "--test",
        folder / "test.extxyz",
        "--e0",
        "refit",
        "--strategy",
        "zero-shot",
    )
    result = run.run(resolve(finetune.parse(argv)))
    untouched, refitted = result.before.errors, result.before_with_new_e0
    assert refitted == result.after.errors
    assert untouched["valid"].energy_mae == pytest.approx(-OFFSET, abs=1.0)
    assert refitted["valid"].energy_mae < 1.0
    assert untouched["test"].energy_mae < 1.0
    assert refitted["test"].energy_mae == pytest.approx(-OFFSET, abs=1.0)
    assert untouched["valid"].forces_mae == refitted["valid"].forces_mae
    text = report.summary(result)
    assert "zero-shot with refitted E0s" in text and "against zero-shot with refitted E0s" in text
    assert any(line.startswith("WORSE: test energy MAE (eV/atom) against the untouched") for line in result.verdict)
    assert json.loads((out / "report.json").read_text())["e0"] == "refitted"
    found = equijax.load(folder / "model").evaluate([s.atoms for s in _structures(shifted)], compute=Compute())
    expected = np.mean(
        [abs(f.energy - s.energy) / len(s.atoms) for f, s in zip(found, _structures(shifted), strict=True)]
    )
    assert untouched["valid"].energy_mae == pytest.approx(expected, rel=1e-5)


def _structures(path):
    return data.read_structures(path)


def test_isolated_atoms_set_e0_and_are_not_trained_on(shifted, folder, arguments, tmp_path):
    lone = [
        ase.Atoms(s, info={"energy": e, "config_type": "IsolatedAtom"}) for s, e in (("Na", -101.0), ("Cl", -102.0))
    ]
    images = [lone[0], *ase.io.read(shifted, ":"), lone[1]]
    ase.io.write(tmp_path / "train.extxyz", images, format="extxyz")
    given = ("--train", tmp_path / "train.extxyz")
    made = setup.begin(options_of(arguments, tmp_path / "run", *given))
    old = equijax.load(folder / "model").variables["constants"]["atomic_energies"]
    np.testing.assert_array_equal(made.energies, [[-101.0, old[0, 1], -102.0]])
    assert made.e0 == "isolated-atom" and made.graphs is not made.untouched_graphs
    assert len(made.items["train"]) + len(made.items["valid"]) == 6
    assert {len(i.labelled.atoms) for name in ("train", "valid") for i in made.items[name]} == {8}
    kept = setup.begin(options_of(arguments, tmp_path / "run", *given, "--e0", "model"))
    np.testing.assert_array_equal(kept.energies, old)
    assert any("2 isolated atom(s) set apart: their energies are not used" in text for text in kept.messages)
    with pytest.raises(ValueError, match=r"two isolated-atom energies of Na: -5.0 eV by --e0-values"):
        setup.begin(options_of(arguments, tmp_path / "run", *given, "--e0", "given", "--e0-values", "Na=-5"))


def test_an_unknown_head_of_the_data_is_refused_before_work(folder, arguments, tmp_path):
    images = ase.io.read(folder / "train.extxyz", ":")
    images[4].info["head"] = "pbe"
    ase.io.write(tmp_path / "a.extxyz", images)
    argv = ("--train", tmp_path / "a.extxyz")
    with pytest.raises(ValueError, match=r"^frame 4 of \S*a.extxyz: head 'pbe' is not one of the model's: Default; re"):
        setup.begin(options_of(arguments, tmp_path / "run", *argv, "--valid", folder / "test.extxyz"))
    setup.begin(options_of(arguments, tmp_path / "run", *argv, "--head-key", "none"))


def test_a_run_of_a_library_user_is_in_float64(folder, arguments, tmp_path):
    """Nobody switched 64 bits on: weights that are trained, and errors, have more digits than float32 holds."""
    assert not jax.config.jax_enable_x64
    out, test = tmp_path / "run", folder / "test.extxyz"
    options = options_of(arguments, out, "--dtype", "float64", "--epochs", 1, "--valid", test)
    result = run.run(options)
    assert not jax.config.jax_enable_x64
    start = equijax.load(folder / "model")
    saved = files.load(out / "adapter", start).adapters
    for x in jax.tree.leaves(saved):
        assert x.dtype == np.float64 and np.abs(x - x.astype(np.float32)).max() > 0
    structures = _structures(test)
    found = start.evaluate([s.atoms for s in structures], compute=Compute())
    expected = np.mean([np.abs(f.forces - s.forces) for f, s in zip(found, structures, strict=True)])
    assert result.before.errors["valid"].forces_mae == pytest.approx(expected, rel=1e-10)


def test_isolated_atoms_alone_are_nothing_to_train_on(tmp_path):
    path = written(tmp_path / "a.extxyz", lone("Na", -7.0))
    options = finetune.parse(["--model", "m", "--train", str(path), "--out", "o"])
    with pytest.raises(InputError, match="--train holds nothing but isolated atoms"):
        setup._sets(options, None)


def test_related_prototypes_are_replayed_with_the_energies_of_the_starting_model_from_the_new_e0(
    shifted, folder, arguments, tmp_path
):
    argv = arguments(tmp_path / "run", "--train", shifted, "--e0", "refit", "--replay-related", 6, "--replay-weight", 2)
    made = setup.begin(resolve(finetune.parse(argv)))
    replayed = [item.labelled for item in made.training.replay]
    assert len(replayed) == 6 and made.training.replay_size == 8 and made.e0 == "refitted"
    assert any("6 prototypes of" in text for text in made.messages)
    start = equijax.load(folder / "model")
    found = start.evaluate([s.atoms for s in replayed], compute=Compute())
    model = start.variables["constants"]["atomic_energies"]
    for s, f in zip(replayed, found, strict=True):
        rows = [start.config.species.index(z) for z in s.atoms.numbers.tolist()]
        assert s.weight == 2 and s.energy == pytest.approx(f.energy + (made.energies - model)[0, rows].sum(), abs=1e-9)
        np.testing.assert_allclose(s.forces, f.forces, rtol=0, atol=1e-9)
