"""The neighbour sum of the equivariant convolution as a multilinear form with a CPU kernel.

Phi(R, Y, h, A) = sum_{n k p m1 m2 m3 c} C_p[m1, m2, m3] R[n, k, p, c] h[s_nk, m1, c] Y[n, k, m2] A[n, p m3, c]

with s the sender of edge slot (n, k). The kernel gathers senders itself, folds C into Y once per edge and keeps sums in
registers; neither messages nor gathered features ever exist in memory. Work per edge and channel at P = 10 paths
(lmax 1, max_ell 3): 110 multiply-adds for the value and 330 for all three gradients.
"""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from equijax.kernels import build, multilinear
from equijax.nn import cg

NAMES = "RYhA"
TYPES = {"float32": "float", "float64": "double"}


def neighbour_sum(h: list[jax.Array], R: jax.Array, Y: jax.Array, paths, senders, reverse) -> list[jax.Array]:
    """A[n, p, m3, c] = sum_k R[n, k, p, c] sum_{m1 m2} C[m1, m2, m3] h[s_nk, m1, c] Y[n, k, m2].

    Args:
      h: node features [M, 2l+1, C] for l = 0..lmax; M = N, or any divisor of N K.
      R: [N, K, P, C] radial functions, zero on masked slots.
      Y: [N, K, m] spherical harmonics.
      paths: the P couplings sorted by l3.
      senders: [N*K] row of h of each slot.
      reverse: [N*K]; reverse[s N K / M + j], j = 0..N K / M - 1, are the slots whose sender is s.

    Returns:
      one array [N, P_l, 2l+1, C] per output degree l.
    """
    n, k, _, channels = R.shape
    rows = sum(2 * p.l3 + 1 for p in paths)
    features = jnp.concatenate(h, axis=1)
    shapes = (R.shape, Y.shape, features.shape, (n, rows, channels))
    operands = (R[None], Y[None], features[None])
    A = _neighbour_sum(operands, (senders, reverse), shapes, tuple(tuple(p) for p in paths))[0]
    out, first = [], 0
    for l in range(max(p.l3 for p in paths) + 1):
        count = sum(p.l3 == l for p in paths)
        size = count * (2 * l + 1)
        out.append(A[:, first : first + size].reshape(n, count, 2 * l + 1, channels))
        first += size
    return out


def available(channels: int, dtype) -> bool:
    """Whether a CPU kernel for this shape can be built: wanted, with a compiler, and channels that fill a register."""
    return np.dtype(dtype).name in TYPES and build.wanted() and _register_bytes(channels, dtype) is not None


def _xla(slot, operands, index, shapes, paths):
    """Variant `slot` by einsum over the coupling tensor of every path: the reference, and the fallback."""
    x = dict(zip([s for s in range(4) if s != slot], operands, strict=True))
    senders, reverse = index
    batch = max(a.shape[0] for a in operands)
    n, k = shapes[0][:2]
    if slot != 2:
        x[2] = jnp.take(x[2], senders, axis=1, mode="clip").reshape(x[2].shape[0], n, k, *shapes[2][1:])
    shape = (n, k, *shapes[2][1:]) if slot == 2 else shapes[slot]
    out = jnp.zeros((batch, *shape), operands[0].dtype)
    row = 0
    for i, (l1, l2, l3) in enumerate(paths):
        C = cg.clebsch_gordan(l1, l2, l3).astype(out.dtype)
        part = {
            0: (..., i, slice(None)),
            1: (..., slice(l2 * l2, (l2 + 1) ** 2)),
            2: (..., slice(l1 * l1, (l1 + 1) ** 2), slice(None)),
            3: (..., slice(row, row + 2 * l3 + 1), slice(None)),
        }
        letters = {0: "Bnkc", 1: "Bnkb", 2: "Bnkac", 3: "Bnmc"}
        inputs = ",".join(letters[s] for s in x)
        full = [jnp.broadcast_to(x[s][part[s]], (batch, *x[s][part[s]].shape[1:])) for s in x]
        out = out.at[part[slot]].add(jnp.einsum(f"abm,{inputs}->{letters[slot]}", C, *full, optimize="greedy"))
        row += 2 * l3 + 1
    if slot == 2:
        out = out.reshape(batch, n * k, *shape[2:])[:, reverse]
        out = out.reshape(batch, shapes[2][0], -1, *shape[2:]).sum(2)
    return out


