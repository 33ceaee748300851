"""Symmetric contraction (MACE's product basis) by monomials instead of the dense U tensor."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.nn import cg


class SymmetricContraction(nn.Module):
    """B[n, m, c] = sum_nu sum_p w[z_n, p, c] sum_{m1..m_nu} U^nu[m, m1..m_nu, p] A[n, m1, c] ... A[n, m_nu, c].

    (Batatia et al. 2022, Eqs. 10-11.) The U tensors enter summed over permutations, one coefficient per monomial
    (`cg.compress_u`), so weights and U combine into per-species polynomial coefficients before any atom is touched.
    """

    lmax: int  # of the input A
    L: int  # of the output
    correlation: int
    num_species: int  # Z
    paths: tuple[int, ...]  # number of coupling paths of each degree

    @nn.compact
    def __call__(self, A: jax.Array, slot: jax.Array, table: jax.Array) -> jax.Array:
        """A [N, m, C], slot [N] rows of table [U] -> B [N, 2L+1, C]."""
        channels = A.shape[-1]
        tables = [cg.monomials(self.lmax, self.L, nu) for nu in range(1, self.correlation + 1)]
        coefficients = []
        for nu, paths in enumerate(self.paths, start=1):
            name = f"l{self.L}_nu{nu}"
            shape = (self.num_species, paths, channels)
            w = self.param(name, nn.initializers.normal(1.0 / paths), shape)
            u = self.variable("constants", name, self._default_u, nu).value
            coefficients.append(jnp.einsum("qp,zpc->zqc", u.astype(A.dtype), w.astype(A.dtype)[table]))
        return polynomial(A, jnp.concatenate(coefficients, axis=1), tables, slot)

    def _default_u(self, nu):
        return cg.compress_u(cg.u_tensor(self.lmax, self.L, nu), self.lmax, self.L)


def polynomial(A: jax.Array, coefficients: jax.Array, tables: list[cg.Monomials], slot: jax.Array) -> jax.Array:
    """Evaluate per-species polynomials, elementwise in the channel.

    Args:
      A: [N, m, C] variables.
      coefficients: [U, Q, C], Q running over all degrees in the order of `tables`.
      tables: monomials of degree 1, 2, ...
      slot: [N] row of `coefficients` of each node.

    Returns:
      [N, 2L+1, C]
    """
    degree = max(t.factors.shape[1] for t in tables)
    one = A.shape[1]  # index of the constant 1 that pads low-degree monomials
    factors = np.concatenate(
        [np.pad(t.factors, ((0, 0), (0, degree - t.factors.shape[1])), constant_values=one) for t in tables]
    )
    component = np.concatenate([t.component for t in tables])
    order = np.argsort(component, kind="stable")
    padded = jnp.concatenate([A, jnp.ones_like(A[:, :1])], axis=1)
    terms = _by_node(coefficients[:, order], slot)
    for f in factors[order].T:
        terms = terms * padded[:, f]
    bounds = np.searchsorted(component[order], np.arange(component.max(initial=0) + 2))
    return jnp.stack([terms[:, a:b].sum(1) for a, b in zip(bounds, bounds[1:], strict=False)], axis=1)


def _by_node(values, slot):
    """Rows of a per-species array for each node; a single species broadcasts instead of being copied N times."""
    return values if values.shape[0] == 1 else values[slot]
