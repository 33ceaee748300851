"""The Pallas kernels for GPUs, interpreted: equal to XLA up to second derivatives; and the choice between the two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax import couplings
from equijax.kernels import choice, convolution, gpu, monomials, multilinear, polynomial

N, K, C = 4, 3, 16
PATHS = tuple(tuple(p) for p in couplings.conv_paths(1, 1, out_lmax=1))
SHAPES = ((N, K, len(PATHS), C), (N, K, 4), (N, 4, C), (N, sum(2 * p[2] + 1 for p in PATHS), C))
REVERSE = jnp.asarray([3, 6, 9, 0, 7, 10, 1, 4, 11, 2, 5, 8], jnp.int32)  # all pairs of four atoms
RTOL = 1e-13  # relative to the largest entry
TABLE = monomials.terms([couplings.monomials(1, 1, degree=nu) for nu in (1, 2, 3)], 4)._replace(pallas=True)
SLOT = jnp.asarray([0, 1, 1, 0], jnp.int32)


def gradient(f):
    """Of a scalar that is not linear in anything."""
    return jax.grad(lambda *x: jnp.sum(jnp.tanh(0.1 * f(*x))), tuple(range(3)))


def derivatives(f, x, t):
    """Value, gradient, and the Hessian along two tangents at once."""
    push = jax.linearize(gradient(f), *x)[1]
    return jax.jit(lambda x, t: (f(*x), gradient(f)(*x), jax.vmap(push)(*[jnp.stack([a, -2 * a]) for a in t])))(x, t)


def assert_equal(ours, expected):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=RTOL * np.abs(b).max())


def test_neighbour_sum(monkeypatch):
    """The three edges of an atom are split among two programs."""
    monkeypatch.setattr(gpu, "INTERPRET", True)
    monkeypatch.setattr(gpu, "PROGRAMS", 2 * N)
    kernel = multilinear.make(
        multilinear.Form("interpreted", 4, convolution._xla, gpu.neighbour_sum, gpu.neighbour_sum)
    )
    index = REVERSE // K, REVERSE
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, t = ([jnp.asarray(rng.normal(size=s)) for s in SHAPES[:3]] for _ in range(2))
        ours = derivatives(lambda *x: kernel([a[None] for a in x], index, SHAPES, PATHS)[0], x, t)
        plain = derivatives(lambda *x: convolution._xla(3, [a[None] for a in x], index, SHAPES, PATHS)[0], x, t)
    assert_equal(ours, plain)


def test_polynomial(monkeypatch):
    monkeypatch.setattr(gpu, "INTERPRET", True)
    monkeypatch.setattr(polynomial, "target", lambda *args: None)
    xla = polynomial._xla
    monkeypatch.setattr(
        polynomial, "_xla", lambda *a, slots, **kw: (polynomial._gpu if slots != "w" else xla)(*a, slots=slots, **kw)
    )
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        w = jnp.asarray(rng.normal(size=(2, len(TABLE.arrays()[1]), C)))
        x, t = ([jnp.asarray(0.3 * rng.normal(size=(N, 4, C)))] * 3 for _ in range(2))
        forms = [lambda a, b, c, f=f: f(w, a + b * c, SLOT, TABLE) for f in (polynomial.evaluate, polynomial.plain)]
        assert_equal(*(derivatives(f, x, t) for f in forms))


def test_the_fastest_is_chosen_and_said(capsys, monkeypatch):
    def wrong():
        return [2 * jnp.ones(3)]

    def broken():
        raise ValueError("no such instruction")

    calls = {"XLA": lambda: [jnp.ones(3)], "wrong": wrong, "broken": broken}
    assert choice.fastest("sums", calls) == "XLA"
    told = capsys.readouterr().err
    assert "sums by XLA" in told and "wrong left out: off by 1.0e+00" in told and "no such instruction" in told
    monkeypatch.setenv("EQUIJAX_KERNELS", "require")
    with pytest.raises(RuntimeError, match="sums by wrong: off by"):
        choice.fastest("sums", calls)
    del calls["wrong"], calls["broken"]
    assert choice.fastest("sums", calls | {"slow": lambda: [jax.lax.fori_loop(0, 10**5, lambda i, x: x, jnp.ones(3))]})
