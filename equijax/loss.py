"""Training losses as masked sums: per-graph numerators and a count for each term, so that shards add up exactly.

A batch is a graph of `equijax.graph` that also carries labels; a label that does not exist has mask 0 and whatever
value, and takes no part:

  globals  energy [G] eV (without E0), energy_mask [G]; stress [G, 3, 3] eV/A^3, stress_mask [G]; weight [G], and
           energy_weight, forces_weight, stress_weight [G], those of a structure times those of its labels
  nodes    forces [N, 3] eV/A, forces_mask [N]; optionally tangents [N, B, 3] A with hvp [N, B, 3] = Phi u in eV/A, and
           hvp_mask [N]
  waves    with globals q [G, B, 3] (fractional) the tangents are displacement waves u_j e^{2 pi i q.S}: tangents and
           hvp [N, B, 2, 3] are real and imaginary parts, hvp_mask [N, 2]; a graph with q = 0 and no imaginary parts is
           one of ordinary displacements, so that supercells and primitive cells share a batch
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jraph

from equijax import bloch, predict
from equijax.config import ModelConfig

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
            raise ValueError(f"loss {self.kind!r}: expected one of {', '.join(PENALTIES)}")
        for name in (*TERMS, "delta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"loss {name} = {getattr(self, name)} must not be negative")


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


def hessian_products(config: ModelConfig, variables: dict, graph: jraph.GraphsTuple) -> jax.Array:
    """Phi u along every tangent: forward derivative of the energy gradient, [N, B, (2,) 3] eV/A like the tangents."""
    positions = jnp.asarray(graph.nodes["positions"])
    if "q" in graph.globals:
        return _wave_products(config, variables, graph, positions)
    gradient = jax.grad(lambda x: predict.total_energy(config, variables, graph, x))
    tangents = jnp.moveaxis(graph.nodes["tangents"], 1, 0)
    _, push = jax.linearize(gradient, positions)
    return jnp.moveaxis(jax.vmap(push)(tangents), 0, 1)


def _wave_products(config, variables, graph, positions):
    """sum_S Phi[0 i, S j] e^{2 pi i q.S} u_j of every wave; see `equijax.bloch`."""
    shifts = graph.edges["shifts"].astype(positions.dtype).reshape(positions.shape[0], -1, 3)
    index = predict.node_graph_index(graph)

    def one(q, wave):  # [G, 3], [2, N, 3]
        phase = 2 * jnp.pi * jnp.einsum("nks,ns->nk", shifts, q[index])
        gather = bloch.wave_gather((jnp.cos(phase), jnp.sin(phase)))
        gradient = jax.grad(lambda x: predict.total_energy(config, variables, graph, x, gather=gather))
        return jax.vmap(lambda u: jax.jvp(gradient, (positions,), (u,))[1], axis_name=bloch.PAIR)(wave)

    waves = jnp.moveaxis(graph.nodes["tangents"], 0, 2)  # [B, 2, N, 3]
    return jnp.moveaxis(jax.vmap(one)(jnp.moveaxis(graph.globals["q"], 1, 0), waves), 2, 0)


def sums(config: ModelConfig, variables: dict, graph: jraph.GraphsTuple, options: LossConfig) -> dict:
    """Each active term as (numerators [G], count): the term is sum(numerators) / count over all shards of a batch.

    energy  w_g rho((E_g - E_ref) / n_g);   forces, stress, hvp  w_g sum rho(d) over components
    """
    out, terms = {}, active(graph, options)
    if {"energy", "forces", "stress"} & set(terms):
        found = predict.energy_forces_stress(config, variables, graph)
    for term in terms:
        if term == "hvp":
            found = {"hvp": hessian_products(config, variables, graph)}
        out[term] = _NUMERATORS[term](found, graph, options)
    return out


def active(graph: jraph.GraphsTuple, options: LossConfig) -> list[str]:
    """Terms that have a weight, and labels of that kind in the batch."""
    return [t for t in TERMS if getattr(options, t) > 0 and (t in graph.nodes or t in graph.globals)]


def total(parts: dict, counts: dict, options: LossConfig) -> jax.Array:
    """sum_t weight_t sum(numerators_t) / count_t; `counts` may come from more shards than `parts`."""
    return sum(getattr(options, t) * p.sum() / jnp.maximum(counts[t], 1.0) for t, p in parts.items())


def _energy(found, graph, options):
    labels, mask = graph.globals, graph.globals["energy_mask"]
    d = _difference(found["energy"], labels["energy"], mask) / jnp.maximum(graph.n_node, 1)
    return PENALTIES[options.kind](d, options.delta) * labels["energy_weight"], mask.sum()


def _forces(found, graph, options):
    labels, mask = graph.nodes["forces"], graph.nodes["forces_mask"]
    d = _difference(found["forces"], labels, mask[:, None])
    delta = options.delta
    if options.kind == "universal":
        norm = jnp.sqrt((labels**2).sum(-1, keepdims=True))
        delta = delta * jnp.select([norm < top for top, _ in FORCE_STEPS], [f for _, f in FORCE_STEPS])
    return _per_graph(PENALTIES[options.kind](d, delta).sum(-1), graph, "forces_weight"), 3.0 * mask.sum()


def _stress(found, graph, options):
    labels, mask = graph.globals, graph.globals["stress_mask"]
    d = _difference(found["stress"], labels["stress"], mask[:, None, None])
    return PENALTIES[options.kind](d, options.delta).sum((1, 2)) * labels["stress_weight"], 9.0 * mask.sum()


def _hvp(found, graph, options):
    labels, mask = graph.nodes["hvp"], graph.nodes["hvp_mask"]
    number = labels.shape[1]
    mask = mask[:, None, ..., None]  # [N, 1, (2,) 1]
    d = _difference(found["hvp"], labels, mask)
    value = PENALTIES[options.kind](d, options.delta)
    return _per_graph(value.reshape(len(value), -1).sum(1), graph, "weight"), 3.0 * number * mask.sum()


_NUMERATORS = {"energy": _energy, "forces": _forces, "stress": _stress, "hvp": _hvp}


def _difference(found, label, mask):
    """found - label where there is a label, else 0 with no gradient, even if the missing label is stored as NaN."""
    return jnp.where(mask > 0, found - jnp.where(mask > 0, label, 0.0), 0.0)


def _per_graph(value, graph, weight):
    return predict.per_graph(graph, value) * graph.globals[weight]
