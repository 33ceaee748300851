"""Labelled data: what is read, what is refused and how it is said, E0s, batches with masks."""

import dataclasses

import numpy as np
import pytest
from ase.build import bulk

from equijax import data
from equijax.data import labelled
from equijax.units import GPA_PER_EV_A3


@pytest.mark.parametrize(
    ("factor", "likely"),
    [
        (-1.0, "the opposite sign"),
        (GPA_PER_EV_A3, "GPa;"),
        (-10 * GPA_PER_EV_A3, "kbar with the opposite sign"),
        (None, "virials"),
        (1 / GPA_PER_EV_A3, "a conversion the wrong way"),
    ],
)
def test_stress_units_and_sign_against_a_model(factor, likely):
    rng = np.random.default_rng(0)
    structures, predicted = [], []
    for i in range(12):
        atoms = bulk("Si", a=5.4) * (1 + i % 3, 1, 1)
        truth = 0.01 * rng.normal(size=6)[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
        scale = -atoms.get_volume() if factor is None else factor
        structures.append(data.Labelled(atoms, stress=scale * truth, source=f"x:{i}"))
        predicted.append(1.2 * truth + 0.001 * rng.normal(size=(3, 3)))
    with pytest.raises(ValueError, match=rf"stress labels from x:0 on .* look like .*{likely}"):
        labelled.check_stress(structures, predicted)
    right = [dataclasses.replace(s, stress=p + 0.05 * np.eye(3)) for s, p in zip(structures, predicted, strict=True)]
    slope, correlation = labelled.check_stress(right, [-0.05 * np.eye(3) + p for p in predicted])
    assert slope == pytest.approx(1.0) and correlation == pytest.approx(1.0)


def test_split_is_seeded_and_complete():
    first, again, other = (labelled.split(10, 0.2, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert sorted(first.train + first.valid) == list(range(10)) and len(first.valid) == 2
    assert len(labelled.split(2, 0.01).valid) == 1 and len(labelled.split(2, 0.99).train) == 1
    with pytest.raises(ValueError, match="cannot be split"):
        labelled.split(1, 0.2)
