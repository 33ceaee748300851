"""Names of labels in files, what is told of them, isolated atoms, energies on another reference, frame numbers."""

import dataclasses

import ase
import ase.io
import numpy as np
import pytest
import tyro
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import voigt_6_to_full_3x3_stress

from equijax import data, testing
from equijax.data import isolated, labelled, select
from equijax.data.items import batch, prepare
from equijax.derivatives import Derivatives
from equijax.finetune import evaluate, loss, setup
from equijax.programs import finetune

CONFIG = testing.random_config(
    channels=4, lmax=1, species=(11, 14, 17), max_ell=1, correlation=(2, 2), radial_mlp=(8,), heads=("a", "b")
)
VARIABLES = {"constants": {"atomic_energies": np.array([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])}}
ENERGY, STRESS = -25.0, np.array([0.01, 0.02, 0.03, 0.004, 0.005, 0.006])
FORCES = np.arange(24.0).reshape(8, 3) / 10


def frame(arrays=None, results=None, **info) -> ase.Atoms:
    """Salt with these labels."""
    atoms = testing.rattled()
    atoms.info |= info
    for name, x in (arrays or {}).items():
        atoms.arrays[name] = x
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def written(path, *images):
    ase.io.write(path, list(images), format="extxyz")
    return path


VIRIALS = -voigt_6_to_full_3x3_stress(STRESS) * testing.rattled().get_volume()
SPELLINGS = {
    "singular force": (frame({"force": FORCES}, {"energy": ENERGY}, virial=VIRIALS), "energy, force, virial"),
    "singular reference": (
        frame({"REF_force": FORCES}, REF_energy=ENERGY, REF_virial=VIRIALS), "REF_energy, REF_force, REF_virial"),
    "plural reference": (
        frame({"REF_forces": FORCES}, REF_energy=ENERGY, REF_virials=VIRIALS), "REF_energy, REF_forces, REF_virials"),
    "only the energy renamed": (
        frame(None, {"forces": FORCES, "stress": STRESS}, REF_energy=ENERGY), "REF_energy, forces, stress"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPELLINGS)
def test_every_spelling_is_read_and_told(kind, tmp_path):
    atoms, names = SPELLINGS[kind]
    path = written(tmp_path / "a.extxyz", atoms, atoms)
    found = data.read_file(path)
    for s in found.structures:
        assert s.energy == ENERGY
        np.testing.assert_allclose(s.forces, FORCES)
        np.testing.assert_allclose(s.stress, voigt_6_to_full_3x3_stress(STRESS), atol=1e-9)
    energy, forces, stress = names.split(", ")
    read = f"energies of 2 ({energy}), forces of 2 ({forces}), stresses of 2 ({stress})"
    assert found.messages == (f"{path}: 2 structures; read {read}",)


def test_weights_and_heads_are_honoured(tmp_path):
    weights = {"config_weight": 2.0, "config_energy_weight": 0.0, "config_virials_weight": 3.0}
    atoms = frame({"forces": FORCES}, {"energy": ENERGY}, virials=VIRIALS, head="b", **weights)
    found = data.read_file(written(tmp_path / "a.extxyz", atoms, frame({"force": FORCES})))
    first, second = found.structures
    assert (first.weight, first.label_weights, first.head) == (2.0, (0.0, 1.0, 3.0), "b")
    assert (second.weight, second.label_weights, second.head) == (1.0, (1.0, 1.0, 1.0), None)
    assert "weights of 1 (config_energy_weight, config_virials_weight, config_weight), heads of 1 (head)" in found.line
    again = data.read_file(written(tmp_path / "b.extxyz", data.to_atoms(first))).structures
    assert labelled.sha256(again) == labelled.sha256([first]) != labelled.sha256([second])
    items = prepare([first], CONFIG)
    g = batch(items, CONFIG, energies=np.zeros((2, 3)))
    labels = g.globals.labels
    wrong = Derivatives(np.zeros(8), labels.energy + 8.0, g.nodes.labels.forces + 1.0, labels.stress + 1)
    options = loss.LossConfig(loss="mae")
    terms = [loss.FIRST_ORDER[term](wrong, g, options).numerators[0] for term in ("energy", "forces", "stress")]
    np.testing.assert_allclose(terms, [0.0, 2.0 * 24, 6.0 * 9])
    unread = data.read_file(tmp_path / "a.extxyz", data.Keys(weight_key="none", head_key="none")).structures[0]
    assert (unread.weight, unread.label_weights, unread.head) == (1.0, (1.0, 1.0, 1.0), None)
    with pytest.raises(ValueError, match=r"frame 0 of .*: weight config_weight = 'much' is not a number"):
        data.read_file(written(tmp_path / "c.extxyz", frame(None, {"energy": 1.0}, config_weight="much")))


def test_likely_labels_that_were_not_read_name_the_option(tmp_path):
    path = written(
        tmp_path / "a.extxyz",
        frame({"dft_forces": FORCES}, {"energy": ENERGY}, my_weight=2.0, energy_error=0.1),
        frame(None, {"energy": ENERGY}, vasp_stress=STRESS),
    )
    with pytest.warns(UserWarning) as caught:
        data.read_structures(path)
    told = sorted(str(w.message) for w in caught)
    for text, field, name in zip(
        told, ("forces", "weight", "stress"), ("dft_forces", "my_weight", "vasp_stress"), strict=True
    ):
        assert f"{name!r} in 1 of 2 frames" in text and f"--{field}-key {name} reads it" in text
    keys = data.Keys(forces_key="dft_forces", weight_key="my_weight", stress_key="vasp_stress")
    found = data.read_file(path, keys)
    assert found.warnings == () and found.structures[0].weight == 2.0
    np.testing.assert_allclose(found.structures[0].forces, FORCES)
    assert data.read_file(path, data.Keys(forces_key="none", weight_key="none", stress_key="none")).warnings == ()
    with pytest.raises(ValueError, match="no energies, forces or stresses; .* --energy-key my_energy reads it"):
        data.read_file(written(tmp_path / "b.extxyz", frame(my_energy=1.0)))


def test_levels_of_theory_do_not_mix_in_any_frame_of_a_file(tmp_path):
    both = frame(None, {"energy": -1.0}, REF_energy=ENERGY)
    other = frame(None, {"stress": STRESS}, REF_energy=ENERGY)
    found = data.read_file(written(tmp_path / "a.extxyz", both, other))
    assert [s.energy for s in found.structures] == [ENERGY, ENERGY] and found.structures[1].stress is None
    assert "'stress' in 1 of 2 frames" in found.warnings[0]


def test_programs_share_the_key_options():
    flags = ["--virials-key", "v", "--weight-key", "w", "--head-key", "none", "--energy-key", "E"]
    tune = finetune.parse(["--model", "m", "--train", "t", "--out", "o", *flags])
    test = tyro.cli(evaluate.EvaluateConfig, args=["--model", "m", "--data", "t", *flags])
    expected = data.Keys(virials_key="v", weight_key="w", head_key="none", energy_key="E")
    names = [f.name for f in dataclasses.fields(data.Keys)]
    assert isinstance(test, data.Keys)
    assert tune.keys == data.Keys(**{name: getattr(test, name) for name in names}) == expected


def lone(symbol, energy, **info) -> ase.Atoms:
    return ase.Atoms(symbol, info={"REF_energy": energy, "config_type": "IsolatedAtom", **info})


def test_isolated_atoms_are_set_apart(tmp_path):
    images = [lone("Na", -7.0), frame({"REF_forces": FORCES}, REF_energy=ENERGY),
              lone("Cl", -9.0, config_type="isolated_atom")]  # fmt: skip
    found = data.read_file(written(tmp_path / "a.extxyz", *images))
    assert [s.source for s in found.structures] == [f"frame 1 of {tmp_path / 'a.extxyz'}"]
    assert found.line.endswith("stresses of none; 2 isolated atom(s) set apart")
    assert isolated.isolated(found.isolated) == isolated.isolated(found.isolated * 2) == {"Na": -7.0, "Cl": -9.0}
    other = data.read_file(written(tmp_path / "b.extxyz", lone("Na", -6.5), lone("Cl", -9.0))).isolated
    with pytest.raises(
        ValueError, match=r"two isolated-atom energies of Na: -7.0 eV by frame 0 of .*a.extxyz, -6.5 eV"
    ):
        isolated.isolated([*found.isolated, *other])
    with pytest.raises(ValueError, match=r"of Cl: -8.0 eV by --e0-values, -9.0 eV by frame 2"):
        isolated.isolated(found.isolated, {"Cl": -8.0})
    with pytest.raises(ValueError, match="frame 0 of .*: config_type=IsolatedAtom with 8 atoms: expected one"):
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


def test_messages_name_file_and_frame_of_the_user(tmp_path):
    images = [frame(None, {"energy": 1.0}) for _ in range(5)]
    images[4].symbols[3] = "U"
    path = written(tmp_path / "a.extxyz", *images)
    for index, number in (("3:", 1), ("-1", 0), ("::-2", 0)):
        found = data.read_file(path, index=index).structures
        assert found[number].source == f"frame 4 of {path}"
    close = [data.Labelled(ase.Atoms("Na2", [[0, 0, 0], [0, 0, 0.01]]), source=f"frame {i} of x") for i in (3, 9)]
    model = testing.random_forcefield(CONFIG)
    with pytest.raises(ValueError, match=r"^frame 4 of .*a.extxyz: atom 3 of element U"):
        data.predictions(model, found)
    with pytest.raises(ValueError, match="^frame 3 of x: atoms 0 and 1"):
        select.pick(close, 1)
    with pytest.raises(ValueError, match="head 'c' is not one of the model's: a, b; rename it, or .* --head-key none"):
        data.predictions(model, [data.Labelled(testing.rattled(), head="c")])


def test_isolated_atoms_alone_are_nothing_to_train_on(tmp_path):
    path = written(tmp_path / "a.extxyz", lone("Na", -7.0))
    options = finetune.parse(["--model", "m", "--train", str(path), "--out", "o"])
    with pytest.raises(ValueError, match="--train holds nothing but isolated atoms"):
        setup._sets(options, None)
