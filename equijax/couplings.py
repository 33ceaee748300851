"""Coupling coefficients in numpy: convolution paths, U tensors of the symmetric contraction and their monomials.

Everything here depends on degrees l alone, runs once at trace time and is cached.
"""

from fractions import Fraction
from functools import lru_cache, reduce
from itertools import combinations_with_replacement, permutations, product
from math import factorial, sqrt
from typing import NamedTuple

import numpy as np

# U entries are O(1); what is smaller than this in double precision is rounding of the coupling recursion.
ZERO = 1e-9


class Path(NamedTuple):
    """One coupling l1 (node) x l2 (edge) -> l3 (message) of the convolution."""

    l1: int
    l2: int
    l3: int


# Antisymmetric couplings, of odd l1 + l2 + l3, have a sign by convention: that of e3nn in torch is not that of e3nn_jax
# for these degrees in any order, of all up to 6.
_TURNED = frozenset(
    {(1, 2, 2), (1, 3, 3), (1, 4, 4), (1, 5, 5), (1, 6, 6), (3, 4, 6), (4, 4, 5), (4, 5, 6), (5, 5, 5), (5, 6, 6)}
)


@lru_cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """[2 l1 + 1, 2 l2 + 1, 2 l3 + 1] real coupling sqrt(2 l3 + 1) * w3j, e3nn's "component" normalisation and sign."""
    coupling = condon_shortley(l1, l2, l3=l3)
    return -coupling if tuple(sorted((l1, l2, l3))) in _TURNED else coupling


@lru_cache
def condon_shortley(l1: int, l2: int, *, l3: int) -> np.ndarray:
    """`clebsch_gordan` with the sign of e3nn_jax.

    The coefficients of complex harmonics (Racah's formula; Varshalovich et al. 1988, 8.2.1, Eq. 3) in the real basis
    (`_real_basis`). Not taken from e3nn_jax, whose import takes longer than a small calculation; a test compares them.
    """
    complex_ = np.array(
        [[[_racah(l1, l2, j3=l3, m1=a, m2=b, m3=c) for c in _range(l3)] for b in _range(l2)] for a in _range(l1)]
    )
    Q1, Q2, Q3 = (_real_basis(l) for l in (l1, l2, l3))
    real = np.einsum("ai,bj,ck,abc->ijk", Q1, Q2, Q3.conj(), complex_).real
    real.flags.writeable = False  # shared by all who ask
    return real


def _range(l: int) -> range:
    return range(-l, l + 1)


def _racah(j1: int, j2: int, *, j3: int, m1: int, m2: int, m3: int) -> float:
    """<j1 m1 j2 m2 | j3 m3>"""
    if m3 != m1 + m2 or not abs(j1 - j2) <= j3 <= j1 + j2:
        return 0.0
    f = factorial
    outside = Fraction(
        (2 * j3 + 1) * f(j3 + j1 - j2) * f(j3 - j1 + j2) * f(j1 + j2 - j3) * f(j3 + m3) * f(j3 - m3),
        f(j1 + j2 + j3 + 1),
    ) * (f(j1 - m1) * f(j1 + m1) * f(j2 - m2) * f(j2 + m2))
    inside = Fraction(0)
    for k in range(max(0, j2 - j3 - m1, j1 - j3 + m2), min(j1 + j2 - j3, j1 - m1, j2 + m2) + 1):
        rest = f(j1 + j2 - j3 - k) * f(j1 - m1 - k) * f(j2 + m2 - k) * f(j3 - j2 + m1 + k) * f(j3 - j1 - m2 + k)
        inside += Fraction((-1) ** k, f(k) * rest)
    return float(inside) * sqrt(outside)


def _real_basis(l: int) -> np.ndarray:
    """[2l+1, 2l+1] complex harmonics (rows) in terms of real ones, with the phase (-i)^l that makes couplings real."""
    Q = np.zeros((2 * l + 1, 2 * l + 1), complex)
    Q[l, l] = 1.0
    for m in range(1, l + 1):
        Q[l - m, [l + m, l - m]] = sqrt(0.5), -1j * sqrt(0.5)
        Q[l + m, [l + m, l - m]] = (-1) ** m * sqrt(0.5), (-1) ** m * 1j * sqrt(0.5)
    return (-1j) ** l * Q


class Harmonics(NamedTuple):
    """Real spherical harmonics up to l as products of d = max(1, l) linear forms: Y(u) = prod_i ([1, u] A_i) M."""

    linear: np.ndarray  # [d, 4, monomials] A
    mix: np.ndarray  # [monomials, m] M


@lru_cache
def harmonics(lmax: int) -> Harmonics:
    """Those of unit vectors (x, y, z), l = 0..lmax in e3nn's order, |Y_l|^2 = 2l + 1 ("component").

    Y_l is Y_{l-1} coupled with Y_1, a tensor of degree l: its sums over permutations are the coefficients of monomials.
    """
    degree = max(1, lmax)
    monomials = list(combinations_with_replacement(range(4), degree))  # of (1, x, y, z)
    row = {factors: i for i, factors in enumerate(monomials)}
    mix = np.zeros((len(monomials), (lmax + 1) ** 2))
    tensor = np.ones((1,))  # Y_l, [2l+1, 3, ..., 3]
    for l in range(lmax + 1):
        if l > 0:
            tensor = np.einsum("a...,abc->c...b", tensor, clebsch_gordan(l - 1, 1, l)) if l > 1 else np.eye(3)
            pole = tensor[(l, *[1] * l)]  # at u = y, where m = 0 alone is not zero
            tensor = tensor / pole
        for index in product(range(3), repeat=l):
            factors = tuple(sorted((*[0] * (degree - l), *(i + 1 for i in index))))
            mix[row[factors], l * l : (l + 1) ** 2] += sqrt(2 * l + 1) * tensor[(slice(None), *index)]
    return Harmonics(np.eye(4)[:, np.array(monomials).T].swapaxes(0, 1), mix)


