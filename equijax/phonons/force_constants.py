"""Force constants from exact second derivatives, in and out of phonopy.

phonopy's symmetry-reduced displacements u are the tangents of Hessian-vector products: the forces they cause are
-H u exactly, with no step length. phonopy then spreads them over the crystal by symmetry.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ase
import numpy as np
import numpy.typing as npt
from phonopy import Phonopy
from phonopy.harmonic.displacement import Type1DisplacementDataset, generate_systematic_displacements
from phonopy.interface.fc_calculator import get_fc2
from phonopy.structure.atoms import PhonopyAtoms

from equijax import graph, hessian
from equijax.config import Compute
from equijax.errors import InputError, needed
from equijax.phonons import projection
from equijax.potential import Potential
from equijax.structures import primitive_matrix, to_ase, to_phonopy


class Residuals(NamedTuple):
    """Largest violation of each law that second-order force constants obey, and their largest entry as the scale."""

    scale_eV_A2: float
    sum_rule_eV_A2: float  # |sum_j Phi_ij|: translation
    permutation_eV_A2: float  # |Phi_ij - Phi_ji^T|: symmetry of second derivatives
    space_group_eV_A2: float  # |Phi_{g(i)g(j)} - R Phi_ij R^T|, for every operation g = (R, t) of the supercell


class SpotCheck(NamedTuple):
    """One column of the force constants against finite differences."""

    atom: int  # of the supercell
    direction: np.ndarray  # [3], unit length
    step_A: float
    max_difference_eV_A2: float
    max_entry_eV_A2: float


FINITE_STEP_A = 0.01  # of the finite-difference spot check


def make_phonon(
    atoms: ase.Atoms, supercell: npt.ArrayLike, *, primitive: str | npt.ArrayLike = "auto", symprec: float = 1e-5
) -> Phonopy:
    """A Phonopy object for a structure.

    Args:
      atoms: the unit cell.
      supercell: 3 integers (diagonal), 9 integers or a [3, 3] integer matrix.
      primitive: phonopy's primitive_matrix.
      symprec: A, tolerance of the symmetry search.

    Raises:
      InputError: not periodic, or a supercell that is not integer or has no volume.
    """
    matrix, cell = supercell_matrix(supercell), to_phonopy(atoms)
    return Phonopy(
        cell,
        matrix,
        primitive_matrix=primitive_matrix(cell, primitive, symprec=symprec),
        symprec=symprec,
        distinguish_symbol_index=True,  # isotopes, see `structures.to_phonopy`
        log_level=0,
    )


def supercell_matrix(supercell: npt.ArrayLike) -> np.ndarray:
    """[3, 3] integers of positive determinant from 3 (diagonal), 9 or [3, 3] of them.

    Where the determinant is negative all three vectors are turned round: the same supercell.

    Raises:
      InputError: not integer, or no volume.
    """
    matrix = np.asarray(supercell, float)
    if matrix.size not in (3, 9) or not np.allclose(matrix, np.rint(matrix), atol=1e-8):
        raise InputError(f"supercell {np.asarray(supercell).tolist()}: expected 3 or 9 integers")
    matrix = np.diag(np.rint(matrix).astype(int)) if matrix.size == 3 else np.rint(matrix).astype(int).reshape(3, 3)
    cells = round(np.linalg.det(matrix))
    if cells == 0:
        raise InputError(f"supercell {matrix.tolist()} has no volume")
    return matrix if cells > 0 else -matrix


def check_mesh(supercell: PhonopyAtoms, primitive: PhonopyAtoms, *, mesh: Sequence[int]) -> None:
    """Refuse a supercell and a q-mesh that hold no mode with a frequency of its own.

    Args:
      supercell, primitive: cells of a Phonopy or Phono3py object.
      mesh: 3 integers, Gamma-centred.

    Raises:
      InputError: a supercell of one atom, whose images move with it; a mesh of other than positive numbers, or of Gamma
        alone where the primitive cell has one atom and only translations.
    """
    if len(supercell) == 1:
        raise InputError("a supercell of one atom has no force constants, its images move with it: use a larger one")
    if min(mesh) < 1:
        raise InputError(f"mesh {tuple(mesh)}: expected positive numbers")
    if max(mesh) == 1 and len(primitive) == 1:
        raise InputError(
            f"mesh {tuple(mesh)} is Gamma alone, where a primitive cell of one atom has nothing but translations: "
            "use a finer one"
        )


def irreducible_displacements(phonon: Phonopy) -> np.ndarray:
    """[B, n_s, 3] phonopy's symmetry-reduced displacements of the supercell, 1 A long, one sign only."""
    return tangents(_dataset(phonon)["first_atoms"], len(phonon.supercell))


