"""The polynomial of the symmetric contraction as a JAX primitive with a CPU kernel, closed under differentiation.

    S_k(w, x, O, t_1..t_k) = sum_{n m c} O[n, m, c] (D^k P_m)(x[n, :, c])[t_1[n, :, c], .., t_k[n, :, c]]

is linear in the coefficients w, in O and in every direction t. The primitive is S_k with one linear operand left out,
"w", "O" or "t", which is then the output: for k = 0 without O the value, for k = 1 without a t the gradient times O.
Differentiating by x adds a direction, by a linear operand replaces it, and transposing swaps an operand with the
output, so derivatives of any order and mode stay in the family. The kernel multiplies each monomial out in registers,
where XLA writes [N, Q, C] products to memory.

Every operand has a leading batch axis of size B or 1, which is all that `vmap` has to widen.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend.core import Primitive
from jax.interpreters import ad

from equijax.graph.fields import Array
from equijax.kernels import build, gpu, monomials, multilinear
from equijax.kernels.monomials import Terms

TYPES = {"float32": "float", "float64": "double"}


def plain(w: jax.Array, x: jax.Array, slot: Array, table: Terms) -> jax.Array:
    """P_m(w[slot_n, :, c], x[n, :, c]) in XLA.

    Args:
      w: [U, Q, C] coefficients of each species.
      x: [N, m, C] variables.
      slot: [N] int32 species of each node; a single species is not copied N times, whatever its slot.

    Returns:
      [N, M, C]
    """
    factors, component = table.arrays()
    order = np.argsort(component, kind="stable")
    padded = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    products = w[:, order] if w.shape[0] == 1 else jnp.take(w[:, order], slot, axis=0, mode="clip")
    for f in factors[order].T:
        products = products * padded[:, f]
    bounds = np.searchsorted(component[order], np.arange(table.outputs + 1))
    return jnp.stack([products[:, a:b].sum(1) for a, b in zip(bounds, bounds[1:], strict=False)], axis=1)


def evaluate(w: Array, x: jax.Array, slot: Array, table: Terms) -> jax.Array:
    """`plain` by the CPU kernel where there is one."""
    shapes = (w.shape, (x.shape[0], table.outputs, x.shape[2]), x.shape)
    return _polynomial.bind(x[None], w[None], slot.astype(jnp.int32), slots="O", shapes=shapes, static=table)[0]


def available(channels: int, dtype: npt.DTypeLike) -> bool:
    """Whether a CPU kernel for this shape can be built: wanted, with a compiler, and channels that fill a register."""
    return np.dtype(dtype).name in TYPES and build.wanted() and _register_bytes(channels, dtype) is not None


# Arguments of the primitive: x, the linear operands in the order w, O, t.. without the output, slot.


def _roles(output: str, args: Sequence) -> str:
    fixed = "x" + "wO".replace(output, "")
    return fixed + "t" * (len(args) - 1 - len(fixed))


def _xla(*args: jax.Array, slots: str, shapes: tuple, static: Terms) -> jax.Array:
    if slots == "w":
        return _of_coefficients(*args, shape=shapes[0], static=static)
    *arrays, slot = args
    given = _padded(arrays, _roles(slots, args))
    (x,), (w,), *linear = (given[role] for role in "xwOt")
    bounds, entries = monomials.rows(static, gradient=slots == "t")
    value = (w if w.shape[1] == 1 else jnp.take(w, slot, axis=1, mode="clip"))[:, :, entries[:, 0]]
    if linear[0]:
        value = value * linear[0][0][:, :, entries[:, 1]]
    term = monomials.derivative(*([a[:, :, f] for f in entries[:, 2:].T] for a in (x, *linear[1])))
    out = jnp.zeros_like(value) if term is None else value * term
    # sorted by row: sums of slices, where the transpose of a gather would be a scatter
    out = jnp.stack([out[:, :, a:b].sum(2) for a, b in zip(bounds, bounds[1:], strict=False)], axis=2)
    return jnp.broadcast_to(out, _abstract(*args, slots=slots, shapes=shapes).shape)


def _padded(arrays: Sequence[jax.Array], roles: str) -> dict[str, list[jax.Array]]:
    """The operands by role; row m of x and of every direction stands for the factor that is constant."""
    given: dict[str, list] = {role: [] for role in "xwOt"}
    for role, a in zip(roles, arrays, strict=True):
        row = jnp.full_like(a[:, :, :1], float(role == "x"))
        given[role].append(jnp.concatenate([a, row], axis=2) if role in "xt" else a)
    return given


def _of_coefficients(*args: jax.Array, shape: tuple, static: Terms) -> jax.Array:
    """The form's derivative by w."""
    x, *linear, slot = args

    def one(x: jax.Array, O: jax.Array, *directions: jax.Array) -> jax.Array:
        def along(w: jax.Array) -> jax.Array:
            f = partial(plain, w, slot=slot, table=static)
            for t in directions:
                f = partial(_derivative, f, t)
            return f(x)

        return jax.vjp(along, jnp.zeros(shape, x.dtype))[1](O)[0]

    batch = max(a.shape[0] for a in args[:-1])
    return jax.vmap(one)(*(jnp.broadcast_to(a, (batch, *a.shape[1:])) for a in (x, *linear)))


