"""The CPU kernel of the symmetric contraction's polynomial against XLA: derivatives to third order, batches, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax import couplings
from equijax.kernels import monomials, polynomial
from equijax.kernels import polynomial as kernel
from equijax.nn import contraction
from tests.kernels.samples import RTOL, derivatives, needs_compiler

N, U, LMAX, DEGREE = 5, 3, 1, 3
SLOT = jnp.asarray([0, 2, 2, 0, 1], jnp.int32)
TABLES = [couplings.monomials(LMAX, 1, degree=degree) for degree in range(1, DEGREE + 1)]
TABLE = monomials.terms(TABLES, (LMAX + 1) ** 2)


def random_point(dtype, channels):
    """(w [U, Q, C], x [N, m, C]), tangents of these, weights of the output [N, M, C]."""
    rng = np.random.default_rng(0)
    rows = ((U, sum(len(t.factors) for t in TABLES)), (N, TABLE.variables))
    arrays = [jnp.asarray(rng.normal(size=(*r, channels)), dtype) for r in (*rows, *rows, (N, TABLE.outputs))]
    return tuple(arrays[:2]), tuple(arrays[2:4]), arrays[4]


def gradient(f, weight):
    """Of a scalar that is not linear in anything."""
    return jax.grad(lambda w, x: jnp.sum(jnp.tanh(0.1 * f(w, x) * weight) + 1e-2 * f(jnp.sin(w), x) ** 2), (0, 1))


DERIVATIVES = derivatives(gradient) | {
    "hvp in x": lambda f, weight: lambda x, t: jax.jvp(gradient(f, weight), x, (jnp.zeros_like(x[0]), t[1]))[1],
    "forward twice": lambda f, weight: lambda x, t: jax.jvp(lambda *y: jax.jvp(f, y, t)[1], x, t)[1],
    "batch of x": lambda f, weight: lambda x, t: jax.vmap(gradient(f, weight), (None, 0))(x[0], t[1][None]),
    "batch of w": lambda f, weight: lambda x, t: jax.vmap(gradient(f, weight), (0, None))(t[0][None], x[1]),
}


@needs_compiler
@pytest.mark.parametrize("dtype", RTOL)
def test_kernel_equals_xla(dtype, monkeypatch):
    """80 channels: one block of several registers and a narrow rest, for every width of register."""
    monkeypatch.setenv("EQUIJAX_KERNELS", "require")
    with jax.enable_x64(dtype == "float64"):
        x, t, weight = random_point(dtype, 80)
        forms = [lambda w, x, f=f: f(w, x, SLOT, TABLE) for f in (polynomial.evaluate, polynomial.plain)]
        programs = [jax.jit(lambda x, t, f=f: {k: d(f, weight)(x, t) for k, d in DERIVATIVES.items()}) for f in forms]
        assert "equijax_polynomial" in programs[0].lower(x, t).as_text()
        ours, reference = (program(x, t) for program in programs)
        for name in DERIVATIVES:
            for a, b in zip(jax.tree.leaves(ours[name]), jax.tree.leaves(reference[name]), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=RTOL[dtype] * np.abs(b).max(), err_msg=name)


@needs_compiler
def test_a_species_out_of_range_is_clamped_as_by_xla(monkeypatch):
    monkeypatch.setenv("EQUIJAX_KERNELS", "require")
    (w, x), *_ = random_point("float32", 16)
    wild = jnp.asarray([0, -2, 7, 2, 1000], jnp.int32)
    expected = polynomial.plain(w, x, jnp.clip(wild, 0, U - 1), TABLE)
    for f in (polynomial.evaluate, polynomial.plain):
        np.testing.assert_allclose(f(w, x, wild, TABLE), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_fallback_of_every_member(monkeypatch):
    """Where XLA stands in for the kernel, the same derivatives come out of the primitive."""
    x, t, weight = random_point("float32", 16)
    monkeypatch.setattr(kernel, "target", lambda *a: None)
    f, g = (lambda w, x, f=f: f(w, x, SLOT, TABLE) for f in (polynomial.evaluate, polynomial.plain))
    program = jax.jit(lambda f, x, t: DERIVATIVES["batched hvp"](f, weight)(x, t), static_argnums=0)
    for a, b in zip(program(f, x, t), program(g, x, t), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=RTOL["float32"] * np.abs(b).max())


@needs_compiler
def test_polynomial_chooses_the_kernel(monkeypatch):
    """Mixed degrees, one species for all nodes, a batch of graphs; the same numbers with kernels switched off."""
    (w, x), *_ = random_point("float32", 64)
    slots = jnp.stack([SLOT, SLOT[::-1]])
    out = {}
    for mode in ("require", "off"):
        monkeypatch.setenv("EQUIJAX_KERNELS", mode)
        batch = jax.jit(jax.vmap(lambda slot: contraction.polynomial(x, w, tables=TABLES, slot=slot)))
        assert ("equijax_polynomial" in batch.lower(slots).as_text()) == (mode == "require")
        out[mode] = batch(slots), contraction.polynomial(x, w[:1], tables=TABLES, slot=SLOT)
    for a, b in zip(*out.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
