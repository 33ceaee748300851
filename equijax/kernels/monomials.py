"""The monomials of a symmetric contraction's polynomial, and the terms of its values and gradients."""

import operator
from collections.abc import Sequence
from functools import reduce
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np


class Terms(NamedTuple):
    """The Q monomials of all degrees, hashable."""

    degree: int  # of the highest
    variables: int  # m
    outputs: int  # M
    factors: bytes  # int32 [Q, degree] variables of each monomial; m stands for the constant one
    component: bytes  # int32 [Q] the output each monomial adds to
    pallas: bool = False  # whether an NVIDIA GPU computes it by the Pallas kernel

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """factors [Q, degree] and component [Q]."""
        return np.frombuffer(self.factors, np.int32).reshape(-1, self.degree), np.frombuffer(self.component, np.int32)


def terms(tables: Sequence, variables: int) -> Terms:
    """Monomials of several degrees (`couplings.Monomials`) as one table."""
    degree = max(t.factors.shape[1] for t in tables)
    component = np.concatenate([t.component for t in tables]).astype(np.int32)
    factors = np.full((len(component), degree), variables, np.int32)
    for begin, t in zip(np.cumsum([0, *(len(t.factors) for t in tables)]), tables, strict=False):
        factors[begin : begin + len(t.factors), : t.factors.shape[1]] = t.factors
    return Terms(degree, variables, int(component.max(initial=0)) + 1, factors.tobytes(), component.tobytes())


def rows(table: Terms, gradient: bool) -> tuple[np.ndarray, np.ndarray]:
    """The terms of the values P_m, or of their gradient by x, sorted by the row of the output they add to.

    Returns:
      bounds [rows + 1]: where the terms of each row begin; entries [E, 2 + factors] int32 of each term: monomial,
      component of the output, and the variables whose product it is. In a gradient there is one term for each place
      that a variable stands at in a monomial, with the other factors.
    """
    factors, component = table.arrays()
    numbers = np.arange(len(factors))
    if gradient:
        places = range(table.degree)
        row = np.concatenate([factors[:, i] for i in places])
        parts = [np.column_stack([numbers, component, np.delete(factors, i, axis=1)]) for i in places]
        entries, count = np.concatenate(parts)[row < table.variables], table.variables
        row = row[row < table.variables]
    else:
        row, entries, count = component, np.column_stack([numbers, component, factors]), table.outputs
    order = np.argsort(row, kind="stable")
    return np.searchsorted(row[order], np.arange(count + 1)).astype(np.int32), entries[order].astype(np.int32)


def derivative(x: list, *directions: list) -> Any:
    """Derivative of the product of x along all directions; 1.0 of an empty product, None where it is zero."""
    total = None
    for places in permutations(range(len(x)), len(directions)):
        factors = list(x)
        for place, direction in zip(places, directions, strict=True):
            factors[place] = direction[place]
        term = reduce(operator.mul, factors) if factors else 1.0
        total = term if total is None else total + term
    return total
