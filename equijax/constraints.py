"""What ASE's constraints leave free to move."""

import ase
import numpy as np
from ase.constraints import FixAtoms, FixCartesian, FixScaled

from equijax.errors import InputError


def free_components(atoms: ase.Atoms, name: str = "structure") -> np.ndarray:
    """[N, 3] bool, the Cartesian components of the positions that the structure's constraints leave free.

    FixAtoms, FixCartesian, and FixScaled (selective dynamics) where the directions it leaves are Cartesian ones.

    Args:
      atoms: structure.
      name: for messages.

    Raises:
      InputError: another constraint, named.
    """
    free = np.ones((len(atoms), 3), bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = False
        elif isinstance(constraint, FixCartesian):
            free[constraint.index] &= ~constraint.mask
        elif isinstance(constraint, FixScaled):
            free[constraint.index] &= _free_axes(constraint, atoms, name=name)
        else:
            raise InputError(
                f"{name} has the constraint {type(constraint).__name__}, expected FixAtoms, FixCartesian or selective "
                "dynamics: remove it with atoms.set_constraint()"
            )
    return free


def _free_axes(constraint: FixScaled, atoms: ase.Atoms, *, name: str) -> np.ndarray:
    """[3] bool: the Cartesian axes that span what is left when some scaled coordinates are fixed."""
    vectors = atoms.cell.array[~constraint.mask]
    projector = np.linalg.pinv(vectors) @ vectors
    axes = np.rint(np.diag(projector))
    if not np.allclose(projector, np.diag(axes), atol=1e-6):
        raise InputError(
            f"{name}: atom {constraint.index[0]} may move along {vectors.round(4).tolist()} alone, which are not "
            "Cartesian axes: rotate the cell, or fix the atom in all directions"
        )
    return axes.astype(bool)


def refuse_fixed(atoms: ase.Atoms, name: str, *, why: str) -> None:
    """Stop where constraints cannot be honoured.

    Raises:
      InputError: the structure has some; `why` says what they are in the way of and what to do.
    """
    if atoms.constraints:
        kinds = ", ".join(sorted({type(c).__name__ for c in atoms.constraints}))
        raise InputError(f"{name} has constraints ({kinds}): {why}")
