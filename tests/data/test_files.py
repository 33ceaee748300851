"""Names of labels in files, what is told of them, isolated atoms, energies on another reference, frame numbers."""

import dataclasses
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import voigt_6_to_full_3x3_stress

from equijax import data, testing
from equijax.data import labelled
from equijax.data.items import batch, prepare
from equijax.derivatives import Derivatives
from equijax.errors import InputError
from equijax.finetune import loss
from equijax.units import GPA_PER_EV_A3
from tests.data.samples import CONFIG, ENERGY, FORCES, STRESS, frame, written

VIRIALS = -voigt_6_to_full_3x3_stress(STRESS) * testing.rattled().get_volume()
SPELLINGS = {
    "singular force": (frame({"force": FORCES}, {"energy": ENERGY}, virial=VIRIALS), "energy, force, virial"),
    "singular reference": (
        frame({"REF_force": FORCES}, REF_energy=ENERGY, REF_virial=VIRIALS),
        "REF_energy, REF_force, REF_virial",
    ),
    "plural reference": (
        frame({"REF_forces": FORCES}, REF_energy=ENERGY, REF_virials=VIRIALS),
        "REF_energy, REF_forces, REF_virials",
    ),
    "only the energy renamed": (
        frame(None, {"forces": FORCES, "stress": STRESS}, REF_energy=ENERGY),
        "REF_energy, forces, stress",
    ),
}


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
    with pytest.raises(InputError, match=r"frame 0 of .*: weight config_weight = 'much' is not a number"):
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
    with pytest.raises(InputError, match="no energies, forces or stresses; .* --energy-key my_energy reads it"):
        data.read_file(written(tmp_path / "b.extxyz", frame(my_energy=1.0)))


def test_levels_of_theory_do_not_mix_in_any_frame_of_a_file(tmp_path):
    both = frame(None, {"energy": -1.0}, REF_energy=ENERGY)
    other = frame(None, {"stress": STRESS}, REF_energy=ENERGY)
    found = data.read_file(written(tmp_path / "a.extxyz", both, other))
    assert [s.energy for s in found.structures] == [ENERGY, ENERGY] and found.structures[1].stress is None
    assert "'stress' in 1 of 2 frames" in found.warnings[0]


def labelled_atoms(seed=0, **info) -> ase.Atoms:
    """NaCl with info entries REF_energy etc., forces under REF_forces."""
    atoms = testing.rattled(seed=seed)
    rng = np.random.default_rng(seed)
    atoms.arrays["REF_forces"] = rng.normal(size=(8, 3))
    atoms.info |= {"REF_energy": -25.0 + seed, "REF_stress": 0.01 * rng.normal(size=6), **info}
    return atoms


def write(path, images):
    ase.io.write(path, images, format="extxyz")
    return path


def test_labels_under_both_names(tmp_path):
    reference = labelled_atoms()
    own = testing.rattled(seed=1)
    own.calc = SinglePointCalculator(own, energy=-3.0, forces=np.ones((8, 3)), stress=np.arange(6) / 100)
    a, b = data.read_structures(write(tmp_path / "a.extxyz", [reference, own]))
    assert (a.energy, b.energy) == (-25.0, -3.0)
    np.testing.assert_allclose(a.forces, reference.arrays["REF_forces"], atol=1e-7)
    np.testing.assert_allclose(b.stress, [[0, 0.05, 0.04], [0.05, 0.01, 0.03], [0.04, 0.03, 0.02]])
    assert a.source == f"frame 0 of {tmp_path / 'a.extxyz'}" and a.atoms.calc is None and not a.atoms.info
    again = data.read_structures(write(tmp_path / "b.extxyz", [data.to_atoms(s) for s in (a, b)]))
    assert labelled.sha256(again) == labelled.sha256([b, a])
    assert labelled.sha256([dataclasses.replace(a, energy=0.0), b]) != labelled.sha256([a, b])


def test_one_frame_is_one_level_of_theory(tmp_path):
    """A frame with REF_ labels never borrows a missing one from the calculator's results."""
    atoms = labelled_atoms()
    del atoms.info["REF_stress"], atoms.info["REF_energy"]
    atoms.info["REF_energy"] = 1.0
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, stress=np.arange(6) / 100)
    path = write(tmp_path / "a.extxyz", atoms)
    with pytest.warns(UserWarning, match="'stress' in 1 of 1 frames .* was not read; --stress-key stress reads it"):
        (found,) = data.read_structures(path)
    assert found.energy == 1.0 and found.stress is None


