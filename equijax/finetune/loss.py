"""Training losses as masked sums: per-graph numerators and a count for each term, so that shards add up exactly.

A batch is a graph with `equijax.data.items.NodeLabels` and `GraphLabels`; a label that does not exist has mask 0 and
whatever value, and takes no part. A graph with q = 0 and no imaginary parts is one of ordinary displacements, so that
supercells and primitive cells share a batch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jraph

from equijax import derivatives, potential
from equijax.config import ModelConfig
from equijax.derivatives import hessian_products
from equijax.errors import InputError

# Conditional Huber of the universal loss: delta shrinks where the reference force is large (Batatia et al.,
# arXiv:2401.00096, appendix): (|F| below, eV/A; factor on delta).
FORCE_STEPS = ((100.0, 1.0), (200.0, 0.7), (300.0, 0.4), (jnp.inf, 0.1))
TERMS = ("energy", "forces", "stress", "hvp")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms and the penalty rho applied to every difference."""

    kind: str = "huber"  # mse, mae, huber or universal
    energy: float = 1.0  # on rho(dE / n), dE/n in eV/atom
    forces: float = 1.0  # on rho(dF), eV/A
    stress: float = 1.0  # on rho(dS), eV/A^3
    hvp: float = 0.0  # on rho(d(Phi u)), eV/A for tangents u in A
    delta: float = 0.01  # where Huber turns from square to linear, in the unit of each term

    def __post_init__(self):
        if self.kind not in PENALTIES:
            raise InputError(f"loss {self.kind!r}: expected one of {', '.join(PENALTIES)}")
        for name in (*TERMS, "delta"):
            if not getattr(self, name) >= 0:
                raise InputError(f"loss {name} = {getattr(self, name)} must not be negative")


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


def sums(config: ModelConfig, variables: dict, graph: jraph.GraphsTuple, options: LossConfig) -> dict:
    """Each active term as (numerators [G], count): the term is sum(numerators) / count over all shards of a batch.

    energy  w_g rho((E_g - E_ref) / n_g);   forces, stress, hvp  w_g sum rho(d) over components
    """
    out, terms = {}, active(graph, options)
    if {"energy", "forces", "stress"} & set(terms):
        found = derivatives.energy_forces_stress(config, variables, graph)
    for term in terms:
        if term == "hvp":
            labels = graph.nodes.labels
            found = {"hvp": hessian_products(config, variables, graph, labels.tangents, graph.globals.labels.q)}
        out[term] = _NUMERATORS[term](found, graph, options)
    return out


def active(graph: jraph.GraphsTuple, options: LossConfig) -> list[str]:
    """Terms that have a weight, and labels of that kind in the batch."""
    nodes, globals_ = graph.nodes.labels, graph.globals.labels
    labels = {"energy": globals_.energy, "forces": nodes.forces, "stress": globals_.stress, "hvp": nodes.hvp}
    return [t for t in TERMS if getattr(options, t) > 0 and labels[t] is not None]


def total(parts: dict, counts: dict, options: LossConfig) -> jax.Array:
    """sum_t weight_t sum(numerators_t) / count_t; `counts` may come from more shards than `parts`."""
    return sum(getattr(options, t) * p.sum() / jnp.maximum(counts[t], 1.0) for t, p in parts.items())


def _energy(found, graph, options):
    labels = graph.globals.labels
    mask = labels.energy_mask
    d = _difference(found.energy, labels.energy, mask) / jnp.maximum(graph.n_node, 1)
    return PENALTIES[options.kind](d, options.delta) * labels.energy_weight, mask.sum()


def _forces(found, graph, options):
    labels, mask = graph.nodes.labels.forces, graph.nodes.labels.forces_mask
    d = _difference(found.forces, labels, mask[:, None])
    delta = options.delta
    if options.kind == "universal":
        norm = jnp.sqrt((labels**2).sum(-1, keepdims=True))
        delta = delta * jnp.select([norm < top for top, _ in FORCE_STEPS], [f for _, f in FORCE_STEPS])
    return _per_graph(
        PENALTIES[options.kind](d, delta).sum(-1), graph, graph.globals.labels.forces_weight
    ), 3.0 * mask.sum()


def _stress(found, graph, options):
    labels = graph.globals.labels
    mask = labels.stress_mask
    d = _difference(found.stress, labels.stress, mask[:, None, None])
    return PENALTIES[options.kind](d, options.delta).sum((1, 2)) * labels.stress_weight, 9.0 * mask.sum()


def _hvp(found, graph, options):
    labels, mask = graph.nodes.labels.hvp, graph.nodes.labels.hvp_mask
    number = labels.shape[1]
    mask = mask[:, None, ..., None]  # [N, 1, (2,) 1]
    d = _difference(found["hvp"], labels, mask)
    value = PENALTIES[options.kind](d, options.delta)
    return _per_graph(
        value.reshape(len(value), -1).sum(1), graph, graph.globals.labels.weight
    ), 3.0 * number * mask.sum()


_NUMERATORS = {"energy": _energy, "forces": _forces, "stress": _stress, "hvp": _hvp}


def _difference(found, label, mask):
    """found - label where there is a label, else 0 with no gradient, even if the missing label is stored as NaN."""
    return jnp.where(mask > 0, found - jnp.where(mask > 0, label, 0.0), 0.0)


def _per_graph(value, graph, weight):
    return potential.per_graph(graph, value) * weight
