"""Prototypes: the crystals they are called after, and drawn so that they share an element with what is trained on."""

import numpy as np
import pytest
from ase.build import bulk

from equijax import structures
from equijax.finetune import prototypes
from equijax.finetune.retained import compound

SALT = bulk("NaCl", "rocksalt", a=5.64)
# space group of each, International Tables; caesium chloride's is that of its ideal cell
GROUPS = {
    "fcc": 225,
    "bcc": 229,
    "diamond": 227,
    "rocksalt": 225,
    "zincblende": 216,
    "caesium chloride": 221,
    "wurtzite": 186,
    "nickel arsenide": 194,
    "fluorite": 225,
    "rutile": 136,
    "L1_2": 221,
    "D0_3": 225,
    "perovskite": 221,
    "half-Heusler": 216,
}


@pytest.mark.parametrize("name", prototypes.PROTOTYPES)
def test_prototypes_have_their_space_groups(name):
    prototype = prototypes.PROTOTYPES[name]
    atoms = prototypes._built(prototype, (22, 8, 38)[: len(prototype.sites)], distance=1.0)
    assert structures.space_group_number(atoms, 1e-4) == GROUPS[name]


def test_rocksalt_has_touching_radii():
    atoms = prototypes._built(prototypes.PROTOTYPES["rocksalt"], (11, 17), distance=1.0)
    assert atoms.cell.lengths() == pytest.approx([2 * (1.66 + 1.02)] * 3, rel=1e-6)


def test_related_share_an_element_and_are_other_compounds():
    drawn = prototypes.related((8, 11, 14, 17), [SALT], number=60)
    assert len(drawn) == 60 and len({s.source for s in drawn}) == 60
    for s in drawn:
        assert {11, 17} & set(s.atoms.numbers.tolist()) and compound(s.atoms) != "NaCl"
        assert len(s.atoms) <= prototypes.MAX_DENSITY * s.atoms.get_volume()
        assert s.energy is None and s.forces is None
    assert len({compound(s.atoms) for s in drawn}) > 20
    assert "60 prototypes of" in prototypes.message(drawn)


def test_draws_follow_the_seed():
    one, same, other = (prototypes.related((11, 14, 17), [SALT], number=5, seed=seed) for seed in (0, 0, 1))
    for a, b, c in zip(one, same, other, strict=True):
        np.testing.assert_array_equal(a.atoms.positions, b.atoms.positions)
        assert not np.array_equal(a.atoms.positions, c.atoms.positions)


def test_a_model_of_one_element_has_no_neighbours():
    drawn = prototypes.related((14,), [bulk("Si", "diamond", a=5.43)], number=3)
    assert not drawn and "no other compound" in prototypes.message(drawn)