def _dataset(phonon: Phonopy) -> Type1DisplacementDataset:
    return generate_systematic_displacements(phonon.supercell, phonon.symmetry, distance=1.0, is_plusminus=False)


def tangents(entries: Sequence[Mapping[str, Any]], num_atoms: int) -> np.ndarray:
    """[B, N, 3] of phonopy's entries, each the number and the displacement of one atom."""
    out = np.zeros((len(entries), num_atoms, 3))
    for row, entry in zip(out, entries, strict=True):
        row[entry["number"]] = entry["displacement"]
    return out


def force_constants(ff: Potential, phonon: Phonopy, *, full: bool = False, compute: Compute = Compute()) -> np.ndarray:
    """Second-order force constants Phi = d2E/dr dr of a supercell, set in `phonon.force_constants` and returned.

    Args:
      ff: a ForceField.
      phonon: gives supercell, primitive cell and symmetry; its displacement dataset is left alone.
      full: [n_s, n_s, 3, 3] instead of the compact [n_p, n_s, 3, 3].
      compute: see `hessian.hvp`.

    Returns:
      eV/A^2, nothing symmetrised; `residuals` says how well they obey the laws.

    Raises:
      InputError, MemoryError: see `hessian.hvp`.
    """
    dataset = _dataset(phonon)
    u = tangents(dataset["first_atoms"], len(phonon.supercell))
    gradients = hessian.hvp(ff, to_ase(phonon.supercell), tangents=u, compute=compute)
    for entry, gradient in zip(dataset["first_atoms"], gradients, strict=True):
        entry["forces"] = -gradient
    phonon.force_constants = get_fc2(
        phonon.supercell, dataset, phonon.primitive, is_compact_fc=not full, symmetry=phonon.symmetry
    )
    return _stored(phonon)


def compact(phonon: Phonopy) -> np.ndarray:
    """[n_p, n_s, 3, 3] force constants, whichever shape the object holds.

    Raises:
      InputError: the object has none.
    """
    fc = _stored(phonon)
    return fc if len(fc) == len(phonon.primitive) else fc[phonon.primitive.p2s_map]


def _stored(phonon: Phonopy) -> np.ndarray:
    message = "the Phonopy object has no force constants; call equijax.phonons.force_constants first"
    return needed(phonon.force_constants, message)


def residuals(phonon: Phonopy) -> Residuals:
    """How well the force constants of an object obey the laws."""
    fc = compact(phonon)
    return Residuals(
        scale_eV_A2=float(np.abs(fc).max()),
        sum_rule_eV_A2=float(np.abs(fc.sum(1)).max()),
        permutation_eV_A2=float(np.abs(fc - transposed(phonon, fc)).max()),
        space_group_eV_A2=_space_group_residual(phonon, fc),
    )


def transposed(phonon: Phonopy, fc: np.ndarray) -> np.ndarray:
    """Phi_ji^T in compact form: [n_p, n_s, 3, 3] for i in the primitive cell, j in the supercell."""
    home, back = to_primitive(phonon)
    row_of_j = home  # primitive row of supercell atom j
    out = np.empty_like(fc)
    for p, i in enumerate(phonon.primitive.p2s_map):
        # translate j home; atom i goes along to back[j, i]
        out[p] = fc[row_of_j, back[:, i]].transpose(0, 2, 1)
    return out


