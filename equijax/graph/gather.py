"""Sender gather on a regular graph: a linear primitive whose transpose is a gather and a dense sum, never a scatter.

Edge slot e = n K + k belongs to receiver n. Because the neighbour list is symmetric, slot e has a reverse slot
`reverse[e]` whose receiver is the sender of e, and `reverse` is an involution. So

    gather(x)[n, k] = x[senders[n K + k]]          transpose(y)[n] = sum_k y.flat[reverse[n K + k]]

Both are linear, each is the other's transpose, and both batch: derivatives of any order and mode go through.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_gather_p = Primitive("gather_senders")
_scatter_p = Primitive("sum_to_senders")


def gather_senders(x: jax.Array, senders: jax.Array, reverse: jax.Array) -> jax.Array:
    """Values of each edge's sender: x [N, ...], senders and reverse [N*K] -> [N, K, ...]."""
    return _gather_p.bind(x, senders, reverse)


def sum_to_senders(y: jax.Array, senders: jax.Array, reverse: jax.Array) -> jax.Array:
    """Sum edge values over each sender's edges: y [N, K, ...] -> [N, ...]; the transpose of `gather_senders`."""
    return _scatter_p.bind(y, senders, reverse)


def _gather_impl(x: jax.Array, senders: jax.Array, reverse: jax.Array) -> jax.Array:
    n = x.shape[0]
    out = jnp.take(x, senders, axis=0, mode="clip")
    return out.reshape(n, senders.shape[0] // max(n, 1), *x.shape[1:])


def _scatter_impl(y: jax.Array, senders: jax.Array, reverse: jax.Array) -> jax.Array:
    n, k = y.shape[:2]
    flat = y.reshape(n * k, *y.shape[2:])
    return jnp.take(flat, reverse, axis=0, mode="clip").reshape(y.shape).sum(1)


def _register(primitive: Primitive, impl: Callable, *, transpose: Primitive, node_axes: int) -> None:
    """Give a linear primitive with index operands its abstract value, lowering, JVP, transpose and batching rules."""
    primitive.def_impl(jax.jit(impl))

    def abstract(x: Any, senders: Any, reverse: Any) -> jax.core.ShapedArray:
        out = jax.eval_shape(impl, x, senders, reverse)
        return jax.core.ShapedArray(out.shape, out.dtype)

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=False))

    def jvp(primals: tuple, tangents: tuple) -> tuple:
        x, senders, reverse = primals
        t = tangents[0]
        out = primitive.bind(x, senders, reverse)
        return out, ad.Zero(jax.core.get_aval(out)) if type(t) is ad.Zero else primitive.bind(t, senders, reverse)

    ad.primitive_jvps[primitive] = jvp

    def transpose_rule(ct: Any, x: Any, senders: jax.Array, reverse: jax.Array) -> tuple:
        if type(ct) is ad.Zero:
            return ad.Zero(x.aval), None, None
        return transpose.bind(ct, senders, reverse), None, None

    ad.primitive_transposes[primitive] = transpose_rule

    def batch(args: tuple, dims: tuple) -> tuple:
        if any(d is not None for d in dims[1:]):
            # a batch of graphs (vmap over edges): map the plain gather, JAX batches that itself
            out = jax.vmap(impl, in_axes=tuple(dims))(*args)
            return out, 0
        # a batch of features on one graph: put the batch axis behind the node axes, one gather serves all
        x = jnp.moveaxis(args[0], dims[0], node_axes)
        return primitive.bind(x, *args[1:]), node_axes_out

    node_axes_out = 2 if node_axes == 1 else 1
    batching.primitive_batchers[primitive] = batch


_register(_gather_p, _gather_impl, transpose=_scatter_p, node_axes=1)
_register(_scatter_p, _scatter_impl, transpose=_gather_p, node_axes=2)
