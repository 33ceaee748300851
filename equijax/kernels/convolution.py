"""The neighbour sum of the equivariant convolution as a multilinear form with a CPU kernel.

Phi(R, Y, h, A) = sum_{n k p m1 m2 m3 c} C_p[m1, m2, m3] R[n, k, p, c] h[s_nk, m1, c] Y[n, k, m2] A[n, p m3, c]

with s the sender of edge slot (n, k). The kernel gathers senders itself, folds C into Y once per edge and keeps sums in
registers; neither messages nor gathered features ever exist in memory. Work per edge and channel at P = 10 paths
(lmax 1, max_ell 3): 110 multiply-adds for the value and 330 for all three gradients.

A second form expands R on the fly over a few consecutive rows of a table W [rows, P, C], R[n, k] = sum_j phi[n, k, j]
W[first[n, k] + j], so that R does not exist in memory either: J more multiply-adds per path for each time it is made.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial, reduce
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from equijax import couplings
from equijax.graph.fields import Array
from equijax.kernels import build, gpu, multilinear

NAMES = "RYhA"  # operands of the first form
TABLE_NAMES = "RYhWA"  # of the second, phi in the place of R
TYPES = {"float32": "float", "float64": "double"}


class Tabulated(NamedTuple):
    """Radial functions R[n, k, p, c] = sum_j phi[n, k, j] table[first[n, k] + j, p, c]."""

    phi: jax.Array  # [N, K, J], zero on masked slots
    first: jax.Array  # [N*K] int32 row of `table`; negative on masked slots, which are then skipped
    table: jax.Array  # [rows, P, C]


def neighbour_sum(
    h: list[jax.Array], R: jax.Array, Y: jax.Array, paths: Sequence, senders: Array, reverse: Array
) -> list[jax.Array]:
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
    return _by_degree(_neighbour_sum, [R, Y, jnp.concatenate(h, axis=1)], index=(senders, reverse), paths=paths)


def table_sum(
    h: list[jax.Array], R: Tabulated, Y: jax.Array, paths: Sequence, senders: Array, reverse: Array
) -> list[jax.Array]:
    """`neighbour_sum` with R from a table.

    Args:
      R: see `Tabulated`.
      h, Y, paths, senders, reverse: as there.

    Returns:
      one array [N, P_l, 2l+1, C] per output degree l.
    """
    return _by_degree(
        _table_sum, [R.phi, Y, jnp.concatenate(h, axis=1), R.table], index=(senders, reverse, R.first), paths=paths
    )


def radial_from_table(phi: jax.Array, first: Array, table: jax.Array) -> jax.Array:
    """R[n, k, p, c] = sum_j phi[n, k, j] table[first[n, k] + j, p, c] as an array [N, K, P, C]."""
    rows = jnp.clip(first, 0, table.shape[0] - phi.shape[-1]).reshape(phi.shape[:2])
    # one gather a term, each fused into the sum: together they would be J times the size of R
    terms = (phi[..., j, None, None] * jnp.take(table, rows + j, axis=0, mode="clip") for j in range(phi.shape[-1]))
    return reduce(jnp.add, terms)


def _by_degree(
    form: Callable, operands: Sequence[jax.Array], *, index: Sequence[Array], paths: Sequence
) -> list[jax.Array]:
    """Evaluate a form and split A by degree."""
    n, channels = operands[0].shape[0], operands[2].shape[-1]
    A = (n, sum(2 * p.l3 + 1 for p in paths), channels)
    shapes = (*(x.shape for x in operands), A)
    A = form([x[None] for x in operands], index, shapes, tuple(tuple(p) for p in paths))[0]
    out, row = [], 0
    for l in range(max(p.l3 for p in paths) + 1):
        count = sum(p.l3 == l for p in paths)
        size = count * (2 * l + 1)
        out.append(A[:, row : row + size].reshape(n, count, 2 * l + 1, channels))
        row += size
    return out


def available(channels: int, dtype: npt.DTypeLike) -> bool:
    """Whether a CPU kernel for this shape can be built: wanted, with a compiler, and channels that fill a register."""
    return np.dtype(dtype).name in TYPES and build.wanted() and _register_bytes(channels, dtype) is not None


def _xla(
    slot: int, operands: Sequence[jax.Array], index: Sequence[Array], shapes: Sequence[tuple], paths: Sequence
) -> jax.Array:
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
        C = couplings.clebsch_gordan(l1, l2, l3).astype(out.dtype)
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
        out = jnp.take(out.reshape(batch, n * k, *shape[2:]), reverse, axis=1, mode="clip")
        out = out.reshape(batch, shapes[2][0], -1, *shape[2:]).sum(2)
    return out


def _table_xla(
    slot: int, operands: Sequence[jax.Array], index: Sequence[Array], shapes: Sequence[tuple], paths: Sequence
) -> jax.Array:
    """Variant `slot` of the form with a table: `_xla` after R is made, or before its derivative is taken apart."""
    x = dict(zip([s for s in range(5) if s != slot], operands, strict=True))
    *index, first = index
    inner = (shapes[0][:2] + shapes[3][1:], shapes[1], shapes[2], shapes[4])
    rest = [x[s] for s in (1, 2, 4) if s != slot]
    batch = max(a.shape[0] for a in operands)
    if slot in (1, 2, 4):
        R = jax.vmap(lambda phi, W: radial_from_table(phi, first, W))(*_alike(x[0], x[3]))
        return _xla({1: 1, 2: 2, 4: 3}[slot], [R, *rest], index, inner, paths)

    def project(dR: jax.Array, other: jax.Array) -> jax.Array:
        def make(a: jax.Array) -> jax.Array:
            return radial_from_table(*((a, first, other) if slot == 0 else (other, first, a)))

        return jax.linear_transpose(make, jax.ShapeDtypeStruct(shapes[slot], dR.dtype))(dR)[0]

    dR = jnp.broadcast_to(_xla(0, rest, index, inner, paths), (batch, *inner[0]))
    return jax.vmap(project)(*_alike(dR, x[3 - slot]))


def _alike(a: jax.Array, b: jax.Array) -> Iterator[jax.Array]:
    batch = max(a.shape[0], b.shape[0])
    return (jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (a, b))


def _cpu(
    names: str,
    slots: Sequence[int],
    operands: dict[int, jax.Array],
    index: Sequence[Array],
    shapes: Sequence[tuple],
    paths: Sequence,
) -> list[jax.Array] | None:
    """Several variants by one call of the kernel; None where it cannot be had."""
    dtype = next(iter(operands.values())).dtype
    kept = "".join(names[s] for s in slots)
    shared = "W" not in names or operands.get(names.index("W"), index[0][None]).shape[0] == 1
    name = target(paths, shapes[0][-1] if "W" in names else 0, shapes[-1][-1], dtype.name)
    if name is None or "W" in kept or not shared or any(a.dtype != jnp.int32 for a in index):
        return None

    def call(slots: Sequence[int]) -> list[jax.Array]:
        present = [s for s in range(len(names)) if s in operands and (len(slots) > 1 or s != slots[0])]
        batch = max(operands[s].shape[0] for s in present)
        n, k = shapes[0][:2]
        program = jax.ffi.ffi_call(name, [jax.ShapeDtypeStruct((batch, *shapes[s]), dtype) for s in slots])
        sizes = {"N": np.int64(n), "K": np.int64(k), "M": np.int64(shapes[2][0])}
        letters = {"present": "".join(names[s] for s in present), "outputs": "".join(names[s] for s in slots)}
        return list(program(*(operands[s] for s in present), *index, **sizes, **letters))

    together = kept in ("A", "R", "Y", "h", "RY", "RYh")
    return call(slots) if together else [out for s in slots for out in call([s])]


@cache
def target(paths: Sequence, terms: int, channels: int, dtype: str) -> str | None:
    """Compile and register the kernel for these paths, `terms` rows of a table (0: R is an array); None: no kernel."""
    size = _register_bytes(channels, dtype) if dtype in TYPES else None
    if size is None:
        return None
    return build.target("convolution", source(paths, terms, channels=channels, scalar=TYPES[dtype], size=size))


def _register_bytes(channels: int, dtype: npt.DTypeLike) -> int | None:
    return build.vector_bytes(channels, np.dtype(dtype).itemsize)


def source(paths: Sequence, terms: int, *, channels: int, scalar: str, size: int) -> str:
    """C++ text of the kernel for these paths, `terms` rows of a table (0: R is an array): constants, convolution.cc."""
    rows = entries = 0
    tables = []
    for i, (l1, l2, l3) in enumerate(paths):
        C = couplings.clebsch_gordan(l1, l2, l3)
        values = ", ".join(f"{{{', '.join('{' + ', '.join(map(_number, b)) + '}' for b in a)}}}" for a in C)
        coupled = ", ".join(f"{{{', '.join(str(int(x)) for x in row)}}}" for row in np.abs(C).max(1) > couplings.ZERO)
        members = (
            f"int l1 = {l1}, l2 = {l2}, l3 = {l3}, row = {rows}, b = {entries}",
            f"double c[{2 * l1 + 1}][{2 * l2 + 1}][{2 * l3 + 1}] = {{{values}}}",
            f"bool coupled[{2 * l1 + 1}][{2 * l3 + 1}] = {{{coupled}}}",
        )
        tables.append(f"template <> struct Path<{i}> {{ {' '.join(f'static constexpr {m};' for m in members)} }};")
        rows += 2 * l3 + 1
        entries += (2 * l1 + 1) * (2 * l3 + 1)
    totals = {
        "C": channels,
        "TERMS": terms,
        "NUM_PATHS": len(paths),
        "NUM_ROWS": rows,
        "NUM_B": entries,
        "NUM_H": (max(l1 for l1, _, _ in paths) + 1) ** 2,
        "NUM_Y": (max(l2 for _, l2, _ in paths) + 1) ** 2,
        "WIDE": 4 if size == 64 else 2,  # registers of channels per row of A: small and large l3
        "NARROW": 2 if size == 64 else 1,
    }
    head = [f"using Real = {scalar};", f"#define BYTES {size}", "template <int I> struct Path;"]
    head += [f"constexpr int {name} = {value};" for name, value in totals.items()]
    return "\n".join([*head, *tables, (Path(__file__).parent / "convolution.cc").read_text()])


def _number(x: float) -> str:
    return repr(float(x)) if abs(x) > couplings.ZERO else "0"


_neighbour_sum = multilinear.make(multilinear.Form("neighbour_sum", 4, _xla, partial(_cpu, NAMES), gpu.neighbour_sum))
_table_sum = multilinear.make(
    multilinear.Form("table_sum", 5, _table_xla, partial(_cpu, TABLE_NAMES), lambda *args: None)
)
