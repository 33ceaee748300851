"""Committees: a member is what it would be if it were trained alone, and a run leaves them beside its model."""

import dataclasses
import json

import ase.io
import jax
import numpy as np
import pytest

import equijax
from equijax import potential
from equijax.config import Compute
from equijax.errors import InputError
from equijax.finetune import committee, loader, setup, strategies, trainer
from equijax.finetune.defaults import resolve
from equijax.finetune.run import RUN
from equijax.programs import finetune

SHORT = ("--committee", 2, "--epochs", 1)


def test_a_member_is_what_it_is_alone(folder, arguments, tmp_path):
    """Alone its draws are the weights of its structures, from the start."""
    options = resolve(finetune.parse(arguments(tmp_path / "run", *SHORT)))
    made = setup.begin(options)
    found = committee.train(made, np.inf)
    assert (found.best_epochs == 1).all() and (found.draws.sum(1) == len(made.training.items)).all()
    weighted = {}
    for m, counts in enumerate(found.draws):
        items = [
            i._replace(labelled=dataclasses.replace(i.labelled, weight=float(n)))
            for i, n in zip(made.training.items, counts, strict=True)
        ]
        weighted[m] = dataclasses.replace(made.training, items=items)
    m = 1
    batches = loader.epoch(weighted[m], 0)
    own = dataclasses.replace(options, seed=options.seed + m)
    trained = strategies.trainable(own, made.ff.config, variables=made.ff.variables, numbers=made.numbers)
    state = trainer.init(trained.start, options.training, total_steps=len(batches))
    step = trainer.make_step(
        made.ff.config, trained, losses=options.loss, options=options.training, total_steps=len(batches)
    )
    variables = potential.cast(made.ff.variables, options.dtype)
    for batch in batches:
        state, _ = step(state, variables, batch.graph)
    alone = trainer.evaluated(state, options.training)
    together = jax.tree.map(lambda x: x[m], found.adapters)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone, trained.start)
    assert max(jax.tree.leaves(moved)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), together, alone)
    other = jax.tree.map(lambda x: x[1 - m], found.adapters)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), other, alone)
    assert max(jax.tree.leaves(apart)) > 1e-2


def test_a_run_leaves_a_committee_beside_its_model(folder, arguments, tmp_path, capsys):
    out = tmp_path / "run"
    finetune.main(arguments(out, *SHORT, "--test", folder / "test.extxyz"))
    assert RUN.owns(out) and "committee on test" in capsys.readouterr().out
    document = json.loads((out / "committee" / "committee.json").read_text())
    assert document["calibration"]["set"] == "test" and document["calibration"]["forces"]["number"] == 48
    assert (out / "committee" / "calibration.png").is_file()
    images = ase.io.read(folder / "test.extxyz", ":")
    found = equijax.load_committee(out / "committee").evaluate_members(images, compute=Compute("float32"))
    error = np.concatenate([f.forces.mean(0) - a.get_forces() for f, a in zip(found, images, strict=True)])
    spread = np.concatenate([f.forces.std(0) for f in found])
    told = document["calibration"]["forces"]
    assert told["factor"] == pytest.approx(np.sqrt(np.mean(error**2) / np.mean(spread**2)), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--committee", 1), "at least 2 members"),
        (("--committee", 2, "--strategy", "naive"), "needs adapters"),
        (("--committee", 2, "--devices", 2), "on one device"),
        (("--committee", 2, "--schedule", "plateau"), "one learning rate"),
    ],
)
def test_what_cannot_work_is_refused(arguments, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        resolve(finetune.parse(arguments(tmp_path, *options)))
