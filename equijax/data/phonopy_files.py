"""phonopy's files as training data: displaced supercells with forces, and force constants as references."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from phonopy import Phonopy
from phonopy.harmonic.dynmat_to_fc import get_commensurate_points
from phonopy.harmonic.force_constants import compact_fc_to_full_fc

from equijax import structures
from equijax.data.labelled import Labelled, from_values
from equijax.errors import InputError
from equijax.phonons.files import has_forces, program_of
from equijax.phonons.reference import produce, read

AMPLITUDE_A = 0.1  # rms component of a random tangent


@dataclass(frozen=True, eq=False)
class ForceConstants:
    """Reference force constants of a supercell."""

    atoms: ase.Atoms  # the undisplaced supercell
    values: np.ndarray  # [n, n, 3, 3] eV/A^2
    source: str
    primitive: ase.Atoms  # its p atoms are atoms of the supercell
    first: np.ndarray  # [p] which ones
    image: np.ndarray  # [n] the atom of the primitive cell that a supercell atom repeats
    cells: np.ndarray  # [n, 3] in which cell, integer
    qpoints: np.ndarray  # [Q, 3] commensurate with the supercell, in units of the reciprocal primitive vectors


def is_phonopy(path: Path) -> bool:
    """Whether a file is one of phonopy's or phono3py's."""
    return program_of(path) is not None


def supercells(path: str | Path, *, tangents: int = 0, seed: int = 0) -> list[Labelled]:
    """Displaced supercells with forces (and energies where stored); see `equijax.data.files.read_file`.

    Raises:
      InputError: force constants alone and no tangents asked for.
    """
    phonon = read(path)
    out = _displaced(phonon, path) if has_forces(phonon.dataset) else []
    if tangents:
        out += products(_constants(phonon, path), tangents, seed=seed)
    if not out:
        raise InputError(f"{path} holds force constants but no forces: ask for tangents to train on their products")
    return out


def force_constants(path: str | Path) -> ForceConstants:
    """Force constants of a phonopy file, made from its forces where it stores none."""
    return _constants(read(path), path)


def products(
    reference: ForceConstants, tangents: int, *, copies: int = 1, amplitude: float = AMPLITUDE_A, seed: int = 0
) -> list[Labelled]:
    """The undisplaced supercell labelled with Phi u along random tangents u, no net translation.

    Args:
      reference: force constants Phi.
      tangents: B of each copy.
      copies: structures to make, each with its own tangents.
      amplitude: rms component of a tangent, A.
      seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    n = len(reference.atoms)
    out = []
    for i in range(copies):
        u = amplitude * rng.normal(size=(n, tangents, 3))
        u -= u.mean(0)
        hvp = np.einsum("ijab,jtb->ita", reference.values, u)
        out.append(from_values(reference.atoms, f"{reference.source}:force constants {i}", tangents=u, hvp=hvp))
    return out


def waves(
    reference: ForceConstants, tangents: int, *, copies: int = 1, amplitude: float = AMPLITUDE_A, seed: int = 0
) -> list[Labelled]:
    """The primitive cell labelled with the response to displacement waves u_j e^{2 pi i q.S} (phases per cell S).

    hvp_i = sum_{j S} Phi[0 i, S j] e^{2 pi i q.S} u_j at random commensurate q, where the sum over the supercell is
    exact: all that the supercell knows, from a cell as small as it gets. Arguments as for `products`.
    """
    rng = np.random.default_rng(seed)
    p = len(reference.primitive)
    out = []
    for i in range(copies):
        q = reference.qpoints[rng.integers(len(reference.qpoints), size=tangents)]
        u = amplitude * (rng.normal(size=(p, tangents, 3)) + 1j * rng.normal(size=(p, tangents, 3)))
        phase = np.exp(2j * np.pi * reference.cells @ q.T)  # [n, B]
        displaced = u[reference.image] * phase[..., None]
        hvp = np.einsum("ijab,jtb->ita", reference.values[reference.first], displaced)
        source = f"{reference.source}:force constants {i}"
        out.append(from_values(reference.primitive, source, tangents=u, hvp=hvp, q=q))
    return out


def _displaced(phonon: Any, path: str | Path) -> list[Labelled]:
    dataset = phonon.dataset
    if "first_atoms" in dataset:
        forces = [d.get("forces") for d in dataset["first_atoms"]]
        energies = [d.get("supercell_energy") for d in dataset["first_atoms"]]
    else:
        forces = list(dataset["forces"])
        energies = list(dataset.get("supercell_energies", [None] * len(forces)))
    cells = phonon.supercells_with_displacements
    return [
        from_values(structures.to_ase(cell), f"{path}:{i}", energy=e, forces=f)
        for i, (cell, e, f) in enumerate(zip(cells, energies, forces, strict=True))
        if cell is not None and f is not None
    ]


def _constants(phonon: Phonopy, path: str | Path) -> ForceConstants:
    produce(phonon, path)
    values = np.asarray(phonon.force_constants)
    if values.shape[0] != values.shape[1]:
        values = compact_fc_to_full_fc(phonon.primitive, values)
    supercell, primitive = phonon.supercell, phonon.primitive
    first = np.asarray(primitive.p2s_map)
    image = np.array([primitive.p2p_map[s] for s in primitive.s2p_map])
    inverse = np.linalg.inv(primitive.cell)
    cells = np.rint((supercell.positions - supercell.positions[first][image]) @ inverse).astype(int)
    cell = ase.Atoms(supercell.numbers[first], supercell.positions[first], cell=primitive.cell, pbc=True)
    qpoints = get_commensurate_points(np.rint(supercell.cell @ inverse).astype(int).T)
    return ForceConstants(structures.to_ase(supercell), values, str(path), cell, first, image, cells, qpoints)
