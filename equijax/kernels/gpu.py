"""Pallas kernels for NVIDIA GPUs: the neighbour sum and the symmetric contraction's polynomial.

One program works on one atom and a block of channels, a channel or a few a thread. It reads the atom's edges one after
another, gathers the sender's features itself and keeps all sums in registers, as the C++ kernels for CPUs do: messages
never exist in memory. Operands and derivative rules are those of `multilinear` and `polynomial`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from equijax import couplings
from equijax.errors import needed
from equijax.kernels import build, monomials

PROGRAMS = 2048  # fewer atoms than this: their edges are split among several programs each
CHANNELS = (128, 64, 32, 16)  # in a block: the first that divides the model's
INTERPRET = False  # run kernels in JAX on any device: for tests


def block(channels: int) -> int | None:
    """Channels of one program; None where the kernels do not fit the model's."""
    return next((c for c in CHANNELS if channels % c == 0), None)


def available(channels: int) -> bool:
    """Whether kernels are wanted, this process computes on an NVIDIA GPU, and they fit the model."""
    cuda = jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version
    return cuda and build.mode() != "off" and block(channels) is not None


def warps(size: int, itemsize: int) -> int:
    """Of a program: four channels a thread in float32, two in float64."""
    return max(1, size * itemsize // 512)


def neighbour_sum(
    slots: Sequence[int],
    operands: dict[int, jax.Array],
    index: Sequence[jax.Array],
    shapes: Sequence[tuple],
    paths: Any,
) -> list[jax.Array] | None:
    """Variants of the form in `convolution` (slots 0 to 3 are R, Y, h, A); None where the kernel does not fit.

    Args:
      slots: which operands' derivatives are wanted, (3,) for the value, else some of 0, 1, 2.
      operands: arrays [B or 1, ...] of the other slots, of all slots but A's where several are wanted.
      index: senders and reverse, [N*K].
      shapes: of all slots, without batch axis.
      paths: couplings sorted by l3.
    """
    (n, k, _, channels), (m, components, _) = shapes[0], shapes[2]
    size = block(channels)
    if size is None:
        return None
    parts = min(k, max(1, -(-PROGRAMS // (n * channels // size))))
    step = -(-k // parts)
    parts = -(-k // step)
    kept = [s for s in range(4) if s in operands and (len(slots) > 1 or s != slots[0])]
    arrays = [operands[s] for s in kept]
    batch, dtype = max(a.shape[0] for a in arrays), arrays[0].dtype
    blocks = channels // size
    out = {
        0: (batch, *shapes[0]),
        1: (blocks, batch, *shapes[1]),
        2: (batch, n * k, components, channels),
        3: (parts, batch, *shapes[3]),
    }
    kernel = (
        _value(paths, k, step=step, size=size)
        if tuple(slots) == (3,)
        else _pull(paths, k, step=step, size=size, kept=kept, slots=tuple(slots))
    )
    found = pl.pallas_call(
        kernel,
        [jax.ShapeDtypeStruct(out[s], dtype) for s in slots],
        grid=(n, parts * blocks, batch),
        compiler_params=triton.CompilerParams(num_warps=warps(size, dtype.itemsize), num_stages=1),
        interpret=INTERPRET,
    )(jnp.clip(index[0], 0, m - 1), *arrays)

    def finish(slot: int, x: jax.Array) -> jax.Array:
        if slot in (1, 3):
            return x.sum(0) if x.shape[0] > 1 else x[0]
        if slot == 0:
            return x
        received = jnp.take(x, index[1], axis=1, mode="clip")
        return received.reshape(batch, m, n * k // m, components, channels).sum(2)

    return [finish(s, x) for s, x in zip(slots, found, strict=True)]


def _place(step: int, size: int, *, k: int) -> tuple:
    """(atom, batch, part of its edges, block of channels, slice of channels, first and last edge) of a program."""
    parts = -(-k // step)
    n, j, b = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    part, channel = j % parts, j // parts
    first = part * step
    return n, b, part, channel, pl.ds(channel * size, size), first, jnp.minimum(first + step, k)


def _at(ref: Any, b: Any) -> Any:
    """Row of the batch axis: an operand may be shared by the batch."""
    return b if ref.shape[0] > 1 else 0


def _terms(path: Sequence[int]) -> list[tuple[int, int, int, float]]:
    """(m1, m2, m3, C) of the entries that are not zero, m1 and m2 counted among all components."""
    l1, l2, l3 = path
    C = couplings.clebsch_gordan(l1, l2, l3)
    found = np.argwhere(np.abs(C) > couplings.ZERO)
    return [(l1 * l1 + a, l2 * l2 + b, c, float(C[a, b, c])) for a, b, c in found.tolist()]


def _couplings(path: Sequence[int], y: list) -> dict[tuple[int, int], Any]:
    """B[m1, m3] = sum_m2 C y[m2] of one path: scalars."""
    B: dict = {}
    for m1, m2, m3, c in _terms(path):
        B[m1, m3] = B[m1, m3] + c * y[m2] if (m1, m3) in B else c * y[m2]
    return B


def _value(paths: Sequence, k: int, *, step: int, size: int) -> Callable:
    rows = sum(2 * p[2] + 1 for p in paths)

    def kernel(senders: Any, R: Any, Y: Any, h: Any, A: Any) -> None:
        n, b, part, _, c, first, last = _place(step, size, k=k)

        def edge(e: Any, before: tuple) -> tuple:
            s = senders[n * k + e]
            x = [h[_at(h, b), s, i, c] for i in range(h.shape[2])]
            y = [Y[_at(Y, b), n, e, i] for i in range(Y.shape[3])]
            sums, row = list(before), 0
            for i, path in enumerate(paths):
                r = R[_at(R, b), n, e, i, c]
                total: dict = {}
                for (m1, m3), B in _couplings(path, y).items():
                    total[m3] = total[m3] + B * x[m1] if m3 in total else B * x[m1]
                for m3, t in total.items():
                    sums[row + m3] += r * t
                row += 2 * path[2] + 1
            return tuple(sums)

        zero = jnp.zeros((size,), R.dtype)
        for row, total in enumerate(jax.lax.fori_loop(first, last, edge, (zero,) * rows)):
            A[part, b, n, row, c] = total

    return kernel


def _pull(paths: Sequence, k: int, *, step: int, size: int, kept: list[int], slots: tuple[int, ...]) -> Callable:
    def kernel(senders: Any, *refs: Any) -> None:
        given = dict(zip(kept, refs, strict=False))
        out = dict(zip(slots, refs[len(kept) :], strict=True))
        (R, Y, h), A = (given.get(s) for s in range(3)), given[3]
        n, b, _, channel, c, first, last = _place(step, size, k=k)
        zero = jnp.zeros((size,), refs[0].dtype)

        def edge(e: Any, carry: Any) -> Any:
            s = senders[n * k + e]
            x = {} if h is None else {i: h[_at(h, b), s, i, c] for i in range(h.shape[2])}
            y = None if Y is None else [Y[_at(Y, b), n, e, i] for i in range(Y.shape[3])]
            dx, dy, row = {}, {}, 0
            for i, path in enumerate(paths):
                a = [A[_at(A, b), n, row + m3, c] for m3 in range(2 * path[2] + 1)]
                r = None if R is None else R[_at(R, b), n, e, i, c]
                if y is not None and (0 in out or 2 in out):
                    g: dict = {}
                    for (m1, m3), B in _couplings(path, y).items():
                        g[m1] = g[m1] + B * a[m3] if m1 in g else B * a[m3]
                    if 0 in out:
                        out[0][b, n, e, i, c] = sum((x[m1] * t for m1, t in g.items()), zero)
                    if 2 in out:
                        for m1, t in g.items():
                            dx[m1] = dx[m1] + r * t if m1 in dx else r * t
                if 1 in out:
                    products = {}
                    for m1, m2, m3, value in _terms(path):
                        if (m1, m3) not in products:
                            products[m1, m3] = (r * x[m1]) * a[m3]
                        t = value * products[m1, m3]
                        dy[m2] = dy[m2] + t if m2 in dy else t
                row += 2 * path[2] + 1
            if 2 in out:
                for m1 in range(out[2].shape[2]):
                    out[2][b, n * k + e, m1, c] = dx.get(m1, zero)
            if 1 in out:
                for m2 in range(out[1].shape[4]):
                    out[1][channel, b, n, e, m2] = jnp.sum(dy.get(m2, zero))
            return carry

        jax.lax.fori_loop(first, last, edge, jnp.int32(0))

    return kernel


def polynomial(
    given: dict[str, list[jax.Array]], slot: jax.Array, *, shape: tuple, table: tuple[np.ndarray, np.ndarray]
) -> jax.Array:
    """Values or gradients of the form in `equijax.kernels.polynomial`.

    A program makes one row of the output of one atom. Monomials are read from a list: unrolled, the hundreds there are
    take minutes to compile.

    Args:
      given: operands by role: "x" and directions "t" with a row for the constant factor, "w", and "O" for a gradient.
      slot: [N] row of w.
      shape: of the output [B, N, rows, C].
      table: see `monomials.rows`.
    """
    arrays = [a for role in "xwOt" for a in given[role]]
    roles = "".join(role * len(given[role]) for role in "xwOt")
    batch, n, rows, channels = shape
    size = needed(block(channels), f"no block of {channels} channels fits")
    return pl.pallas_call(
        partial(_monomials, roles, size),
        jax.ShapeDtypeStruct(shape, arrays[0].dtype),
        grid=(n, rows * (channels // size), batch),
        compiler_params=triton.CompilerParams(num_warps=warps(size, arrays[0].dtype.itemsize), num_stages=1),
        interpret=INTERPRET,
    )(*table, jnp.clip(slot, 0, given["w"][0].shape[1] - 1), *arrays)


def _monomials(roles: str, size: int, bounds: Any, entries: Any, slot: Any, *refs: Any) -> None:
    *given, out = refs
    rows = out.shape[2]
    n, j, b = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    row, c = j % rows, pl.ds(j // rows * size, size)
    read: dict = {role: [ref for r, ref in zip(roles, given, strict=True) if r == role] for role in "xwOt"}
    (x,), (w,), directions = read["x"], read["w"], read["t"]
    species = slot[n] if w.shape[1] > 1 else 0

    def add(i: Any, total: Any) -> Any:
        value = w[_at(w, b), species, entries[i, 0], c]
        for ref in read["O"]:
            value = value * ref[_at(ref, b), n, entries[i, 1], c]
        factors = [entries[i, 2 + d] for d in range(entries.shape[1] - 2)]
        term = monomials.derivative(*([ref[_at(ref, b), n, f, c] for f in factors] for ref in (x, *directions)))
        return total if term is None else total + value * term

    zero = jnp.zeros((size,), out.dtype)
    out[b, n, row, c] = jax.lax.fori_loop(bounds[row], bounds[row + 1], add, zero)
