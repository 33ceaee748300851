"""Third-order force constants from exact derivatives, in phono3py's compact format (extra `kappa`).

phono3py's symmetry-reduced displacement pairs (u, v) are the tangents: for each first displacement u the Hessian is
differentiated along u, and the result is applied to the second displacements v in batches,

    T[u, v] = d/de H(r + e u) v      and      F(u, v) = -(H u + H v + T[u, v])

are the forces phono3py asks for, with no step length and no terms of higher order. It spreads them by symmetry.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import ase
import numpy as np
import numpy.typing as npt
from phonopy import Phonopy
from phonopy.interface.fc_calculator import get_fc2

from equijax import hessian, structures
from equijax.config import Compute
from equijax.errors import InputError, MissingExtra
from equijax.phonons import force_constants as force_constants_module
from equijax.phonons.force_constants import supercell_matrix, to_primitive
from equijax.potential import Potential

if TYPE_CHECKING:  # it comes with an extra
    from phono3py.phonon3.displacement_fc3 import Fc3Type1DisplacementDataset


class Residuals(NamedTuple):
    """Largest violation of each law that third-order force constants obey, and their largest entry as the scale."""

    scale_eV_A3: float
    sum_rule_eV_A3: float  # |sum_k Phi_ijk|: translation
    permutation_eV_A3: float  # |Phi_ijk - Phi_ikj^T|, |Phi_ijk - Phi_jik^T|: symmetry of third derivatives


def make_phono3py(
    atoms: ase.Atoms,
    supercell: npt.ArrayLike,
    *,
    phonon_supercell: npt.ArrayLike | None = None,
    primitive: str | npt.ArrayLike = "auto",
    symprec: float = 1e-5,
) -> Any:
    """A Phono3py object for a structure.

    Args:
      atoms: the unit cell.
      supercell: of the third-order force constants, see `force_constants.make_phonon`.
      phonon_supercell: of the second-order ones; default the same.
      primitive, symprec: see `force_constants.make_phonon`.

    Raises:
      InputError: not periodic, or a supercell that is not integer or has no volume.
      MissingExtra: phono3py is not installed.
    """
    matrices = [None if s is None else supercell_matrix(s) for s in (supercell, phonon_supercell)]
    cell = structures.to_phonopy(atoms)
    return _phono3py().Phono3py(
        cell,
        matrices[0],
        primitive_matrix=structures.primitive_matrix(cell, primitive, symprec=symprec),
        phonon_supercell_matrix=matrices[1],
        is_mesh_symmetry=not structures.mixes_isotopes(cell.numbers, cell.masses),
        symprec=symprec,
        log_level=0,
    )


def _phono3py() -> ModuleType:
    try:
        import phono3py
    except ImportError as error:
        raise MissingExtra("third-order force constants need phono3py: pip install 'equijax[kappa]'") from error
    return phono3py


def displacement_pairs(ph3: Any) -> "Fc3Type1DisplacementDataset":
    """phono3py's symmetry-reduced dataset with displacements of 1 A and one sign only.

    first_atoms: number, displacement and second_atoms, each of them with number and displacement.
    """
    from phono3py.phonon3.displacement_fc3 import get_third_order_displacements

    _phono3py()
    return get_third_order_displacements(ph3.supercell, ph3.symmetry, 1.0, is_plusminus=False, is_diagonal=True)


def force_constants(ff: Potential, ph3: Any, *, full: bool = False, compute: Compute = Compute()) -> np.ndarray:
    """Third-order force constants of a supercell, set in `ph3.fc3` and returned; `ph3.fc2` is set too.

    Args:
      ff: a ForceField.
      ph3: a phono3py.Phono3py; its displacement datasets are left alone. Where it has a larger supercell for phonons,
        the second-order force constants are those of that one.
      full: [n_s, n_s, n_s, 3, 3, 3] instead of the compact [n_p, n_s, n_s, 3, 3, 3].
      compute: see `hessian.hvp`.

    Returns:
      eV/A^3, nothing symmetrised; `residuals` says how well they obey the laws.

    Raises:
      InputError, MemoryError: see `hessian.hvp`.
      MissingExtra: phono3py is not installed.
    """
    from phono3py.phonon3.fc3 import get_fc3

    dataset = displacement_pairs(ph3)
    fill_forces(ff, ph3, dataset=dataset, compute=compute)
    fc2, fc3 = get_fc3(ph3.supercell, ph3.primitive, dataset, ph3.symmetry, is_compact_fc=not full)
    if ph3.phonon_supercell_matrix is not None:
        phonon = Phonopy(
            ph3.unitcell,
            ph3.phonon_supercell_matrix,
            primitive_matrix=ph3.primitive_matrix,
            symprec=ph3.symmetry.tolerance,
            log_level=0,
        )
        fc2 = force_constants_module.force_constants(ff, phonon, full=full, compute=compute)
    ph3.fc2, ph3.fc3 = fc2, fc3
    return fc3


def fill_forces(
    ff: Potential, ph3: Any, *, dataset: "Fc3Type1DisplacementDataset", compute: Compute = Compute()
) -> None:
    """Enter the forces of every displacement and pair of `displacement_pairs` into it, in place.

    `compute` is that of `hessian.hvp`.
    """
    atoms, first = structures.to_ase(ph3.supercell), dataset["first_atoms"]
    directions = force_constants_module.tangents(first, len(atoms))
    forces = [-Hu for Hu in hessian.hvp(ff, atoms, tangents=directions, compute=compute)]
    for entry, F in zip(first, forces, strict=True):
        entry["forces"] = F
    singles: Any = dataset  # also one of second order, though the annotations of phonopy tell them apart
    fc2 = get_fc2(ph3.supercell, singles, primitive=ph3.primitive, is_compact_fc=False, symmetry=ph3.symmetry)
    for entry, along, F in zip(first, directions, forces, strict=True):
        pairs = entry["second_atoms"]
        which, sign, tangents = _distinct(force_constants_module.tangents(pairs, len(atoms)))
        T = hessian.hvp(ff, atoms, tangents=tangents, along=along, compute=compute)
        for pair, i, s in zip(pairs, which, sign, strict=True):
            Hv = np.einsum("jab,a->jb", fc2[pair["number"]], pair["displacement"])
            pair["forces"] = F - Hv - s * T[i]


def _distinct(tangents: np.ndarray) -> tuple[list[int], list[float], np.ndarray]:
    """Index into the distinct ones of each tangent, its sign, and the distinct ones: v and -v are pushed once."""
    which, sign, kept, seen = [], [], [], {}
    for v in tangents:
        s = np.sign(v.flat[np.flatnonzero(v)[0]])
        i = seen.setdefault((s * v).round(12).tobytes(), len(kept))
        if i == len(kept):
            kept.append(s * v)
        which.append(i)
        sign.append(s)
    return which, sign, np.array(kept)


def residuals(ph3: Any) -> Residuals:
    """How well the third-order force constants of a Phono3py object obey the laws.

    Raises:
      InputError: no force constants.
    """
    fc = ph3.fc3
    if fc is None:
        raise InputError("the Phono3py object has no third-order force constants; call third_order.force_constants")
    fc = fc if len(fc) == len(ph3.primitive) else fc[ph3.primitive.p2s_map]
    home, back = to_primitive(ph3)
    swapped, first_two = 0.0, 0.0
    for p, i in enumerate(ph3.primitive.p2s_map):
        swapped = max(swapped, float(np.abs(fc[p] - fc[p].transpose(1, 0, 2, 4, 3)).max()))
        for j in range(fc.shape[1]):
            other = fc[home[j], back[j, i]][back[j]]  # [n_s, 3, 3, 3]: j taken home, i along, all k along
            first_two = max(first_two, float(np.abs(fc[p, j] - other.transpose(0, 2, 1, 3)).max()))
    return Residuals(float(np.abs(fc).max()), float(np.abs(fc.sum(2)).max()), max(swapped, first_two))
