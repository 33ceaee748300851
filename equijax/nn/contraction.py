"""Symmetric contraction (MACE's product basis) by monomials instead of the dense U tensor."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax import couplings
from equijax.graph.fields import Array
from equijax.kernels import build, choice
from equijax.kernels.monomials import Terms, terms
from equijax.kernels.polynomial import evaluate, plain
from equijax.nn.convolution import TIMED, kernel_platform


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
    so3: bool = False

    @nn.compact
    def __call__(self, A: jax.Array, slot: Array, table: Array) -> jax.Array:
        """A [N, m, C], slot [N] rows of table [U] -> B [N, 2L+1, C]."""
        channels = A.shape[-1]
        degrees = range(1, self.correlation + 1)
        tables = [couplings.monomials(self.lmax, self.L, degree=nu, so3=self.so3) for nu in degrees]
        coefficients = []
        for nu, paths in enumerate(self.paths, start=1):
            name = f"l{self.L}_nu{nu}"
            shape = (self.num_species, paths, channels)
            w = self.param(name, nn.initializers.normal(1.0 / paths), shape)
            u = self.variable("constants", name, self._default_u, nu).value
            coefficients.append(jnp.einsum("qp,zpc->zqc", u.astype(A.dtype), w.astype(A.dtype)[table]))
        return polynomial(A, jnp.concatenate(coefficients, axis=1), tables=tables, slot=slot)

    def _default_u(self, nu: int) -> np.ndarray:
        u = couplings.u_tensor(self.lmax, self.L, degree=nu, so3=self.so3)
        return couplings.compress_u(u, self.lmax, L=self.L, so3=self.so3)


def polynomial(A: jax.Array, coefficients: jax.Array, *, tables: list[couplings.Monomials], slot: Array) -> jax.Array:
    """Evaluate per-species polynomials, elementwise in the channel.

    Args:
      A: [N, m, C] variables.
      coefficients: [U, Q, C], Q running over all degrees in the order of `tables`.
      tables: monomials of degree 1, 2, ...
      slot: [N] row of `coefficients` of each node.

    Returns:
      [N, 2L+1, C]
    """
    table = terms(tables, A.shape[1])
    place = kernel_platform(A.shape[-1], A.dtype)
    if place == "":
        return plain(coefficients, A, slot, table)
    pallas = place == "cuda" and (build.mode() == "require" or _faster_on_gpu(A.shape[-1], A.dtype.name, table=table))
    return evaluate(coefficients, A, slot, table._replace(pallas=pallas))


@cache
def _faster_on_gpu(channels: int, dtype: str, *, table: Terms) -> bool:
    """By timing value and gradient with respect to the variables, for one species."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(1, len(table.arrays()[1]), channels)).astype(dtype)  # numpy's: a program may be being traced
    x = rng.normal(size=(TIMED[0], table.variables, channels)).astype(dtype)
    slot = np.zeros(TIMED[0], np.int32)
    calls = {
        name: choice.value_and_gradients(partial(_of_variables, w, slot, table._replace(pallas=name == "Pallas")), [x])
        for name in ("XLA", "Pallas")
    }
    name = f"polynomials of {channels} channels and {table.outputs} outputs in {dtype}"
    return choice.fastest(name, calls) == "Pallas"


def _of_variables(w: Array, slot: Array, table: Terms, x: jax.Array) -> jax.Array:
    return evaluate(w, x, slot, table)
