"""Dynamical matrices at any q on the primitive cell: displacement waves as tangents, no supercell.

A Bloch wave displaces atom s of cell S by Re(u_s e^{2 pi i q.S}). Every node value then varies by Re(t e^{2 pi i q.S})
with one complex t per node of the primitive cell, and every operation of the model is local to a node except the
gather of sender values. So the derivative of the forces along the wave is the ordinary one on the primitive graph,
in which the tangent picks up a phase wherever a sender in cell S is read:

    gather     t[n, k] = e^{2 pi i q.S(n, k)} t[sender(n, k)]
    its transpose, the backward pass     t[n] = sum_k e^{2 pi i q.S(n, k)} t[reverse(n, k)]

Complex tangents travel as (real, imaginary) pairs along a mapped axis; where 2q is a lattice vector the phases are real
and half of the work goes away. The result is exact: no displacement step, no supercell, no interpolation.
"""

from collections.abc import Sequence
from typing import Any

import ase
import jax
import jraph
import numpy as np
import numpy.typing as npt
from phonopy import Phonopy
from phonopy.harmonic.dynamical_matrix import DynamicalMatrix
from phonopy.harmonic.dynmat_to_fc import DynmatToForceConstants
from phonopy.phonon.band_structure import BandStructure
from phonopy.phonon.degeneracy import degenerate_sets
from tqdm import tqdm

from equijax import compiled, executables, hessian, potential, structures, units
from equijax.config import Compute
from equijax.derivatives import WaveKind, wave_columns
from equijax.errors import InputError, needed
from equijax.graph import regular
from equijax.phonons.stars import relations
from equijax.potential import Potential


def dynamical_matrices(
    ff: Potential, atoms: ase.Atoms, *, qpoints: npt.ArrayLike, compute: Compute = Compute()
) -> np.ndarray:
    """Exact dynamical matrices on the primitive cell.

    D[q, ia, jb] = sum_S Phi[0 ia, S jb] e^{2 pi i q.(S + x_j - x_i)} / sqrt(m_i m_j): phonopy's phase convention.

    Args:
      ff: a ForceField.
      atoms: N atoms, periodic; their masses are used.
      qpoints: [Q, 3] in units of the reciprocal vectors of `atoms`.
      compute: dtype of the model; memory a device may use; progress, show a bar.

    Returns:
      [Q, 3N, 3N] complex, eV/(A^2 amu); Hermitian to rounding, nothing is symmetrised.

    Raises:
      InputError: a structure the model cannot describe or not periodic, q-points of the wrong shape or not finite.
      MemoryError: one column needs more than `compute.memory`.
    """
    responses = _responses(ff, atoms, qpoints=qpoints, slopes=False, compute=compute)[:, 0]
    return phase(atoms, qpoints) * responses / _masses(atoms)


def derivatives(
    ff: Potential, atoms: ase.Atoms, *, qpoints: npt.ArrayLike, compute: Compute = Compute()
) -> tuple[np.ndarray, np.ndarray]:
    """Dynamical matrices and their derivatives with respect to q, by automatic differentiation of the Bloch phases.

    Args: as `dynamical_matrices`.

    Returns:
      D [Q, 3N, 3N] and dD/dq [Q, 3, 3N, 3N] in eV/(A amu) along Cartesian x, y, z; q in 1/A without 2 pi, as phonopy's.
    """
    out = _responses(ff, atoms, qpoints=qpoints, slopes=True, compute=compute) / _masses(atoms)
    wave = phase(atoms, qpoints)[:, None]
    r = np.repeat(atoms.positions, 3, axis=0)
    between = np.moveaxis(r[None, :] - r[:, None], -1, 0)  # [3, 3N, 3N] r_j - r_i
    along = np.einsum("xa,qaij->qxij", atoms.cell.array.T, out[:, 1:])  # fractional q = cell . Cartesian q
    return (wave * out[:, :1])[:, 0], wave * (along + 2j * np.pi * between * out[:, :1])


def group_velocities(
    ff: Potential, atoms: ase.Atoms, *, qpoints: npt.ArrayLike, cutoff_thz: float = 1e-4, compute: Compute = Compute()
) -> np.ndarray:
    """Group velocities v = d omega / d k = <e| dD/dq |e> / (2 omega), [Q, 3N, 3] in THz A (0.1 km/s).

    Degenerate modes are those that diagonalise the derivative along (1, 2, 3), as in phonopy; velocities of modes below
    `cutoff_thz` are zero. Other arguments as `dynamical_matrices`.
    """
    direction = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
    velocities = []
    for D, dD in zip(*derivatives(ff, atoms, qpoints=qpoints, compute=compute), strict=True):
        values, vectors = np.linalg.eigh(D)
        omega = to_thz(values)
        for modes in degenerate_sets(omega):
            e = vectors[:, modes]
            vectors[:, modes] = e @ np.linalg.eigh(e.conj().T @ np.tensordot(direction, dD, 1) @ e)[1]
        slope = np.einsum("im,xij,jm->mx", vectors.conj(), dD, vectors).real
        moving = omega > cutoff_thz
        scale = np.where(moving, units.SQRT_EV_A2_AMU_THZ**2 / (2 * np.where(moving, omega, 1.0)), 0.0)
        velocities.append(slope * scale[:, None])
    return np.array(velocities)


