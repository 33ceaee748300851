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

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


class Form(NamedTuple):
    """What distinguishes one multilinear form from another. Operands and outputs have the batch axis.

    `xla(slot, operands, index, shapes, static)` is a variant in plain JAX, vectorised over the batch;
    `cpu(slots, operands, index, shapes, static)` the list of several variants by one kernel call, operands
    {slot: array}, or None where there is no kernel for this case.
    """

    name: str
    slots: int  # m
    xla: Callable
    cpu: Callable


def make(form: Form) -> Callable:
    """The value of a form as a differentiable function.

    Returns:
      f(operands, index, shapes, static, slot=m - 1) -> variant `slot`; operands: the other slots' arrays in order, each
      [B or 1, ...]; index: integer arrays; shapes: tuple of all m shapes without batch axis; static: hashable.
    """
    m = form.slots
    variant_p, push_p, pull_p = (Primitive(f"{form.name}_{kind}") for kind in ("variant", "push", "pull"))
    pull_p.multiple_results = True

    def variant(slot, operands, index, **static):
        return variant_p.bind(*operands, *index, slots=(slot,), **static)

    # Values. Arguments: variant (m - 1 operands), push (one tangent per slot, m - 1 operands), pull (cotangent, m - 1
    # operands), each followed by the index arrays.

    def variant_xla(*args, slots, shapes, static):
        return form.xla(slots[0], args[: m - 1], args[m - 1 :], shapes, static)

    def variant_cpu(*args, slots, shapes, static):
        others = [s for s in range(m) if s != slots[0]]
        operands = dict(zip(others, args, strict=False))
        out = form.cpu(slots, operands, args[m - 1 :], shapes, static)
        return variant_xla(*args, slots=slots, shapes=shapes, static=static) if out is None else out[0]

    def push_any(*args, slots, **static):
        t, x, index = _split(args, len(slots), m - 1)
        return sum(variant(m - 1, _set(x, s, ts), index, **static) for s, ts in zip(slots, t, strict=True))

    def pull_xla(*args, slots, **static):
        y, x, index = _split(args, 1, m - 1)
        return [variant(s, _drop(x, s) + y, index, **static) for s in slots]

    def pull_cpu(*args, slots, shapes, static):
        y, x, index = _split(args, 1, m - 1)
        out = form.cpu(slots, dict(enumerate(x + y)), index, shapes, static)
        return pull_xla(*args, slots=slots, shapes=shapes, static=static) if out is None else out

    # Derivatives.

    def variant_jvp(primals, tangents, slots, **static):
        (slot,) = slots
        x, index = list(primals[: m - 1]), primals[m - 1 :]
        moving = [i for i in range(m - 1) if type(tangents[i]) is not ad.Zero]
        out = variant(slot, x, index, **static)
        if not moving:
            return out, ad.Zero(jax.core.get_aval(out))
        if slot == m - 1:
            t = [tangents[i] for i in moving]
            return out, push_p.bind(*t, *x, *index, slots=tuple(moving), **static)
        return out, sum(variant(slot, _set(x, i, tangents[i]), index, **static) for i in moving)

    def push_jvp(primals, tangents, slots, **static):
        t, x, index = _split(primals, len(slots), m - 1)
        dt, dx, _ = _split(tangents, len(slots), m - 1)
        moving = [i for i, d in enumerate(dt) if type(d) is not ad.Zero]
        terms = []
        if moving:
            chosen = tuple(slots[i] for i in moving)
            terms.append(push_p.bind(*(dt[i] for i in moving), *x, *index, slots=chosen, **static))
        for s, ts in zip(slots, t, strict=True):
            for j, d in enumerate(dx):
                if j != s and type(d) is not ad.Zero:
                    terms.append(variant(m - 1, _set(_set(x, s, ts), j, d), index, **static))
        out = push_p.bind(*primals, slots=slots, **static)
        return out, sum(terms) if terms else ad.Zero(jax.core.get_aval(out))

    def pull_jvp(primals, tangents, slots, **static):
        y, x, index = _split(primals, 1, m - 1)
        (dy,), dx, _ = _split(tangents, 1, m - 1)
        outs = pull_p.bind(*primals, slots=slots, **static)
        if type(dy) is ad.Zero:
            totals = [ad.Zero(jax.core.get_aval(out)) for out in outs]
        else:
            totals = pull_p.bind(dy, *x, *index, slots=slots, **static)
        for i, s in enumerate(slots):
            for j, d in enumerate(dx):
                if j != s and type(d) is not ad.Zero:
                    term = variant(s, _drop(_set(x, j, d), s) + y, index, **static)
                    totals[i] = term if type(totals[i]) is ad.Zero else totals[i] + term
        return outs, totals

    def variant_transpose(ct, *args, slots, **static):
        (slot,) = slots
        linear = [i for i, a in enumerate(args[: m - 1]) if ad.is_undefined_primal(a)]
        outs: list = [None] * len(args)
        if len(linear) != 1:
            raise RuntimeError(f"{form.name}: linear in one operand at a time, not in operands {linear}")
        (i,) = linear
        if type(ct) is ad.Zero:
            outs[i] = ad.Zero(args[i].aval)
            return outs
        others = [s for s in range(m) if s != slot]
        operands = dict(zip(others, args, strict=False)) | {slot: ct}
        target = others[i]
        operands = [operands[s] for s in range(m) if s != target]
        outs[i] = unbatch(variant(target, operands, args[m - 1 :], **static), args[i].aval)
        return outs

    def push_transpose(ct, *args, slots, **static):
        t, x, index = _split(args, len(slots), m - 1)
        outs: list = [None] * len(args)
        if type(ct) is ad.Zero:
            grads = [ad.Zero(ts.aval) for ts in t]
        else:
            linear = [i for i, ts in enumerate(t) if ad.is_undefined_primal(ts)]
            chosen = tuple(slots[i] for i in linear)
            grads = pull_p.bind(ct, *x, *index, slots=chosen, **static)
            grads = [unbatch(g, t[i].aval) for g, i in zip(grads, linear, strict=True)]
            outs_t = dict(zip(linear, grads, strict=True))
            grads = [outs_t.get(i) for i in range(len(t))]
        outs[: len(t)] = grads
        return outs

    def pull_transpose(cts, *args, slots, **static):
        y, x, index = _split(args, 1, m - 1)
        outs: list = [None] * len(args)
        live = [(s, c) for s, c in zip(slots, cts, strict=True) if type(c) is not ad.Zero]
        if not live:
            outs[0] = ad.Zero(y[0].aval)
            return outs
        chosen, t = zip(*live, strict=True)
        outs[0] = unbatch(push_p.bind(*t, *x, *index, slots=chosen, **static), y[0].aval)
        return outs

    def abstract(*args, shapes, slots, static, primitive):
        batch = max(a.shape[0] for a in args if jnp.issubdtype(a.dtype, jnp.floating))
        kept = {variant_p: slots, push_p: (m - 1,), pull_p: slots}[primitive]
        outs = [jax.core.ShapedArray((batch, *shapes[s]), args[0].dtype) for s in kept]
        return outs if primitive is pull_p else outs[0]

    table = (
        (variant_p, variant_xla, variant_cpu, variant_jvp, variant_transpose),
        (push_p, push_any, push_any, push_jvp, push_transpose),
        (pull_p, pull_xla, pull_cpu, pull_jvp, pull_transpose),
    )
    for primitive, xla, cpu, jvp, transpose in table:
        register(primitive, xla, cpu, jvp, transpose, abstract)
    return lambda operands, index, shapes, static, slot=m - 1: variant(
        slot, operands, index, shapes=shapes, static=static
    )


