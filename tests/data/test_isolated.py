"""Isolated atoms and refitted E0s: what is fixed by the data, outliers, energies on another reference."""

import ase
import ase.io
import numpy as np
import pytest

from equijax import data
from equijax.data import isolated
from equijax.errors import InputError
from tests.data.samples import CONFIG, E0, ENERGY, FORCES, VARIABLES, frame, lone, written


def test_isolated_atoms_are_set_apart(tmp_path):
    images = [
        lone("Na", -7.0),
        frame({"REF_forces": FORCES}, REF_energy=ENERGY),
        lone("Cl", -9.0, config_type="isolated_atom"),
    ]
    found = data.read_file(written(tmp_path / "a.extxyz", *images))
    assert [s.source for s in found.structures] == [f"frame 1 of {tmp_path / 'a.extxyz'}"]
    assert found.line.endswith("stresses of none; 2 isolated atom(s) set apart")
    assert isolated.isolated(found.isolated) == isolated.isolated(found.isolated * 2) == {"Na": -7.0, "Cl": -9.0}
    other = data.read_file(written(tmp_path / "b.extxyz", lone("Na", -6.5), lone("Cl", -9.0))).isolated
    with pytest.raises(
        InputError, match=r"two isolated-atom energies of Na: -7.0 eV by frame 0 of .*a.extxyz, -6.5 eV"
    ):
        isolated.isolated([*found.isolated, *other])
    with pytest.raises(InputError, match=r"of Cl: -8.0 eV by --e0-values, -9.0 eV by frame 2"):
        isolated.isolated(found.isolated, {"Cl": -8.0})
    with pytest.raises(InputError, match="frame 0 of .*: config_type=IsolatedAtom with 8 atoms: expected one"):
        data.read_file(written(tmp_path / "c.extxyz", frame(REF_energy=1.0, config_type="IsolatedAtom")))


def compound(symbols, per_atom, i=0, **others):
    n = len(ase.Atoms(symbols))
    return data.Labelled(ase.Atoms(symbols, positions=np.eye(3)[:n] * 3), n * per_atom, source=f"frame {i}", **others)


@pytest.mark.parametrize("reference", [0.0, -102.3])
def test_three_dimers_do_not_move_e0(reference):
    crystals = [compound("Si3", reference + 0.03 + 0.002 * i, i) for i in range(10)]
    dimers = [compound("Si2", reference + off, 10 + i) for i, off in enumerate((23.0, 31.0, 38.0))]
    structures = [*crystals, *dimers]
    found = isolated.refit(CONFIG, VARIABLES, structures=structures, predicted=np.zeros(13))
    shift = found.values - VARIABLES["constants"]["atomic_energies"]
    np.testing.assert_allclose(shift, [[0, reference + 0.039, 0], [0, 0, 0]], atol=1e-9)
    assert "3 outlier(s) left out of the fit: frame 10 (+23 eV/atom), frame 11 (+31 eV/atom), frame 12" in found.message
    same = isolated.refit(CONFIG, VARIABLES, structures=crystals, predicted=np.zeros(10))
    np.testing.assert_allclose(same.values, found.values, atol=1e-9)
    assert "outlier" not in same.message


def test_strained_structures_take_no_part_and_other_heads_neither():
    """Two dimers of one element alone would fix its E0 exactly: no fit can tell that they are off."""
    salt = [compound("NaCl", -1.0, i) for i in range(4)]
    pushed = [compound("Na2", 30.0, 4 + i, forces=np.full((2, 3), 60.0)) for i in range(2)]
    other = [compound("NaCl", 50.0, 6, head="b"), compound("NaCl", 50.0, 7, label_weights=(0.0, 1.0, 1.0))]
    found = isolated.refit(CONFIG, VARIABLES, structures=[*salt, *pushed, *other], predicted=np.zeros(8))
    shift = found.values - VARIABLES["constants"]["atomic_energies"]
    np.testing.assert_allclose(shift, [[-1.0, 0, -1.0], [0, 0, 0]], atol=1e-9)
    assert found.deficient and "2 outlier(s) left out of the fit: frame 4" in found.message
    alone = isolated.refit(CONFIG, VARIABLES, structures=pushed, predicted=np.zeros(2))
    assert alone.values[0, 0] == pytest.approx(-1.0 + 30.0)


def test_energies_of_another_reference_are_seen():
    structures = [compound("NaCl", -5.0), compound("NaCl", -5.1), compound("Na2", 40.0), compound("Cl", -5.0)]
    assert isolated.off_reference(structures, [-10.1, -10.1, -10.0, -5.0]) is None
    assert isolated.off_reference(structures, np.zeros(4)) == pytest.approx(5.05)
    assert isolated.off_reference([], []) is None


def of_energy(symbols, energy, **others):
    return data.Labelled(ase.Atoms(symbols, positions=np.eye(3)[: len(ase.Atoms(symbols))] * 3), energy, **others)


def test_refitted_energies_follow_the_residual():
    structures = [of_energy("NaCl", 5.0), of_energy("Na2", 2.0), of_energy("Cl", None)]
    found = isolated.refit(CONFIG, VARIABLES, structures=structures, predicted=[2.0, 1.0, 100.0], head=1)
    np.testing.assert_allclose(found.values - E0, [[0, 0, 0], [0.5, 0, 2.5]], atol=1e-12)
    assert not found.deficient and "Na +0.5000, Cl +2.5000" in found.message


def test_one_compound_does_not_fix_two_elements():
    found = isolated.refit(
        CONFIG, VARIABLES, structures=[of_energy("NaCl", 5.0), of_energy("NaCl", 5.2)], predicted=[2.0, 2.0]
    )
    np.testing.assert_allclose(found.values - E0, [[1.55, 0, 1.55], [0, 0, 0]])
    assert found.deficient and "1 independent composition(s) for 2 elements (Na, Cl)" in found.message
    with pytest.raises(ValueError, match="no structure has an energy"):
        isolated.refit(CONFIG, VARIABLES, structures=[of_energy("NaCl", None)], predicted=[2.0])


def test_given_energies():
    np.testing.assert_array_equal(
        isolated.given(CONFIG, VARIABLES, energies={"Si": 9.0}, head=1).values, [E0[0], [1.0, 9.0, 3.0]]
    )
    with pytest.raises(ValueError, match="E0 of 'Fe': not an element"):
        isolated.given(CONFIG, VARIABLES, energies={"Fe": 1.0})
