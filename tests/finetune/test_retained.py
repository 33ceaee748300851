"""Retained structures are told apart by what they share with the training set."""

import pytest
from ase.build import bulk

from equijax.data import Labelled
from equijax.finetune import retained

SALT = bulk("NaCl", "rocksalt", a=5.64)
OTHERS = {
    "same": [SALT.repeat(2), bulk("NaCl", "cesiumchloride", a=3.4), SALT[::-1]],
    "related": [bulk("KCl", "rocksalt", a=6.3), bulk("Na", "bcc", a=4.2), bulk("NaSi", "zincblende", a=6.0)],
    "unrelated": [bulk("Si", "diamond", a=5.43), bulk("MgO", "rocksalt", a=4.2)],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_compounds_are_sorted_by_elements_and_reduced_formula(kind):
    found = retained.sort([Labelled(atoms) for atoms in OTHERS[kind]], [SALT])
    assert {name: len(some) for name, some in found._asdict().items() if some} == {kind: len(OTHERS[kind])}


def test_a_line_says_what_counts_for_neither():
    structures = [Labelled(atoms) for some in OTHERS.values() for atoms in some]
    (line,) = retained.messages(retained.sort(structures, [SALT.repeat(3)]))
    assert "3 related" in line and "2 unrelated, 3 of NaCl itself, which count for neither" in line
    (line,) = retained.messages(retained.sort(structures[6:], [SALT]))
    assert line.endswith("2 unrelated")
    assert retained.messages(retained.sort([], [SALT])) == ()
    assert len(retained.sort(structures, []).unrelated) == len(structures)  # zero-shot without training structures
