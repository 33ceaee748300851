"""Training losses as masked sums: per-graph numerators and a count for each term, so that shards add up exactly.

A batch is a graph with `equijax.data.items.NodeLabels` and `GraphLabels`; a label that does not exist has mask 0 and
whatever value, and takes no part. A graph with q = 0 and no imaginary parts is one of ordinary displacements, so that
supercells and primitive cells share a batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jraph

from equijax import derivatives, potential
from equijax.config import ModelConfig
from equijax.derivatives import Derivatives
from equijax.errors import needed
from equijax.finetune.options import UNRESOLVED, WEIGHTS, LossConfig

# Conditional Huber of the universal loss: delta shrinks where the reference force is large (Batatia et al.,
# arXiv:2401.00096, appendix): (|F| below, eV/A; factor on delta).
FORCE_STEPS = ((100.0, 1.0), (200.0, 0.7), (300.0, 0.4), (jnp.inf, 0.1))


class Term(NamedTuple):
    """One term of the loss: sum(numerators) / count, over all shards of a batch."""

    numerators: jax.Array  # [G]
    count: jax.Array  # [] components


def square(d: jax.Array, delta: jax.Array | float) -> jax.Array:
    """d^2."""
    return d**2


def absolute(d: jax.Array, delta: jax.Array | float) -> jax.Array:
    """|d|."""
    return jnp.abs(d)


def huber(d: jax.Array, delta: jax.Array | float) -> jax.Array:
    """d^2 / 2 where |d| < delta, else delta (|d| - delta / 2)."""
    a = jnp.abs(d)
    return jnp.where(a < delta, 0.5 * d**2, delta * (a - 0.5 * delta))


PENALTIES = {"mse": square, "mae": absolute, "huber": huber, "universal": huber}


def sums(config: ModelConfig, variables: dict, *, graph: jraph.GraphsTuple, options: LossConfig) -> dict[str, Term]:
    """The active terms.

    energy  w_g rho((E_g - E_ref) / n_g);   forces, stress, hvp  w_g sum rho(d) over components
    """
    out, terms = {}, active(graph, options)
    if set(FIRST_ORDER) & set(terms):
        found = derivatives.energy_forces_stress(config, variables, graph=graph)
        out = {term: FIRST_ORDER[term](found, graph, options) for term in terms if term in FIRST_ORDER}
    if "hvp" in terms:
        tangents, q = graph.nodes.labels.tangents, graph.globals.labels.q
        products = derivatives.hessian_products(config, variables, graph, tangents, q)
        out["hvp"] = _hvp(products, graph, options=options)
    return out


def active(graph: jraph.GraphsTuple, options: LossConfig) -> list[str]:
    """Terms that have a weight, and labels of that kind in the batch."""
    nodes, globals_ = graph.nodes.labels, graph.globals.labels
    labels = {"energy": globals_.energy, "forces": nodes.forces, "stress": globals_.stress, "hvp": nodes.hvp}
    return [t for t in WEIGHTS if options.weight(t) > 0 and labels[t] is not None]


def mean(term: Term) -> jax.Array:
    """Its numerators over its count, 0 without labels; the count may be that of more shards."""
    return term.numerators.sum() / jnp.maximum(term.count, 1.0)


def total(terms: dict[str, Term], options: LossConfig) -> jax.Array:
    """sum_t weight_t sum(numerators_t) / count_t."""
    return jnp.asarray(sum(options.weight(t) * mean(term) for t, term in terms.items()))


def _energy(found: Derivatives, graph: jraph.GraphsTuple, options: LossConfig) -> Term:
    labels = graph.globals.labels
    mask = labels.energy_mask
    d = _difference(found.energy, labels.energy, mask=mask) / jnp.maximum(graph.n_node, 1)
    return Term(_penalty(d, options) * labels.energy_weight, mask.sum())


def _forces(found: Derivatives, graph: jraph.GraphsTuple, options: LossConfig) -> Term:
    labels, mask = graph.nodes.labels.forces, graph.nodes.labels.forces_mask
    d = _difference(found.forces, labels, mask=mask[:, None])
    factor = 1.0
    if options.loss == "universal":
        norm = jnp.sqrt((labels**2).sum(-1, keepdims=True))
        factor = jnp.select([norm < top for top, _ in FORCE_STEPS], [f for _, f in FORCE_STEPS])
    value = potential.per_graph(graph, _penalty(d, options, factor=factor).sum(-1))
    return Term(value * graph.globals.labels.forces_weight, 3.0 * mask.sum())


def _stress(found: Derivatives, graph: jraph.GraphsTuple, options: LossConfig) -> Term:
    labels = graph.globals.labels
    mask = labels.stress_mask
    d = _difference(found.stress, labels.stress, mask=mask[:, None, None])
    return Term(_penalty(d, options).sum((1, 2)) * labels.stress_weight, 9.0 * mask.sum())


FIRST_ORDER = {"energy": _energy, "forces": _forces, "stress": _stress}


def _hvp(products: jax.Array, graph: jraph.GraphsTuple, *, options: LossConfig) -> Term:
    labels, mask = graph.nodes.labels.hvp, graph.nodes.labels.hvp_mask
    d = _difference(products, labels, mask=mask[:, None, ..., None])  # mask [N, 1, (2,) 1]
    value = _penalty(d, options).reshape(len(d), -1).sum(1)
    number = 3.0 * labels.shape[1]
    return Term(potential.per_graph(graph, value) * graph.globals.labels.weight, number * mask.sum())


def _penalty(d: jax.Array, options: LossConfig, *, factor: jax.Array | float = 1.0) -> jax.Array:
    """rho(d); `factor` on where Huber turns linear."""
    return PENALTIES[needed(options.loss, UNRESOLVED)](d, options.huber_delta * factor)


def _difference(found: jax.Array, label: jax.Array, *, mask: jax.Array) -> jax.Array:
    """found - label where there is a label, else 0 with no gradient, even if the missing label is stored as NaN."""
    return jnp.where(mask > 0, found - jnp.where(mask > 0, label, 0.0), 0.0)
