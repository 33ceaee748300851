"""The monomial contraction against the dense U."""

import jax
import numpy as np
import pytest

from equijax import couplings
from equijax.nn.contraction import polynomial


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("L", [0, 1, 2])
def test_monomials_equal_the_dense_contraction(L, degree):
    lmax, channels = 3, 3
    rng = np.random.default_rng(L + 10 * degree)
    u = couplings.u_tensor(lmax, L, degree=degree)
    A = rng.normal(size=(5, (lmax + 1) ** 2, channels))
    w = rng.normal(size=(2, u.shape[-1], channels))
    slot = np.array([0, 1, 1, 0, 1])
    letters = "ijk"[:degree]
    expected = np.einsum(f"M{letters}p,npc,{','.join(f'n{x}c' for x in letters)}->nMc", u, w[slot], *[A] * degree)
    coefficients = np.einsum("qp,zpc->zqc", couplings.compress_u(u, lmax, L=L), w)
    with jax.enable_x64(True):
        got = polynomial(
            jax.numpy.asarray(A),
            jax.numpy.asarray(coefficients),
            tables=[couplings.monomials(lmax, L, degree=degree)],
            slot=slot,
        )
    np.testing.assert_allclose(got, expected, atol=1e-12)