def test_missing_labels_are_missing(tmp_path):
    bare, partial = labelled_atoms(0), labelled_atoms(1)
    del bare.arrays["REF_forces"]
    bare.info |= {"REF_energy": np.nan, "REF_stress": np.full(6, np.nan)}
    partial.arrays["REF_forces"][3] = np.nan
    a, b = data.read_structures(write(tmp_path / "a.extxyz", [bare, partial]))
    assert a.energy is None and a.forces is None and a.stress is None
    assert np.isnan(b.forces[3]).all() and np.isfinite(np.delete(b.forces, 3, 0)).all()
    molecule = ase.Atoms("NaCl", [[0, 0, 0], [0, 0, 2.4]], info={"REF_energy": 1.0, "REF_stress": np.ones(6)})
    assert data.read_structures(write(tmp_path / "b.extxyz", molecule))[0].stress is None


def test_keys_weights_heads_and_virials(tmp_path):
    atoms = labelled_atoms(dft_e=-7.0, w=0.5, head="b", vir=np.diag([1.0, 2.0, 3.0]))
    keys = data.Keys(energy_key="dft_e", forces_key="none", stress_key="none", virials_key="vir", weight_key="w")
    (found,) = data.read_structures(write(tmp_path / "a.extxyz", atoms), keys)
    assert (found.energy, found.forces, found.weight, found.head) == (-7.0, None, 0.5, "b")
    np.testing.assert_allclose(found.stress, -np.diag([1.0, 2.0, 3.0]) / atoms.get_volume())


def test_what_cannot_be_right_is_refused_by_file_and_frame(tmp_path):
    def error(second=None, keys=None, **changes):
        images = [labelled_atoms(0), labelled_atoms(1, **changes)]
        if second is not None:
            images[1].arrays["REF_forces"] = second
        with pytest.raises(ValueError) as caught:
            data.read_structures(write(tmp_path / "a.extxyz", images), keys)
        text = str(caught.value)
        assert "\n" not in text and (keys or f"frame 1 of {tmp_path / 'a.extxyz'}: " in text)
        return text

    assert "a.extxyz: a stress of 8 eV/A^3 is 1.28e+03 GPa: probably" in error(
        REF_stress=np.array([8.0, 0, 0, 0, 0, 0])
    )
    assert "a.extxyz: the stress is not symmetric" in error(REF_stress=np.arange(9) / 100)
    assert "a.extxyz: energy inf" in error(REF_energy=np.inf)
    assert "a.extxyz: weight -1.0 must" in error(weight=-1.0)
    assert "a.extxyz: force on atom 0 is [inf" in error(np.where(np.arange(24).reshape(8, 3) == 0, np.inf, 1.0))
    assert "no frame has energy under 'dft_energy'; the first has REF_energy" in error(
        keys=data.Keys(energy_key="dft_energy")
    )
    with pytest.raises(
        ValueError, match="no energies, forces or stresses; the first frame has nothing but a structure"
    ):
        data.read_structures(write(tmp_path / "b.extxyz", testing.rattled()))
    zeros = [labelled_atoms(i, REF_stress=np.zeros(6)) for i in range(2)]
    with pytest.raises(ValueError, match="all 2 stresses are exactly zero"):
        data.read_structures(write(tmp_path / "c.extxyz", zeros))
    (tmp_path / "d.extxyz").write_text((tmp_path / "a.extxyz").read_text()[:-200])
    with pytest.raises(ValueError, match=r"frame 1 of .*d.extxyz: ASE cannot read it"):
        data.read_structures(tmp_path / "d.extxyz")
    with pytest.raises(FileNotFoundError, match="no file"):
        data.read_structures(tmp_path / "absent.extxyz")


@pytest.mark.parametrize(
    ("stored", "name", "kbar"),
    [("vasprun_pstress.xml", "vasprun.xml", "stress"), ("OUTCAR_example_1", "OUTCAR", "in kB")],
)
def test_vasp_runs(stored, name, kbar, tmp_path):
    """Files that come with ASE; the stress against the numbers VASP prints (kbar, positive under compression)."""
    text = (Path(ase.__file__).parent / "test" / "testdata" / "vasp" / stored).read_text()
    (tmp_path / name).write_text(text)
    found = data.read_structures(tmp_path / name)[-1]
    lines = text.splitlines()
    last = max(i for i, line in enumerate(lines) if kbar in line)
    printed = lines[last].split()[2:5] if name == "OUTCAR" else [lines[last + 1 + i].split()[1 + i] for i in range(3)]
    pressure = -np.trace(found.stress) / 3 * 10 * GPA_PER_EV_A3
    assert pressure == pytest.approx(np.mean([float(x) for x in printed]), abs=0.01)
    assert found.energy < 0 and found.forces.shape == (len(found.atoms), 3)
    assert found.source == f"frame {len(data.read_structures(tmp_path / name)) - 1} of {tmp_path / name}"