def to_primitive(phonon: Any) -> tuple[np.ndarray, np.ndarray]:
    """For supercell atoms j: primitive row [n_s], and where the translation that brings j home takes all [n_s, n_s].

    Of a Phonopy or Phono3py object.
    """
    primitive = phonon.primitive
    home = np.array([primitive.p2p_map[s] for s in primitive.s2p_map])
    translations = primitive.atomic_permutations  # [n_t, n_s]: atom a goes to translations[t, a]
    which = np.array([np.flatnonzero(translations[:, j] == primitive.s2p_map[j])[0] for j in range(len(home))])
    return home, translations[which]


def _space_group_residual(phonon: Phonopy, fc: np.ndarray) -> float:
    """Largest |Phi_{g(i)g(j)} - R Phi_ij R^T| over one operation per rotation: translations are built in."""
    home, back = to_primitive(phonon)
    symmetry = phonon.symmetry
    rotations = symmetry.symmetry_operations["rotations"]
    _, chosen = np.unique(rotations.reshape(len(rotations), 9), axis=0, return_index=True)
    cell = phonon.supercell.cell.T
    worst = 0.0
    for op in chosen:
        R = cell @ rotations[op] @ np.linalg.inv(cell)
        image = symmetry.atomic_permutations[op]
        for p, i in enumerate(phonon.primitive.p2s_map):
            rotated = R @ fc[p] @ R.T  # [n_s, 3, 3]
            gi = image[i]
            worst = max(worst, float(np.abs(fc[home[gi], back[gi][image]] - rotated).max()))
    return worst


def project(phonon: Phonopy, method: str = "symfc") -> Residuals:
    """Impose sum rules and symmetry on `phonon.force_constants`; returns `residuals` of the raw ones.

    Args:
      phonon: with force constants.
      method: "symfc" projects onto all laws at once, "phonopy" alternates translation and permutation.

    Raises:
      InputError: unknown method, no force constants.
    """
    raw = residuals(phonon)
    if method == "symfc":
        cells = projection.Cells(phonon.supercell, phonon.primitive, phonon.symmetry)
        phonon.force_constants = projection.project(_stored(phonon), cells)
    elif method == "phonopy":
        phonon.symmetrize_force_constants(show_drift=False)
    else:
        raise InputError(f"projection {method!r}: expected 'symfc' or 'phonopy'")
    return raw


def reserve(ff: Potential, phonon: Phonopy) -> None:
    """Make the padded shape of the spot check known to `ff` where it is small: what comes before shares its program."""
    atoms = to_ase(phonon.supercell)
    size = graph.size_of([(atoms, graph.listed(atoms, ff.config))], ff.config)
    if size.cost <= graph.SHARED[0].work:
        ff.pool.fit(size)


def spot_check(ff: Potential, phonon: Phonopy, *, seed: int = 0) -> SpotCheck:
    """One random column of the force constants against fourth-order finite differences of the forces, float64.

    (4 D(h) - D(2h)) / 3, D(h) = (g(r + h) - g(r - h)) / 2h, of one atom of the primitive cell along a random direction.
    """
    rng = np.random.default_rng(seed)
    p = int(rng.integers(len(phonon.primitive)))
    atom = int(phonon.primitive.p2s_map[p])
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    g, steps = [], FINITE_STEP_A * np.array([1.0, -1.0, 2.0, -2.0])
    calculator = ff.calculator(dtype="float64")  # its padded shapes are those of other crystals too
    for step in steps:
        moved = to_ase(phonon.supercell)
        moved.positions[atom] += step * direction
        moved.calc = calculator
        g.append(-moved.get_forces())
    near, far = (g[0] - g[1]) / (2 * steps[0]), (g[2] - g[3]) / (2 * steps[2])
    exact = np.einsum("jab,a->jb", compact(phonon)[p], direction)
    difference = np.abs((4 * near - far) / 3 - exact).max()
    return SpotCheck(atom, direction, FINITE_STEP_A, float(difference), float(np.abs(exact).max()))
