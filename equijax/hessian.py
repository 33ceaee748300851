"""Hessian-vector products, Hessian rows and full Hessians of one or many structures.

The gradient is linearised once per compiled call and tangents are pushed through the linear map in chunks: forward
over reverse differentiation, H t = d/de grad E(r + e t) at e = 0, exact, with no 3N x 3N matrix unless asked for.

  one program per (padded shape, chunk); the number of chunks in a call is a run-time value, so it never recompiles
  several structures share one graph: its Hessian is block diagonal, so one tangent carries a row of each structure
  several devices: the chunk is split over all of them with jax.sharding, the graph is replicated
  third order: the same map of the gradient's derivative along a fixed direction, T[a, t] = d/de H(r + e a) t
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import ase
import jax
import jraph
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from equijax import compiled, executables, graph, potential
from equijax.config import Compute
from equijax.derivatives import push_tangents
from equijax.errors import InputError
from equijax.graph import packing
from equijax.potential import Potential

MAX_STEPS = 32  # chunks in one call, each call linearises the gradient once
REPORT_S = 5.0  # a call is sized to last about this long, so that progress is seen
FEW_TANGENTS = 8  # fewer are padded to these: crystals differ in their numbers of irreducible displacements


def hvp(
    ff: Potential,
    atoms: ase.Atoms,
    *,
    tangents: npt.ArrayLike,
    along: npt.ArrayLike | None = None,
    compute: Compute = Compute(),
) -> np.ndarray:
    """Hessian-vector products H t of one structure, or their derivatives along a direction a, sum_ij E_ijk a_i t_j.

    Args:
      ff: a ForceField.
      atoms: N atoms.
      tangents: [B, N, 3] A, displacement patterns.
      along: [N, 3] A, the direction a; None for H t itself.
      compute: dtype, memory and progress. "float32" halves memory; edge vectors, and the sums over edges that make
        each atom's row, stay in float64, and results are float64 arrays.

    Returns:
      [B, N, 3] eV/A: the change of the gradient, minus the change of the forces, to first order in the tangent; with
      `along`, the bilinear part of the change under both displacements.

    Raises:
      InputError: a structure the model cannot describe, tangents of the wrong shape or not finite.
      MemoryError: one tangent needs more than `compute.memory`; said before work starts.
    """
    return hvps(ff, [atoms], tangents=[tangents], along=None if along is None else [along], compute=compute)[0]


def hvps(
    ff: Potential,
    images: Sequence[ase.Atoms],
    *,
    tangents: Sequence[npt.ArrayLike],
    along: Sequence[npt.ArrayLike] | None = None,
    compute: Compute = Compute(),
) -> list[np.ndarray]:
    """`hvp` of many structures of different size: structures are packed into few padded shapes.

    Args:
      images: structures.
      tangents: per structure [B_i, N_i, 3] A.
      along: None, or per structure one direction [N_i, 3] A.

    Returns:
      per structure [B_i, N_i, 3] eV/A. Other arguments and errors as `hvp`.
    """
    if len(images) != len(tangents):
        raise InputError(f"{len(images)} structures but {len(tangents)} arrays of tangents: expected one array each")
    tangents = [_checked(t, atoms, i=i) for i, (atoms, t) in enumerate(zip(images, tangents, strict=True))]
    if along is not None:
        rows = [np.asarray(a)[None] for a in along]
        along = [_checked(a, atoms, i=i)[0] for i, (atoms, a) in enumerate(zip(images, rows, strict=True))]
    structures = []
    for i, atoms in enumerate(images):
        name = f"structure {i} ({atoms.get_chemical_formula()})"
        graph.check_atoms(atoms, ff.config, name=name)
        structures.append((atoms, graph.listed(atoms, ff.config, name=name)))
    pool, index = graph.SizePool(ladders=graph.SHARED), ff.head_index
    results: list = [None] * len(images)
    with tqdm(total=sum(map(len, tangents)), desc="Hessian rows", unit="row", disable=not compute.progress) as bar:
        for members in _groups(structures, [len(t) for t in tangents]):
            chosen = [structures[i] for i in members]
            needed = graph.size_of(chosen, ff.config)
            rows = max(len(tangents[i]) for i in members)
            # a single structure of more work than shared shapes are for gets one of its own, with nothing wasted
            alone = len(images) == 1 and needed.cost * rows > graph.SHARED[0].work
            size = needed if alone else pool.fit(needed, work=rows)
            batch = graph.build(chosen, ff.config, size=size, heads=[index] * len(chosen))
            if along is not None:
                direction = _stack([along[i] for i in members], size.nodes)
                batch = batch._replace(nodes=batch.nodes._replace(along=direction))
            pushed = _push_batch(ff, batch, tangents=[tangents[i] for i in members], compute=compute, bar=bar)
            for i, out in zip(members, pushed, strict=True):
                results[i] = out
    return results


def hessian(
    ff: Potential, atoms: ase.Atoms, *, rows: Sequence[int] | None = None, compute: Compute = Compute()
) -> np.ndarray:
    """Hessian H[i, a, j, b] = d2E / dr_ia dr_jb in eV/A^2, [N, 3, N, 3], or [R, 3, N, 3] of the atoms in `rows`.

    `compute` and errors are those of `hvp`.
    """
    return hessians(ff, [atoms], rows=None if rows is None else [rows], compute=compute)[0]


def hessians(
    ff: Potential,
    images: Sequence[ase.Atoms],
    *,
    rows: Sequence[Sequence[int]] | None = None,
    compute: Compute = Compute(),
) -> list[np.ndarray]:
    """`hessian` of many structures in one call; `rows` is None or one sequence of atom indices a structure."""
    rows = [range(len(atoms)) for atoms in images] if rows is None else rows
    tangents = [unit_tangents(len(atoms), r) for atoms, r in zip(images, rows, strict=True)]
    out = hvps(ff, images, tangents=tangents, compute=compute)
    return [h.reshape(-1, 3, len(atoms), 3) for h, atoms in zip(out, images, strict=True)]


def unit_tangents(num_atoms: int, rows: Sequence[int]) -> np.ndarray:
    """[3 R, N, 3] A: each atom in `rows` displaced by 1 A along x, y and z.

    Raises:
      IndexError: a row that is no atom of the structure.
    """
    chosen = np.asarray(rows, int)
    if chosen.size and not (0 <= chosen.min() and chosen.max() < num_atoms):
        raise IndexError(f"rows {chosen.min()}..{chosen.max()}: expected atom indices 0..{num_atoms - 1}")
    out = np.zeros((len(chosen), 3, num_atoms, 3))
    out[np.arange(len(chosen))[:, None], np.arange(3), chosen[:, None], np.arange(3)] = 1.0
    return out.reshape(-1, num_atoms, 3)


def _checked(tangents: npt.ArrayLike, atoms: ase.Atoms, *, i: int) -> np.ndarray:
    tangents = np.asarray(tangents, np.float64)
    if tangents.ndim != 3 or tangents.shape[1:] != (len(atoms), 3):
        raise InputError(f"tangents of structure {i}: shape {tangents.shape}, expected [B, {len(atoms)}, 3]")
    if not np.isfinite(tangents).all():
        raise InputError(f"tangents of structure {i} are not all finite")
    return tangents


def _stack(rows: list[np.ndarray], num_nodes: int) -> np.ndarray:
    """Node values of each structure one after the other, zero on padding: [N, 3]."""
    out = np.zeros((num_nodes, 3))
    out[: sum(map(len, rows))] = np.concatenate(rows)
    return out


def _groups(structures: list[tuple[ase.Atoms, graph.Edges]], num_rows: list[int]) -> list[list[int]]:
    """Indices of structures that share a graph: like numbers of rows and of neighbours, small ones only."""
    slots = [max(1, int(np.bincount(e.receivers, minlength=1).max())) for _, e in structures]
    order = sorted(range(len(structures)), key=lambda i: (num_rows[i], slots[i]))

    def fits(group: list[int]) -> bool:
        """Where the common graph is small enough for one chunk and wastes at most a third."""
        cost = sum(len(structures[i][0]) for i in group) * max(slots[i] for i in group)
        used = sum(len(structures[i][0]) * num_rows[i] * slots[i] for i in group)
        return cost <= compiled.chunk_slots() and cost * max(num_rows[i] for i in group) <= 1.5 * used

    return packing.packed(order, fits)


def _push_batch(
    ff: Potential, batch: jraph.GraphsTuple, *, tangents: list[np.ndarray], compute: Compute, bar: tqdm
) -> list[np.ndarray]:
    """Push the tangents of all structures of a graph through its Hessian; one packed tangent holds a row of each."""
    num = max(map(len, tangents))
    first = np.cumsum([0, *(t.shape[1] for t in tangents)])
    packed = np.zeros((num, len(batch.nodes.positions), 3))
    for t, a, b in zip(tangents, first, first[1:], strict=False):
        packed[: len(t), a:b] = t
    rows = np.array([sum(len(t) > i for t in tangents) for i in range(num)])  # of the user's rows in a packed one
    with jax.enable_x64(True):
        out = (
            _push(ff, potential.cast(batch, "float64"), packed=packed, rows=rows, compute=compute, bar=bar)
            if num
            else packed
        )
    return [out[: len(t), a:b] for t, a, b in zip(tangents, first, first[1:], strict=False)]


def _push(
    ff: Potential, batch: jraph.GraphsTuple, *, packed: np.ndarray, rows: np.ndarray, compute: Compute, bar: tqdm
) -> np.ndarray:
    """H times packed [M, N, 3]; `rows` [M] is how far each brings the bar."""
    variables, out = ff.device_variables(compute.dtype), np.zeros_like(packed)
    program, chunk = _program(ff.config, variables, batch=batch, compute=compute, num=len(packed))
    done, calls = 0, MAX_STEPS if bar.disable else 1  # the first call tells how long one takes
    while done < len(packed):
        part = packed[done : done + calls * chunk]
        block = np.zeros((MAX_STEPS * chunk, *packed.shape[1:]))
        block[: len(part)] = part
        start = time.perf_counter()
        used = -(-len(part) // chunk)
        result = np.asarray(program(variables, batch, block.reshape(MAX_STEPS, chunk, *packed.shape[1:]), used))
        seconds = (time.perf_counter() - start) / used
        out[done : done + len(part)] = result.reshape(-1, *packed.shape[1:])[: len(part)]
        bar.update(int(rows[done : done + len(part)].sum()))
        done += len(part)
        calls = int(np.clip(REPORT_S / max(seconds, 1e-6), 2, MAX_STEPS))
    return out


def _program(
    config: Any, variables: dict, *, batch: jraph.GraphsTuple, compute: Compute, num: int
) -> tuple[jax.stages.Compiled, int]:
    """`push_tangents` for as many of `num` tangents as keep the devices busy and fit their memory, and how many."""
    devices, (nodes, _) = jax.local_devices(), batch.nodes.positions.shape
    mesh = Mesh(np.array(devices), ("rows",))
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "rows"))
    function = jax.shard_map(
        partial(push_tangents, config, compute.dtype),
        mesh=mesh,
        in_specs=(P(), P(), P(None, "rows"), P()),
        out_specs=P(None, "rows"),
        check_vma=False,
    )
    jitted = jax.jit(function, in_shardings=(replicated, replicated, split, replicated), out_shardings=split)

    def lower(chunk: int) -> jax.stages.Lowered:
        potential.start_kernels(config, compute.dtype)
        shape = (MAX_STEPS, chunk * len(devices), nodes, 3)
        return jitted.lower(variables, batch, jax.ShapeDtypeStruct(shape, "float64", sharding=split), 1)

    wanted = max(FEW_TANGENTS, -(-num // len(devices)))
    program, chunk = executables.fitting(
        ("push_tangents", config, compute.dtype, len(devices), executables.shapes(batch)),
        lower,
        chunk=max(1, min(compiled.chunk_slots() // len(batch.senders), wanted)),
        memory=compiled.default_memory() if compute.memory is None else compute.memory,
        one=f"one Hessian row of {nodes} atoms with {len(batch.senders) // nodes} neighbours each",
        work=num * nodes,
    )
    return program, chunk * len(devices)