def _derivative(f: Callable, t: jax.Array, x: jax.Array) -> jax.Array:
    """That of f at x along t."""
    return jax.jvp(f, (x,), (t,))[1]


def _cpu(*args: jax.Array, slots: str, shapes: tuple, static: Terms) -> jax.Array:
    x = args[0]
    name = target(static.degree, static.variables, x.shape[-1], x.dtype.name)
    if name is None:
        return _xla(*args, slots=slots, shapes=shapes, static=static)
    factors, component = static.arrays()
    starts = np.flatnonzero(np.diff(component, prepend=-1))
    runs = np.stack([component[starts], starts, np.append(starts[1:], len(component))], axis=1).astype(np.int32)
    out = _abstract(*args, slots=slots, shapes=shapes)
    call = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(out.shape, out.dtype))
    return call(*args, roles=_roles(slots, args), output=slots, factors=factors.ravel(), runs=runs.ravel())


def _gpu(*args: jax.Array, slots: str, shapes: tuple, static: Terms) -> jax.Array:
    *arrays, slot = args
    if slots == "w" or not static.pallas:
        return _xla(*args, slots=slots, shapes=shapes, static=static)
    shape = _abstract(*args, slots=slots, shapes=shapes).shape
    return gpu.polynomial(
        _padded(arrays, _roles(slots, args)), slot, shape=shape, table=monomials.rows(static, slots == "t")
    )


@cache
def target(degree: int, variables: int, channels: int, dtype: str) -> str | None:
    """Compile and register the kernel for this number of factors and of variables; None: no kernel."""
    size = _register_bytes(channels, dtype) if dtype in TYPES else None
    if size is None:
        return None
    return build.target("polynomial", source(degree, variables, scalar=TYPES[dtype], size=size))


def source(degree: int, variables: int, *, scalar: str, size: int) -> str:
    """C++ text of the kernel: constants, polynomial.cc."""
    head = f"using Real = {scalar};\n#define BYTES {size}\nconstexpr int DEGREE = {degree}, VARIABLES = {variables};"
    return f"{head}\n{(Path(__file__).parent / 'polynomial.cc').read_text()}"


def _register_bytes(channels: int, dtype: npt.DTypeLike) -> int | None:
    return build.vector_bytes(channels, np.dtype(dtype).itemsize)


def _jvp(primals: Sequence, tangents: Sequence, slots: str, static: Terms, **kw: Any) -> tuple:
    x, *linear, slot = primals
    out = _polynomial.bind(*primals, slots=slots, static=static, **kw)
    calls = [[*linear[:i], t, *linear[i + 1 :]] for i, t in enumerate(tangents[1:-1]) if type(t) is not ad.Zero]
    order = _roles(slots, primals).count("t") + (slots == "t")
    if type(tangents[0]) is not ad.Zero and order < static.degree:
        calls.append([*linear, tangents[0]])
    parts = [_polynomial.bind(x, *operands, slot, slots=slots, static=static, **kw) for operands in calls]
    return out, sum(parts) if parts else ad.Zero(jax.core.get_aval(out))


def _transpose(ct: Any, *args: Any, slots: str, **kw: Any) -> list:
    outs: list = [None] * len(args)
    linear = [i for i, a in enumerate(args) if ad.is_undefined_primal(a)]
    if len(linear) != 1 or linear[0] == 0:
        raise RuntimeError(f"polynomial: linear in one of w, O, t at a time, not in operands {linear}")
    (i,) = linear
    if type(ct) is ad.Zero:
        outs[i] = ad.Zero(args[i].aval)
        return outs
    roles = _roles(slots, args)
    operands = [(role, a) for j, (role, a) in enumerate(zip(roles, args, strict=False)) if j != i] + [(slots, ct)]
    operands = [a for kind in "xwOt" for role, a in operands if role == kind]
    outs[i] = multilinear.unbatch(_polynomial.bind(*operands, args[-1], slots=roles[i], **kw), args[i].aval)
    return outs


def _abstract(*args: Any, slots: str, shapes: tuple, **kw: Any) -> jax.core.ShapedArray:
    batch = max(a.shape[0] for a in args[:-1])
    return jax.core.ShapedArray((batch, *shapes["wOt".index(slots)]), args[0].dtype)


_polynomial = Primitive("symmetric_polynomial")
multilinear.register(_polynomial, {None: _xla, "cpu": _cpu, "cuda": _gpu}, _jvp, _transpose, _abstract)
