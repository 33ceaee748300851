"""Labelled data: what is read, what is refused and how it is said, E0s, batches with masks."""

import dataclasses
from pathlib import Path

import ase
import ase.io
import numpy as np
import phonopy
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from phonopy.file_IO import write_FORCE_CONSTANTS, write_FORCE_SETS

from equijax import data, graph, potential, testing
from equijax.data import isolated, labelled, phonopy_files
from equijax.data.items import batch, plan, prepare, size_of
from equijax.structures import to_ase
from equijax.units import GPA_PER_EV_A3

CONFIG = testing.random_config(
    channels=4, lmax=1, species=(11, 14, 17), max_ell=1, correlation=(2, 2), radial_mlp=(8,), heads=("a", "b")
)
VARIABLES = {"constants": {"atomic_energies": np.array([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])}}
E0 = VARIABLES["constants"]["atomic_energies"]


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
    ("factor", "likely"),
    [(-1.0, "the opposite sign"), (GPA_PER_EV_A3, "GPa;"), (-10 * GPA_PER_EV_A3, "kbar with the opposite sign"),
     (None, "virials"), (1 / GPA_PER_EV_A3, "a conversion the wrong way")],
)  # fmt: skip
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


def compound(symbols, energy, **others):
    return data.Labelled(ase.Atoms(symbols, positions=np.eye(3)[: len(ase.Atoms(symbols))] * 3), energy, **others)


def test_refitted_energies_follow_the_residual():
    structures = [compound("NaCl", 5.0), compound("Na2", 2.0), compound("Cl", None)]
    found = isolated.refit(CONFIG, VARIABLES, structures=structures, predicted=[2.0, 1.0, 100.0], head=1)
    np.testing.assert_allclose(found.values - E0, [[0, 0, 0], [0.5, 0, 2.5]], atol=1e-12)
    assert not found.deficient and "Na +0.5000, Cl +2.5000" in found.message


def test_one_compound_does_not_fix_two_elements():
    found = isolated.refit(
        CONFIG, VARIABLES, structures=[compound("NaCl", 5.0), compound("NaCl", 5.2)], predicted=[2.0, 2.0]
    )
    np.testing.assert_allclose(found.values - E0, [[1.55, 0, 1.55], [0, 0, 0]])
    assert found.deficient and "1 independent composition(s) for 2 elements (Na, Cl)" in found.message
    with pytest.raises(ValueError, match="no structure has an energy"):
        isolated.refit(CONFIG, VARIABLES, structures=[compound("NaCl", None)], predicted=[2.0])


def test_given_energies():
    np.testing.assert_array_equal(
        isolated.given(CONFIG, VARIABLES, energies={"Si": 9.0}, head=1).values, [E0[0], [1.0, 9.0, 3.0]]
    )
    with pytest.raises(ValueError, match="E0 of 'Fe': not an element"):
        isolated.given(CONFIG, VARIABLES, energies={"Fe": 1.0})