@lru_cache
def conv_paths(node_lmax: int, edge_lmax: int, *, out_lmax: int, so3: bool = False) -> tuple[Path, ...]:
    """The P convolution paths sorted by (l3, l1, l2), the order of mace-torch's radial weights.

    Parity allows even l1 + l2 + l3; with `so3` every irrep is even, and all paths are allowed.
    """
    paths = [
        Path(l1, l2, l3)
        for l1 in range(node_lmax + 1)
        for l2 in range(edge_lmax + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, out_lmax) + 1)
        if so3 or (l1 + l2 + l3) % 2 == 0
    ]
    return tuple(sorted(paths, key=lambda p: (p.l3, p.l1, p.l2)))


@lru_cache
def u_tensor(lmax: int, L: int, *, degree: int, so3: bool = False) -> np.ndarray:
    """All nested couplings of `degree` copies of 0e+1o+...+lmax to the natural-parity irrep L (all even with `so3`).

    The non-reduced basis of the MACE paper (Batatia et al. 2022, Eq. 10). A converted model brings its own U tensors,
    whose paths may come in another order or basis.

    Returns:
      [2L+1, m, ..., m, paths] with m = (lmax + 1)^2 repeated `degree` times.
    """
    m = (lmax + 1) ** 2
    partial = [((l, 0), np.eye(m)[l * l : (l + 1) ** 2]) for l in range(lmax + 1)]  # ((l, unnatural parity), [2l+1, m])
    for step in range(2, degree + 1):
        last = step == degree
        coupled = []
        for (la, odd), left in partial:
            for lb in range(lmax + 1):
                for lc in range(abs(la - lb), la + lb + 1):
                    parity = 0 if so3 else (odd + la + lb + lc) % 2
                    if last and (lc, parity) != (L, 0):
                        continue
                    block = np.einsum("a...,abc->c...b", left, condon_shortley(la, lb, l3=lc))
                    full = np.zeros((*block.shape[:-1], m))
                    full[..., lb * lb : (lb + 1) ** 2] = block
                    coupled.append(((lc, parity), full))
        partial = sorted(coupled, key=lambda entry: entry[0])
    kept = [tensor for key, tensor in partial if key == (L, 0)]
    if not kept:
        return np.zeros((2 * L + 1, *[m] * degree, 0))
    return np.stack(kept, axis=-1)


class Monomials(NamedTuple):
    """The Q (component, monomial) pairs that an equivariant polynomial of one degree can contain."""

    component: np.ndarray  # [Q] output component 0..2L, ascending
    factors: np.ndarray  # [Q, degree] ascending input components of the monomial


@lru_cache
def monomials(lmax: int, L: int, *, degree: int, so3: bool = False) -> Monomials:
    """Monomials with a non-zero coefficient in any equivariant of `degree` variables 0e+...+lmax to output L."""
    u = np.abs(symmetrise(u_tensor(lmax, L, degree=degree, so3=so3))).sum(-1)
    pairs = [
        (c, idx)
        for c in range(2 * L + 1)
        for idx in combinations_with_replacement(range((lmax + 1) ** 2), degree)
        if u[(c, *idx)] > ZERO
    ]
    return Monomials(
        np.array([c for c, _ in pairs], np.int32), np.array([f for _, f in pairs], np.int32).reshape(len(pairs), degree)
    )


def symmetrise(u: np.ndarray) -> np.ndarray:
    """Average `u` [2L+1, m, ..., m, paths] over permutations of its input axes."""
    degree = u.ndim - 2
    perms = list(permutations(range(1, degree + 1)))
    return reduce(np.add, (np.transpose(u, (0, *p, degree + 1)) for p in perms)) / len(perms)


def compress_u(u: np.ndarray, lmax: int, *, L: int, so3: bool = False) -> np.ndarray:
    """Coefficient of every monomial: [2L+1, m, ..., m, paths] -> [Q, paths].

    The contraction only sees the part of U that is symmetric in its inputs; a monomial's coefficient is the sum over
    the distinct orderings of its factors.

    Raises:
      ValueError: `u` couples components that no equivariant polynomial couples (not a U tensor in e3nn's basis).
    """
    u = np.asarray(u, np.float64)
    degree = u.ndim - 2
    table = monomials(lmax, L, degree=degree, so3=so3)
    sym = symmetrise(u)
    multiplicity = np.array([len(set(permutations(f))) for f in table.factors.tolist()])
    index = (table.component, *table.factors.T)
    coefficients = sym[index] * multiplicity[:, None]
    expected = np.zeros(sym.shape, sym.dtype)
    for order in permutations(range(degree)):
        expected[(table.component, *table.factors.T[list(order)])] = sym[index]
    worst = np.abs(sym - expected).max(initial=0.0)
    if worst > 1e-5 * max(1.0, np.abs(sym).max(initial=0.0)):
        raise ValueError(
            f"U tensor to L={L}, degree {degree} has an entry of {worst:.2e} where equivariance demands "
            "zero: it is not in the real e3nn basis this model uses"
        )
    return coefficients
