"""The CPU kernel of the neighbour sum against einsum: derivatives to third order, batches, both dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax import couplings, graph
from equijax.kernels import build, convolution
from equijax.nn import convolution as nn_convolution
from equijax.nn.convolution import convolve
from tests.kernels.samples import RTOL, derivatives, needs_compiler

N, K, C = 6, 5, 16
PATHS = tuple(tuple(p) for p in couplings.conv_paths(1, 1, out_lmax=1))
MORE_PATHS = tuple(tuple(p) for p in couplings.conv_paths(1, 2, out_lmax=2))  # take twice as long to compile
J, TABLE_ROWS = 3, 10


def shapes_of(paths):
    """Of R, Y, h, A."""
    degree = max(p[1] for p in paths)
    return ((N, K, len(paths), C), (N, K, (degree + 1) ** 2), (N, 4, C), (N, sum(2 * p[2] + 1 for p in paths), C))


def table_shapes_of(paths):
    """Of phi, Y, h, W, A."""
    _, Y, h, A = shapes_of(paths)
    return ((N, K, J), Y, h, (TABLE_ROWS, len(paths), C), A)


def random_graph(seed=0):
    """Senders and reverse slots of a random symmetric list with a few unused slots (their own reverse)."""
    order = np.random.default_rng(seed).permutation(N * K)
    reverse = np.arange(N * K)
    reverse[order[:26:2]], reverse[order[1:26:2]] = order[1:26:2], order[:26:2]
    return jnp.asarray(reverse // K, jnp.int32), jnp.asarray(reverse, jnp.int32)


SHAPES, TABLE_SHAPES = shapes_of(PATHS), table_shapes_of(PATHS)


def form(use_kernel, index, paths=PATHS):
    """R, Y, h -> A by the kernel or by einsum over the coupling tensors."""
    evaluate = convolution._neighbour_sum if use_kernel else lambda x, *rest: convolution._xla(3, x, *rest)
    return lambda *x: evaluate([a[None] for a in x], index, shapes_of(paths), paths)[0]


def table_form(use_kernel, index, table):
    """phi, Y, h -> A by the kernel with a table of radial functions, or by the other kernel's form in einsum."""
    used = np.asarray(index[1]) != np.arange(N * K)
    rows = np.random.default_rng(5).integers(0, TABLE_ROWS - J + 1, N * K)
    first = jnp.asarray(np.where(used, rows, -1), jnp.int32)
    used = used.reshape(N, K, 1)
    if use_kernel:

        def operands(phi, Y, h):
            return [a[None] for a in (phi * used, Y, h, table)]

        return lambda *x: convolution._table_sum(operands(*x), (*index, first), TABLE_SHAPES, PATHS)[0]
    plain = form(False, index)
    return lambda phi, Y, h: plain(convolution.radial_from_table(phi * used, first, table), Y, h)


def gradient(f, weight):
    """Of a scalar that is not linear in anything."""
    return jax.grad(
        lambda *x: jnp.sum(jnp.tanh(0.05 * f(*x) * weight) + 1e-3 * f(jnp.sin(x[0]), *x[1:]) ** 2), (0, 1, 2)
    )


DERIVATIVES = derivatives(gradient) | {
    "batch of some operands": lambda f, w: (
        lambda x, t: jax.vmap(gradient(f, w), (0, None, 0))(t[0][None], x[1], t[2][None])
    ),
}


@needs_compiler
@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("kind", ["array", "table"])
def test_kernel_equals_einsum(kind, dtype, monkeypatch):
    """All derivatives of arrays in float64; of tables and in float32, whose kernels are the same text, those that use
    every variant of it, with fewer paths."""
    monkeypatch.setenv("EQUIJAX_KERNELS", "require")
    rng = np.random.default_rng(1)
    paths = MORE_PATHS if (kind, dtype) == ("array", "float64") else PATHS
    shapes = {"array": shapes_of, "table": table_shapes_of}[kind](paths)
    with jax.enable_x64(dtype == "float64"):
        x, t = (tuple(jnp.asarray(rng.normal(size=s), dtype) for s in shapes[:3]) for _ in range(2))
        weight = jnp.asarray(rng.normal(size=shapes[-1]), dtype)
        index = random_graph()
        table = jnp.asarray(rng.normal(size=TABLE_SHAPES[3]), dtype)
        make = {"array": lambda *args: form(*args, paths), "table": lambda *args: table_form(*args, table)}[kind]
        forms = [make(use, index) for use in (True, False)]
        names = {"float64": {"array": DERIVATIVES, "table": ("gradient", "linearized", "batched third")}[kind]}
        chosen = {k: DERIVATIVES[k] for k in names.get(dtype, ("gradient", "batched third"))}
        programs = [jax.jit(lambda x, t, f=f: {k: d(f, weight)(x, t) for k, d in chosen.items()}) for f in forms]
        assert "equijax_convolution" in programs[0].lower(x, t).as_text()
        ours, reference = (program(x, t) for program in programs)
        for name in chosen:
            for a, b in zip(jax.tree.leaves(ours[name]), jax.tree.leaves(reference[name]), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=RTOL[dtype] * np.abs(b).max(), err_msg=name)