def test_batch_masks_what_is_missing():
    forces = np.ones((8, 3))
    forces[2] = np.nan
    structures = [
        data.Labelled(testing.rattled(), -20.0, forces, 0.1 * np.eye(3), weight=2.0),
        data.Labelled(
            testing.rattled("Si", "diamond", 5.4), head="b", tangents=np.ones((8, 2, 3)), hvp=np.ones((8, 2, 3))
        ),
    ]
    items = prepare(structures, CONFIG)
    size = graph.Size(24, size_of(items, CONFIG).slots, 4, 5)
    g = batch(items, CONFIG, energies=E0, size=size)
    labels, nodes = g.globals.labels, g.nodes.labels
    np.testing.assert_allclose(labels.energy, [-20.0 + 4 * 1.0 + 4 * 3.0, 0, 0, 0, 0])
    np.testing.assert_array_equal(labels.energy_mask, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(labels.stress_mask, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(labels.weight, [2, 1, 0, 0, 0])
    np.testing.assert_array_equal(g.globals.head[:2], [0, 1])
    np.testing.assert_array_equal(np.flatnonzero(nodes.forces_mask), [0, 1, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(np.flatnonzero(nodes.hvp_mask), np.arange(8, 16))
    assert np.isfinite(nodes.forces).all() and nodes.tangents.shape == (24, 2, 3)
    e0 = potential.isolated_energies(CONFIG, VARIABLES, g)
    assert e0[8:16].sum() == pytest.approx(8 * 2.0)


def test_plan_keeps_to_its_budgets():
    items = prepare([data.Labelled(testing.rattled(seed=i, repeat=(1 + i % 3, 1, 1))) for i in range(9)], CONFIG)
    cost = max(size_of([item], CONFIG).cost for item in items)
    batches = plan(items, 3, slots=cost, rng=np.random.default_rng(0))
    assert sorted(i for b in batches for i in b) == list(range(9))
    assert batches == plan(items, 3, slots=cost, rng=np.random.default_rng(0)) != plan(items, 3, slots=cost)
    assert all(len(b) <= 3 and size_of([items[i] for i in b], CONFIG).cost <= cost for b in batches)
    assert plan(items, 3, slots=1) == [[i] for i in range(9)]  # one structure at least


def test_structures_the_model_cannot_describe():
    copper = data.Labelled(bulk("Cu"), source="x.xyz:4")
    with pytest.raises(ValueError, match="x.xyz:4: atom 0 of element Cu"):
        prepare([copper], CONFIG)
    with pytest.raises(ValueError, match="x.xyz:4: head 'c' is not one of the model's: a, b"):
        prepare([data.Labelled(bulk("Si"), source="x.xyz:4", head="c")], CONFIG)


@pytest.fixture(scope="module")
def phonon():
    """Silicon with nearest-neighbour springs: displacements, forces and force constants that belong together."""
    from phonopy.structure.atoms import PhonopyAtoms

    si = bulk("Si", a=5.43)
    cell = PhonopyAtoms(numbers=si.numbers, cell=si.cell.array, scaled_positions=si.get_scaled_positions())
    phonon = phonopy.Phonopy(cell, np.diag([2, 2, 2]), primitive_matrix="auto")
    whole = to_ase(phonon.supercell)
    n = len(whole)
    phi = np.zeros((n, n, 3, 3))
    edges = graph.neighbour_list(whole, 2.6)
    ends = whole.positions[edges.senders] + edges.shifts @ whole.cell.array
    for i, j, d in zip(edges.receivers, edges.senders, ends - whole.positions[edges.receivers], strict=True):
        spring = 5.0 * np.outer(d, d) / (d @ d) + 0.5 * np.eye(3)
        phi[i, j] -= spring
        phi[i, i] += spring
    phonon.generate_displacements(distance=0.02, is_plusminus=True)
    u = np.array([c.positions for c in phonon.supercells_with_displacements]) - whole.positions
    phonon.forces = -np.einsum("ijab,sjb->sia", phi, u)
    return phonon, phi


@pytest.mark.parametrize("kind", ["phonopy.yaml", "phonopy_params.yaml", "FORCE_SETS", "FORCE_CONSTANTS", "compact"])
def test_phonopy_files_round_trip(phonon, kind, tmp_path, monkeypatch):
    phonon, phi = phonon
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "files"
    folder.mkdir()
    path = folder / ("FORCE_CONSTANTS" if kind == "compact" else kind)
    if kind.startswith("FORCE") or kind == "compact":
        phonon.save(folder / "phonopy_disp.yaml", settings={"force_sets": False, "force_constants": False})
    if kind == "FORCE_SETS":
        write_FORCE_SETS(phonon.dataset, filename=path)
        (tmp_path / "FORCE_SETS").write_text("not to be read: it lies in the working directory")
    elif kind == "FORCE_CONSTANTS":
        write_FORCE_CONSTANTS(phi, filename=path)
    elif kind == "compact":
        write_FORCE_CONSTANTS(phi[phonon.primitive.p2s_map], filename=path, p2s_map=phonon.primitive.p2s_map)
    else:
        phonon.save(path)
    np.testing.assert_allclose(phonopy_files.force_constants(path).values, phi, atol=1e-6)
    (product,) = data.read_structures(path, tangents=3, seed=1)[-1:]
    np.testing.assert_allclose(product.hvp, np.einsum("ijab,jtb->ita", phi, product.tangents), atol=1e-6)
    assert product.energy is None and product.forces is None
    if path.name == "FORCE_CONSTANTS":
        with pytest.raises(ValueError, match="force constants but no forces: ask for tangents"):
            data.read_structures(path)
        return
    displaced = data.read_structures(path)
    assert len(displaced) == len(phonon.forces) == 2
    for s, f, cell in zip(displaced, phonon.forces, phonon.supercells_with_displacements, strict=True):
        np.testing.assert_allclose(s.forces, f, atol=1e-9)
        np.testing.assert_allclose(s.atoms.positions, cell.positions, atol=1e-9)


def test_phonopy_files_without_what_they_need(phonon, tmp_path):
    phonon, _ = phonon
    phonon.save(tmp_path / "empty.yaml", settings={"force_sets": False, "force_constants": False})
    with pytest.raises(ValueError, match="neither forces nor force constants in it"):
        data.read_structures(tmp_path / "empty.yaml")
    (tmp_path / "FORCE_SETS").write_text("16\n")
    with pytest.raises(FileNotFoundError, match="needs the structure it belongs to"):
        data.read_structures(tmp_path / "FORCE_SETS")


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
