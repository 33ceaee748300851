"""What the tests of kernels compare: the derivatives of a function, in every form in which JAX asks for them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from equijax.kernels import build

RTOL = {"float32": 5e-6, "float64": 1e-13}  # relative to the largest entry
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")


def derivatives(gradient: Callable) -> dict[str, Callable]:
    """`(f, weight) -> ((x, tangents) -> arrays)` by name, `gradient(f, weight)` being that of a scalar made of f."""

    def hvp(f, weight):
        return lambda x, t: jax.jvp(gradient(f, weight), x, t)[1]

    def third(f, weight):
        def contract(x, t):
            return sum(jnp.vdot(a, b) for a, b in zip(hvp(f, weight)(x, t), t, strict=True))

        return lambda x, t: jax.grad(contract)(x, t)

    def over_tangents(derivative):
        return lambda f, weight: (
            lambda x, t: jax.vmap(lambda *s: derivative(f, weight)(x, s))(*[jnp.stack([a, -a]) for a in t])
        )

    def linearized(f, weight):
        return lambda x, t: jax.vmap(jax.linearize(gradient(f, weight), *x)[1])(*[jnp.stack([a, 2 * a]) for a in t])

    return {
        "value": lambda f, weight: lambda x, t: f(*x),
        "gradient": lambda f, weight: lambda x, t: gradient(f, weight)(*x),
        "batched hvp": over_tangents(hvp),
        "linearized": linearized,
        "third": third,
        "batched third": over_tangents(third),
    }