@needs_compiler
def test_table_without_its_kernel(monkeypatch):
    """Every variant of the form in XLA, the derivative with respect to the table (which no kernel has) included."""
    rng = np.random.default_rng(3)
    x = tuple(jnp.asarray(rng.normal(size=s), "float32") for s in TABLE_SHAPES[:4])
    weight = jnp.asarray(rng.normal(size=TABLE_SHAPES[4]), "float32")

    def loss(use, phi, Y, h, W):
        return jnp.sum(jnp.tanh(weight * table_form(use, random_graph(), W)(phi, Y, h)))

    expected = jax.grad(lambda *x: loss(False, *x), (0, 1, 2, 3))(*x)
    for mode in ("require", "off"):
        monkeypatch.setenv("EQUIJAX_KERNELS", mode)
        convolution.target.cache_clear(), build.target.cache_clear()
        for ours, theirs in zip(jax.grad(lambda *x: loss(True, *x), (0, 1, 2, 3))(*x), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=RTOL["float32"] * np.abs(theirs).max())
    convolution.target.cache_clear(), build.target.cache_clear()


@needs_compiler
def test_batch_of_graphs():
    rng = np.random.default_rng(1)
    x = tuple(jnp.asarray(rng.normal(size=s), "float32") for s in SHAPES[:3])
    weight = jnp.asarray(rng.normal(size=SHAPES[3]), "float32")
    graphs = jax.tree.map(lambda *leaves: jnp.stack(leaves), random_graph(0), random_graph(1))
    ours = jax.vmap(lambda *index: gradient(form(True, index), weight)(*x))(*graphs)
    for i in range(2):
        expected = gradient(form(False, random_graph(i)), weight)(*x)
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=RTOL["float32"] * np.abs(b).max())


@needs_compiler
@pytest.mark.parametrize("kind", ["array", "table"])
def test_indices_out_of_range_are_clamped_as_by_xla(kind, monkeypatch):
    """Every variant: the value, and the derivative with respect to each operand that has a kernel."""
    monkeypatch.setenv("EQUIJAX_KERNELS", "require")
    rng = np.random.default_rng(4)
    shapes, xla, ours = {
        "array": (SHAPES, convolution._xla, convolution._neighbour_sum),
        "table": (TABLE_SHAPES, convolution._table_xla, convolution._table_sum),
    }[kind]
    x = [jnp.asarray(rng.normal(size=(1, *s)), "float32") for s in shapes]
    senders, reverse, first = (jnp.asarray(rng.integers(-20, 60, N * K), jnp.int32) for _ in range(3))
    first = jnp.abs(first)  # negative: a masked slot, where phi is zero
    index = (senders, reverse) if kind == "array" else (senders, reverse, first)
    slots = [s for s in range(len(shapes)) if (kind, s) != ("table", 3)]

    def variants(form):
        return [form(s, [a for i, a in enumerate(x) if i != s], index, shapes, PATHS) for s in slots]

    expected = jax.jit(lambda: variants(xla))()
    found = jax.jit(lambda: variants(lambda s, *rest: ours(*rest, slot=s)))()
    for a, b in zip(found, expected, strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=RTOL["float32"] * np.abs(b).max())


@needs_compiler
def test_same_as_the_plain_xla_form(monkeypatch):
    """`convolve` by kernel and without, padding slots included."""
    monkeypatch.setattr(nn_convolution, "KERNEL_CHANNELS", 1)
    rng = np.random.default_rng(2)
    senders, reverse = random_graph()
    h = [jnp.asarray(rng.normal(size=(N, d, C)), "float32") for d in (1, 3)]
    g = jnp.asarray(rng.normal(size=(N, K, 7)) * (reverse != np.arange(N * K)).reshape(N, K, 1), "float32")
    last, Y = (jnp.asarray(rng.normal(size=s), "float32") for s in ((7, len(PATHS), C), SHAPES[1]))
    nothing = jnp.zeros(0, jnp.int32)
    topology = graph.Topology(nothing, nothing, nothing, senders, reverse)
    out = {}
    for mode in ("require", "off"):
        monkeypatch.setenv("EQUIJAX_KERNELS", mode)
        out[mode] = convolve(h, g, last=last, Y=Y, paths=couplings.conv_paths(1, 1, out_lmax=1), graph=topology)
    for a, b in zip(*out.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