def frequencies(matrices: np.ndarray) -> np.ndarray:
    """Frequencies in THz of dynamical matrices [..., 3N, 3N], ascending; imaginary ones as negative numbers."""
    return to_thz(np.linalg.eigvalsh(matrices))


def symmetric_matrices(
    ff: Potential, atoms: ase.Atoms, *, qpoints: npt.ArrayLike, symprec: float = 1e-5, compute: Compute = Compute()
) -> np.ndarray:
    """`dynamical_matrices` of which only those at inequivalent q are computed; the rest follow by symmetry.

    C_{g(i) g(j)}(R q) = R C_ij(q) R^T for every operation g = (R, t) of the space group found at `symprec` (A),
    C(-q) = C(q)*, and C(q + G) has the phase of G, where C is D without its masses: an operation may take one isotope
    to the place of another. As exact as the structure is symmetric. Pays on meshes.
    """
    q, masses = np.asarray(qpoints, float), _masses(atoms)
    related = relations(atoms, atoms.numbers, qpoints=q, symprec=symprec)
    chosen = sorted({first for first, *_ in related})
    matrices = dynamical_matrices(ff, atoms, qpoints=q[chosen], compute=compute) * masses
    computed = dict(zip(chosen, matrices, strict=True))
    n, xyz = len(atoms), np.arange(3)
    out = []
    for first, R, image, sign, shift in related:
        blocks = computed[first].reshape(n, 3, n, 3)
        turned = np.empty_like(blocks)
        turned[np.ix_(image, xyz, image, xyz)] = np.einsum("xa,iajb,yb->ixjy", R, blocks, R)
        turned = turned.reshape(3 * n, 3 * n)
        out.append((turned.conj() if sign < 0 else turned) * phase(atoms, [shift])[0])
    return np.array(out) / masses


def force_constants(
    ff: Potential, phonon: Phonopy, *, full: bool = False, symmetry: bool = True, compute: Compute = Compute()
) -> np.ndarray:
    """Force constants of a supercell from the primitive cell alone, set in `phonon.force_constants` and returned.

    Dynamical matrices at the commensurate q are transformed back (phonopy's DynmatToForceConstants). With the supercell
    equal to a q-mesh, frequencies, DOS and thermal properties on that mesh are exact.

    Args:
      ff: a ForceField.
      phonon: gives the primitive cell and the supercell.
      full: [n_s, n_s, 3, 3] instead of the compact [n_p, n_s, 3, 3].
      symmetry: compute one q of each star only.
      compute: as `dynamical_matrices`.

    Returns:
      eV/A^2; the same numbers as from derivatives of the whole supercell.
    """
    atoms, transform = primitive(phonon), DynmatToForceConstants(phonon.primitive, phonon.supercell, is_full_fc=full)
    q = transform.commensurate_points
    matrices = (
        symmetric_matrices(ff, atoms, qpoints=q, symprec=phonon.symmetry.tolerance, compute=compute)
        if symmetry
        else dynamical_matrices(ff, atoms, qpoints=q, compute=compute)
    )
    transform.dynamical_matrices = matrices
    transform.run()
    phonon.force_constants = transform.force_constants
    return needed(phonon.force_constants, "phonopy made no force constants")


def band_structure(
    ff: Potential, phonon: Phonopy, *, paths: Sequence[np.ndarray], compute: Compute = Compute(), **options: Any
) -> BandStructure:
    """phonopy's BandStructure of exact dynamical matrices: no supercell and no interpolation between q.

    Args:
      ff: a ForceField.
      phonon: gives the primitive cell; needs no force constants.
      paths: list of [Q_i, 3] q-points.
      compute: as `dynamical_matrices`.
      options: labels, path_connections and with_eigenvectors of phonopy's BandStructure.
    """
    table = _Table(phonon, ff, np.concatenate(paths), compute)
    return BandStructure(paths, table, **options)


class _Table(DynamicalMatrix):
    """phonopy's interface to dynamical matrices computed beforehand."""

    def __init__(self, phonon: Phonopy, ff: Potential, qpoints: np.ndarray, compute: Compute) -> None:
        cells = phonon.primitive, phonon.supercell
        super().__init__(phonon.supercell, phonon.primitive, np.zeros((*map(len, cells), 3, 3)))
        matrices = dynamical_matrices(ff, primitive(phonon), qpoints=qpoints, compute=compute)
        self._at = dict(zip(map(tuple, qpoints), matrices, strict=True))

    def run(self, q: np.ndarray) -> None:
        """Look up D(q)."""
        self._dynamical_matrix = self._at[tuple(q)]


