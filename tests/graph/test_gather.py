"""The gather of senders and its transpose."""

import jax
import numpy as np

from equijax import graph, testing
from equijax.graph.gather import gather_senders, sum_to_senders
from tests.samples import CONFIG


def test_gather_and_its_transpose_are_adjoint_in_every_mode():
    g = graph.from_atoms(testing.rattled(), CONFIG)
    senders, reverse = g.senders, g.edges.reverse
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(size=(g.n_node[0], 3))
        y = rng.normal(size=(g.n_node[0], len(senders) // g.n_node[0], 3))
        gathered = gather_senders(x, senders, reverse)
        mask = g.edges.mask.reshape(y.shape[:2])
        np.testing.assert_array_equal(gathered[mask], x[senders.reshape(mask.shape)[mask]])
        expected = np.zeros_like(x)
        np.add.at(expected, senders, y.reshape(-1, 3))
        np.testing.assert_allclose(sum_to_senders(y, senders, reverse), expected, atol=1e-13)

        def f(x):
            return (gather_senders(x, senders, reverse) ** 3 * y).sum()

        def plain(x):
            return (x[senders].reshape(y.shape) ** 3 * y).sum()

        for derivative in (jax.grad, jax.jacfwd, jax.hessian):
            np.testing.assert_allclose(derivative(f)(x), derivative(plain)(x), atol=1e-12)
        tangents = rng.normal(size=(4, *x.shape))
        batched = jax.vmap(jax.linearize(jax.grad(f), x)[1])(tangents)
        single = [jax.jvp(jax.grad(plain), (x,), (t,))[1] for t in tangents]
        np.testing.assert_allclose(batched, single, atol=1e-12)