def register(primitive, xla, cpu, jvp, transpose, abstract):
    """Give a primitive with the static parameters slots, shapes, static its value on CPUs and elsewhere, its
    derivatives, and batching over the leading axis."""
    many = primitive.multiple_results
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("slots", "shapes", "static")))
    primitive.def_abstract_eval(lambda *args, **kw: abstract(*args, primitive=primitive, **kw))
    mlir.register_lowering(primitive, mlir.lower_fun(xla, multiple_results=many))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=many), platform="cpu")
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = lambda args, dims, **kw: _batch(primitive, args, dims, **kw)


def _batch(primitive, args, dims, **static):
    """Merge the mapped axis into the leading one; a batch of index arrays (different graphs) is a loop over graphs."""
    mapped = [d is not None for d in dims]
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    args = [jnp.moveaxis(a, d, 0) if m else a for a, d, m in zip(args, dims, mapped, strict=True)]
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


def _split(args, first, second):
    return list(args[:first]), list(args[first : first + second]), args[first + second :]


def _set(x, i, value):
    return [*x[:i], value, *x[i + 1 :]]


def _drop(x, i):
    return [*x[:i], *x[i + 1 :]]


def unbatch(x, aval):
    """Sum over the batch where the operand was shared by all of it."""
    return x.sum(0, keepdims=True) if aval.shape[0] == 1 and x.shape[0] != 1 else x