def primitive(phonon: Phonopy) -> ase.Atoms:
    """phonopy's primitive cell, with its masses."""
    return structures.to_ase(phonon.primitive)


def to_thz(eigenvalues: np.ndarray) -> np.ndarray:
    """sign(w2) sqrt(|w2|) in THz from w2 in eV/(A^2 amu)."""
    return np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues)) * units.SQRT_EV_A2_AMU_THZ


def phase(atoms: ase.Atoms, qpoints: npt.ArrayLike) -> np.ndarray:
    """e^{2 pi i q.(x_j - x_i)}, [Q, 3N, 3N]: from phases per cell to phases per atom, phonopy's."""
    x = np.repeat(atoms.cell.scaled_positions(atoms.positions), 3, axis=0)
    wave = np.exp(2j * np.pi * np.asarray(qpoints, float) @ x.T)
    return wave.conj()[:, :, None] * wave[:, None, :]


def _masses(atoms: ase.Atoms) -> np.ndarray:
    """sqrt(m_i m_j), [3N, 3N] amu."""
    root = np.repeat(np.sqrt(atoms.get_masses()), 3)
    return np.outer(root, root)


def _responses(
    ff: Potential, atoms: ase.Atoms, *, qpoints: npt.ArrayLike, slopes: bool, compute: Compute
) -> np.ndarray:
    """Phi(q) with phases per cell and no masses, [Q, 1, 3N, 3N]; with `slopes` [Q, 4, 3N, 3N], the derivatives by q."""
    q, dtype = _checked(atoms, qpoints), compute.dtype
    n = len(atoms)
    graph = regular.from_atoms(atoms, ff.config, heads=[ff.head_index])
    real = not slopes and bool(np.allclose(2 * q, np.rint(2 * q), rtol=0, atol=1e-12))
    pairs = np.repeat(q, 3 * n, axis=0)
    u = np.tile(hessian.unit_tangents(n, range(n)), (len(q), 1, 1))
    out = np.zeros((len(pairs), 4 if slopes else 1, n, 3), complex)
    with jax.enable_x64(True):
        arguments = ff.device_variables(dtype), jax.device_put(potential.cast(graph, "float64"))
        program, chunk = _program(
            WaveKind(ff.config, dtype, real, slopes), arguments, num=len(pairs), memory=compute.memory
        )
        for first in tqdm(range(0, len(pairs), chunk), desc="columns of D(q)", disable=not compute.progress):
            part = slice(first, first + chunk)
            count = len(pairs[part])
            block = [np.concatenate([x[part], np.zeros((chunk - count, *x.shape[1:]))]) for x in (pairs, u)]
            values = np.asarray(program(*arguments, *block), float)[:count]
            out[part] = values if real else values[..., 0, :, :] + 1j * values[..., 1, :, :]
    return np.moveaxis(out.reshape(len(q), 3 * n, -1, 3 * n), 1, 3)


def _checked(atoms: ase.Atoms, qpoints: npt.ArrayLike) -> np.ndarray:
    q = np.asarray(qpoints, float)
    if q.ndim != 2 or q.shape[1] != 3 or not np.isfinite(q).all():
        raise InputError(f"qpoints: shape {q.shape}, expected finite numbers [Q, 3] in units of reciprocal vectors")
    if not atoms.pbc.all():
        raise InputError(f"{atoms.get_chemical_formula()}: periodic along {atoms.pbc.tolist()}, expected all three")
    return q


_columns = jax.jit(wave_columns, static_argnums=0)


def _program(
    kind: WaveKind, arguments: tuple[dict, jraph.GraphsTuple], *, num: int, memory: int | None
) -> tuple[jax.stages.Compiled, int]:
    """`wave_columns` for as many of `num` columns as keep a device busy and fit its memory, and how many these are."""
    positions, width = arguments[1].nodes.positions, len(arguments[1].senders) * (1 if kind.real else 2)
    width *= 4 if kind.slopes else 1

    def lower(chunk: int) -> jax.stages.Lowered:
        shapes = (jax.ShapeDtypeStruct((chunk, *shape), positions.dtype) for shape in ((3,), positions.shape))
        return _columns.lower(kind, *arguments, *shapes)

    return executables.fitting(
        ("wave_columns", kind, executables.shapes(arguments[1])),
        lower,
        chunk=max(1, min(compiled.chunk_slots() // width, num)),
        memory=compiled.default_memory() if memory is None else memory,
        one=f"one column of D(q), of {width} phases of edges,",
        work=2 * num * len(positions),  # real and imaginary part
    )
