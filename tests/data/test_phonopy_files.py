"""phonopy's files as training data: forces, force constants and what is missing."""

import numpy as np
import phonopy
import pytest
from ase.build import bulk
from phonopy.file_IO import write_FORCE_CONSTANTS, write_FORCE_SETS

from equijax import data, graph
from equijax.data import phonopy_files
from equijax.structures import to_ase


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