def _cpu(slots, operands, index, shapes, paths):
    """Several variants by one call of the kernel; None where it cannot be had."""
    dtype = next(iter(operands.values())).dtype
    name = _target(paths, shapes[0][-1], dtype.name)
    kept = "".join(NAMES[s] for s in slots)
    if name is None or any(a.dtype != jnp.int32 for a in index):
        return None
    if kept not in ("A", "R", "Y", "h", "RY", "RYh"):
        return [out for s in slots for out in _cpu((s,), operands, index, shapes, paths)]
    present = [s for s in range(4) if s in operands and (len(slots) > 1 or s != slots[0])]
    batch = max(operands[s].shape[0] for s in present)
    n, k, _, channels = shapes[0]
    call = jax.ffi.ffi_call(name, [jax.ShapeDtypeStruct((batch, *shapes[s]), dtype) for s in slots])
    sizes = {"N": np.int64(n), "K": np.int64(k), "M": np.int64(shapes[2][0]), "C": np.int64(channels)}
    names = {"present": "".join(NAMES[s] for s in present), "outputs": kept}
    return list(call(*(operands[s] for s in present), *index, **sizes, **names))


@cache
def _target(paths, channels: int, dtype: str) -> str | None:
    size = _register_bytes(channels, dtype) if dtype in TYPES else None
    return None if size is None else build.target("convolution", source(paths, TYPES[dtype], size))


def _register_bytes(channels, dtype):
    return build.vector_bytes(channels, np.dtype(dtype).itemsize)


def source(paths, scalar: str, size: int) -> str:
    """C++ text of the kernel for these paths: generated tables, then convolution.cc."""
    rows = entries = 0
    tables = []
    for i, (l1, l2, l3) in enumerate(paths):
        C = cg.clebsch_gordan(l1, l2, l3)
        values = ", ".join(f"{{{', '.join('{' + ', '.join(map(_number, b)) + '}' for b in a)}}}" for a in C)
        constants = f"l1 = {l1}, l2 = {l2}, l3 = {l3}, row = {rows}, b = {entries}"
        array = f"c[{2 * l1 + 1}][{2 * l2 + 1}][{2 * l3 + 1}] = {{{values}}}"
        tables.append(
            f"template <> struct Path<{i}> {{ static constexpr int {constants}; static constexpr double {array}; }};"
        )
        rows += 2 * l3 + 1
        entries += (2 * l1 + 1) * (2 * l3 + 1)
    totals = {
        "NUM_PATHS": len(paths),
        "NUM_ROWS": rows,
        "NUM_B": entries,
        "NUM_H": (max(p[0] for p in paths) + 1) ** 2,
        "NUM_Y": (max(p[1] for p in paths) + 1) ** 2,
        "WIDE": 4 if size == 64 else 2,  # registers of channels per row of A: small and large l3
        "NARROW": 2 if size == 64 else 1,
    }
    head = [f"using Real = {scalar};", f"#define BYTES {size}", "template <int I> struct Path;"]
    head += [f"constexpr int {name} = {value};" for name, value in totals.items()]
    return "\n".join([*head, *tables, (Path(__file__).parent / "convolution.cc").read_text()])


def _number(x: float) -> str:
    return repr(float(x)) if abs(x) > cg.ZERO else "0"


_neighbour_sum = multilinear.make(multilinear.Form("neighbour_sum", 4, _xla, _cpu))
