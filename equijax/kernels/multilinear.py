"""A multilinear form as a family of JAX primitives that is closed under differentiation.

Phi(x_0, ..., x_{m-1}; index) is a number, linear in each of its m operands. Leaving one operand out gives the partial
derivative with respect to it: "variant s" maps the other m - 1 operands to an array of the shape of x_s. Each variant
is linear in each of its operands; its JVP is a sum of the same variant, its transpose is another variant: derivatives
of any order and mode need nothing else. Two sums of variants are primitives of their own because a kernel can share
work between their terms, and because they are all that first derivatives need:

    push(t; x) = sum_s Phi(.., t_s, ..)    the JVP of the last variant (the value)
    pull(y; x) = (d Phi(x, y) / d x_s)_s   its transpose

Every operand has a leading batch axis of size B or 1, which is all that `vmap` has to widen.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from equijax.graph.fields import Array


class Form(NamedTuple):
    """What distinguishes one multilinear form from another. Operands and outputs have the batch axis.

    `xla(slot, operands, index, shapes, static)` is a variant in plain JAX, vectorised over the batch;
    `cpu(slots, operands, index, shapes, static)` the list of several variants by one kernel call, operands
    {slot: array}, or None where there is no kernel for this case; `gpu` the same on NVIDIA GPUs.
    """

    name: str
    slots: int  # m
    xla: Callable
    cpu: Callable
    gpu: Callable


class Family(NamedTuple):
    """A form and its primitives.

    Arguments of a variant: m - 1 operands; of push: one tangent per slot of `slots`, then m - 1 operands; of pull: the
    cotangent, then m - 1 operands; each followed by the index arrays.
    """

    form: Form
    variant_p: Primitive
    push_p: Primitive
    pull_p: Primitive

    @property
    def last(self) -> int:
        """The slot of the value, and the number of its operands, m - 1."""
        return self.form.slots - 1

    def variant(self, slot: int, operands: Sequence[jax.Array], index: Sequence[Array], **static: Any) -> jax.Array:
        """d Phi / d x_slot."""
        return self.variant_p.bind(*operands, *index, slots=(slot,), **static)

    def push(
        self, slots: Sequence[int], t: Sequence[jax.Array], x: list[Any], index: Sequence[Array], **static: Any
    ) -> jax.Array:
        """sum_s Phi(.., t_s, ..)"""
        return self.push_p.bind(*t, *x, *index, slots=tuple(slots), **static)

    def pull(
        self, slots: Sequence[int], y: jax.Array, x: list[Any], index: Sequence[Array], **static: Any
    ) -> list[jax.Array]:
        """(d Phi(x, y) / d x_s)_s"""
        return self.pull_p.bind(y, *x, *index, slots=tuple(slots), **static)


def make(form: Form) -> Callable:
    """The value of a form as a differentiable function.

    Returns:
      f(operands, index, shapes, static, slot=m - 1) -> variant `slot`; operands: the other slots' arrays in order, each
      [B or 1, ...]; index: integer arrays; shapes: tuple of all m shapes without batch axis; static: hashable.
    """
    family = Family(form, *(Primitive(f"{form.name}_{kind}") for kind in ("variant", "push", "pull")))
    family.pull_p.multiple_results = True
    kernels = {"cpu": form.cpu, "cuda": form.gpu}
    table = (
        (family.variant_p, _variant_xla, _variant_kernel, _variant_jvp, _variant_transpose),
        (family.push_p, _push_any, _push_any, _push_jvp, _push_transpose),
        (family.pull_p, _pull_xla, _pull_kernel, _pull_jvp, _pull_transpose),
    )
    for primitive, xla, kernel, *rules in table:
        values = {None: partial(xla, family)} | {p: partial(kernel, family, kernel=k) for p, k in kernels.items()}
        register(primitive, values, *(partial(rule, family) for rule in (*rules, _abstract)))
    return lambda operands, index, shapes, static, slot=family.last: family.variant(
        slot, operands, index, shapes=shapes, static=static
    )


# Values.


def _variant_xla(
    family: Family, *args: Any, slots: tuple[int, ...], shapes: tuple[tuple[int, ...], ...], static: Any
) -> jax.Array:
    return family.form.xla(slots[0], args[: family.last], args[family.last :], shapes, static)


def _variant_kernel(
    family: Family, *args: Any, kernel: Callable, slots: tuple[int, ...], shapes: tuple, static: Any
) -> jax.Array:
    others = [s for s in range(family.form.slots) if s != slots[0]]
    operands = dict(zip(others, args, strict=False))
    out = kernel(slots, operands, args[family.last :], shapes, static)
    return _variant_xla(family, *args, slots=slots, shapes=shapes, static=static) if out is None else out[0]


def _push_any(family: Family, *args: Any, slots: tuple[int, ...], kernel: Any = None, **static: Any) -> Any:
    t, x, index = _split(args, len(slots), second=family.last)
    return sum(
        family.variant(family.last, _set(x, s, value=ts), index, **static) for s, ts in zip(slots, t, strict=True)
    )


def _pull_xla(family: Family, *args: Any, slots: tuple[int, ...], **static: Any) -> list[jax.Array]:
    y, x, index = _split(args, 1, second=family.last)
    return [family.variant(s, _drop(x, s) + y, index, **static) for s in slots]


def _pull_kernel(
    family: Family, *args: Any, kernel: Callable, slots: tuple[int, ...], shapes: tuple, static: Any
) -> list[jax.Array]:
    y, x, index = _split(args, 1, second=family.last)
    out = kernel(slots, dict(enumerate(x + y)), index, shapes, static)
    return _pull_xla(family, *args, slots=slots, shapes=shapes, static=static) if out is None else out


def _abstract(
    family: Family,
    *args: Any,
    shapes: tuple[tuple[int, ...], ...],
    slots: tuple[int, ...],
    static: Any,
    primitive: Primitive,
) -> Any:
    batch = max(a.shape[0] for a in args if jnp.issubdtype(a.dtype, jnp.floating))
    kept = (family.last,) if primitive is family.push_p else slots
    outs = [jax.core.ShapedArray((batch, *shapes[s]), args[0].dtype) for s in kept]
    return outs if primitive is family.pull_p else outs[0]


# Derivatives.


def _variant_jvp(
    family: Family, primals: Sequence[Any], tangents: Sequence[Any], slots: tuple[int, ...], **static: Any
) -> tuple:
    (slot,) = slots
    x, index = list(primals[: family.last]), primals[family.last :]
    moving = [i for i in range(family.last) if type(tangents[i]) is not ad.Zero]
    out = family.variant(slot, x, index, **static)
    if not moving:
        return out, ad.Zero(jax.core.get_aval(out))
    if slot == family.last:
        return out, family.push(moving, [tangents[i] for i in moving], x, index, **static)
    return out, sum(family.variant(slot, _set(x, i, value=tangents[i]), index, **static) for i in moving)


def _push_jvp(
    family: Family, primals: Sequence[Any], tangents: Sequence[Any], slots: tuple[int, ...], **static: Any
) -> tuple:
    t, x, index = _split(primals, len(slots), second=family.last)
    dt, dx, _ = _split(tangents, len(slots), second=family.last)
    moving = [i for i, d in enumerate(dt) if type(d) is not ad.Zero]
    terms = []
    if moving:
        terms.append(family.push([slots[i] for i in moving], [dt[i] for i in moving], x, index, **static))
    for s, ts in zip(slots, t, strict=True):
        for j, d in enumerate(dx):
            if j != s and type(d) is not ad.Zero:
                terms.append(family.variant(family.last, _set(_set(x, s, value=ts), j, value=d), index, **static))
    out = family.push(slots, t, x, index, **static)
    return out, sum(terms) if terms else ad.Zero(jax.core.get_aval(out))


def _pull_jvp(
    family: Family, primals: Sequence[Any], tangents: Sequence[Any], slots: tuple[int, ...], **static: Any
) -> tuple:
    (y,), x, index = _split(primals, 1, second=family.last)
    (dy,), dx, _ = _split(tangents, 1, second=family.last)
    outs = family.pull(slots, y, x, index, **static)
    totals: list[Any]
    if type(dy) is ad.Zero:
        totals = [ad.Zero(jax.core.get_aval(out)) for out in outs]
    else:
        totals = family.pull(slots, dy, x, index, **static)
    for i, s in enumerate(slots):
        for j, d in enumerate(dx):
            if j != s and type(d) is not ad.Zero:
                term = family.variant(s, [*_drop(_set(x, j, value=d), s), y], index, **static)
                totals[i] = term if isinstance(totals[i], ad.Zero) else totals[i] + term
    return outs, totals


def _variant_transpose(family: Family, ct: Any, *args: Any, slots: tuple[int, ...], **static: Any) -> list:
    (slot,) = slots
    linear = [i for i, a in enumerate(args[: family.last]) if ad.is_undefined_primal(a)]
    if len(linear) != 1:
        raise RuntimeError(f"{family.form.name}: linear in one operand at a time, not in operands {linear}")
    (i,) = linear
    outs: list = [None] * len(args)
    if type(ct) is ad.Zero:
        outs[i] = ad.Zero(args[i].aval)
        return outs
    others = [s for s in range(family.form.slots) if s != slot]
    operands = dict(zip(others, args, strict=False)) | {slot: ct}
    target = others[i]
    operands = [operands[s] for s in range(family.form.slots) if s != target]
    outs[i] = unbatch(family.variant(target, operands, args[family.last :], **static), args[i].aval)
    return outs


def _push_transpose(family: Family, ct: Any, *args: Any, slots: tuple[int, ...], **static: Any) -> list:
    t, x, index = _split(args, len(slots), second=family.last)
    outs: list = [None] * len(args)
    linear = [i for i, ts in enumerate(t) if ad.is_undefined_primal(ts)]
    if type(ct) is ad.Zero:
        grads = [ad.Zero(t[i].aval) for i in linear]
    else:
        grads = family.pull([slots[i] for i in linear], ct, x, index, **static)
        grads = [unbatch(g, t[i].aval) for g, i in zip(grads, linear, strict=True)]
    for i, g in zip(linear, grads, strict=True):
        outs[i] = g
    return outs


def _pull_transpose(family: Family, cts: Sequence[Any], *args: Any, slots: tuple[int, ...], **static: Any) -> list:
    y, x, index = _split(args, 1, second=family.last)
    outs: list = [None] * len(args)
    live = [(s, c) for s, c in zip(slots, cts, strict=True) if type(c) is not ad.Zero]
    if not live:
        outs[0] = ad.Zero(y[0].aval)
        return outs
    pushed = family.push([s for s, _ in live], [c for _, c in live], x, index, **static)
    outs[0] = unbatch(pushed, y[0].aval)
    return outs


def register(
    primitive: Primitive, values: dict[str | None, Callable], jvp: Callable, transpose: Callable, abstract: Callable
) -> None:
    """Give a primitive with the static parameters slots, shapes, static its value on each platform ("cpu", "cuda",
    None: on others), its derivatives, and batching over the leading axis."""
    many = primitive.multiple_results
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("slots", "shapes", "static")))
    primitive.def_abstract_eval(lambda *args, **kw: abstract(*args, primitive=primitive, **kw))
    for platform, value in values.items():
        mlir.register_lowering(primitive, mlir.lower_fun(value, multiple_results=many), platform=platform)
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = lambda args, dims, **kw: _batch(primitive, args, dims=dims, **kw)


def _batch(primitive: Primitive, args: Sequence[Any], *, dims: Sequence[int | None], **static: Any) -> tuple:
    """Merge the mapped axis into the leading one; a batch of index arrays (different graphs) is a loop over graphs."""
    mapped = [d is not None for d in dims]
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    args = [a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(args, dims, strict=True)]
    floating = [jnp.issubdtype(a.dtype, jnp.floating) for a in args]
    if any(m and not f for m, f in zip(mapped, floating, strict=True)):
        full = [a if m else jnp.broadcast_to(a, (size, *a.shape)) for a, m in zip(args, mapped, strict=True)]
        out = jax.lax.map(lambda row: primitive.bind(*row, **static), full)
        return (out, [0] * len(out)) if primitive.multiple_results else (out, 0)
    inner = max(a.shape[1] if m else a.shape[0] for a, m, f in zip(args, mapped, floating, strict=True) if f)
    merged = []
    for a, m, f in zip(args, mapped, floating, strict=True):
        if f and (m or inner > 1) and not (not m and a.shape[0] == 1):
            a = a if m else a[None]
            a = jnp.broadcast_to(a, (size, inner, *a.shape[2:])).reshape(size * inner, *a.shape[2:])
        merged.append(a)
    out = primitive.bind(*merged, **static)
    split = jax.tree.map(lambda o: o.reshape(size, inner, *o.shape[1:]), out)
    return (split, [0] * len(split)) if primitive.multiple_results else (split, 0)


def _split(args: Sequence[Any], first: int, *, second: int) -> tuple[list, list, Sequence]:
    return list(args[:first]), list(args[first : first + second]), args[first + second :]


def _set(x: list[Any], i: int, *, value: Any) -> list:
    return [*x[:i], value, *x[i + 1 :]]


def _drop(x: list[Any], i: int) -> list:
    return [*x[:i], *x[i + 1 :]]


def unbatch(x: Any, aval: Any) -> jax.Array:
    """Sum over the batch where the operand was shared by all of it."""
    return x.sum(0, keepdims=True) if aval.shape[0] == 1 and x.shape[0] != 1 else x
