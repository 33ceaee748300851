"""MACE for a fixed set of species and fixed weights, everything constant folded: `equijax.specialise` makes its arrays.

Radial functions of a pair of species are functions of the distance alone, so they come from a table of uniform quintic
B-splines (four continuous derivatives) instead of a basis, a transform and an MLP:

    R_p(r)[c] = sum_j phi_j(t) W[i + j, p, c],   r = start + (i + t) step,   j = 0..5

The rest is the same sum as `equijax.nn.mace` with adjacent linear maps multiplied together.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from equijax import couplings
from equijax.config import ModelConfig, Spline
from equijax.errors import needed
from equijax.graph.fields import Array, Topology
from equijax.kernels.convolution import Tabulated
from equijax.nn.blocks import species_linear
from equijax.nn.contraction import polynomial
from equijax.nn.convolution import convolve_table, paths
from equijax.nn.embeddings import JointEmbedding
from equijax.nn.mace import edge_harmonics
from equijax.nn.nonlinear import gated
from equijax.nn.radial import ZBL
from equijax.nn.readouts import LinearReadout, readout

DEGREE = 5  # of the splines
TERMS = DEGREE + 1  # B-splines that are not zero at a distance


def node_energies(cfg: ModelConfig, folded: dict, *, vectors: jax.Array, graph: Topology) -> jax.Array:
    """Interaction energies of atoms, like `MACE.__call__` and with its arguments.

    Args:
      cfg: of the specialised model, `cfg.spline` set.
      folded: its arrays, see `equijax.specialise`. Not differentiable with respect to these.
      vectors: [N, K, 3] receiver minus sender position, A.
      graph: species, heads, senders and reverse of the edges.

    Returns:
      [N] eV, differentiable to fifth order in `vectors` and continuously to fourth.
    """
    shape = vectors.shape[:2]
    table, slot = jnp.asarray(graph.table), jnp.asarray(graph.slot)
    species = table[slot]
    senders = species[graph.senders].reshape(shape)
    r, Y = edge_harmonics(cfg, vectors)
    spline = needed(cfg.spline, "the model is not specialised: see `equijax.specialise`")
    phi, first = spline_weights(spline, r, pair=pair_index(cfg, species[:, None], b=senders), r_max=cfg.r_max)

    energy = jnp.zeros(shape[0], vectors.dtype)
    if cfg.pair_repulsion:
        numbers = jnp.asarray(np.array(cfg.species))
        z_receiver = jnp.broadcast_to(numbers[species][:, None], shape)
        energy = jnp.asarray(ZBL(cfg).apply({"constants": folded["zbl"]}, r, numbers[senders], z_receiver))
    x, learned = None, jnp.zeros(shape[0], vectors.dtype)
    if cfg.embeddings:
        joint = JointEmbedding(cfg).apply(folded["joint_embedding"], graph.embedded)
        x = [(folded["embedding"][species] + joint)[:, None]]
    own = 0.0
    if x is not None and cfg.embedding_readout:
        own = LinearReadout(len(cfg.heads)).apply(folded["embedding_readout"], x[0][:, 0], graph.head)
    for t in range(cfg.num_interactions):
        part = folded[f"interactions_{t}"]
        up = [part["up"][species][:, None]] if x is None else [a @ w for a, w in zip(x, part["up"], strict=True)]
        messages = convolve_table(up, Tabulated(phi, first, part["radial"]), Y=Y, paths=paths(cfg, t), graph=graph)
        if "density" in part:
            count = density(phi, first, table=part["density"])
            norm = part["alpha"] + part["beta"] * count if "gate" in part else 1.0 + count
            messages = [m / norm[:, None, None, None] for m in messages]
        # [N, P, m, C] -> [N, m, P C], so that paths and channels are mixed by one matrix
        messages = [jnp.swapaxes(m, 1, 2).reshape(shape[0], m.shape[2], -1) for m in messages]
        messages = [
            species_linear(m, w[:, _rows(w, table)], slot=slot) for m, w in zip(messages, part["mix"], strict=True)
        ]
        if "gate" in part:
            messages = _nonlinear(messages, up, part=part)
        residual = []
        if "skip" in part:
            before = [part["embedding"][species][:, None]] if x is None else x
            residual = [
                a @ w if w.ndim == 2 else species_linear(a, w[:, table], slot=slot)
                for a, w in zip(before, part["skip"], strict=False)
            ]
        A = jnp.concatenate(messages, axis=1)
        x = []
        for L, (coefficients, w) in enumerate(zip(part["contraction"], part["linear"], strict=True)):
            degrees = range(1, cfg.correlation[t] + 1)
            monomials = [couplings.monomials(cfg.max_ell, L, degree=nu, so3=cfg.so3) for nu in degrees]
            of_species = (coefficients, jnp.zeros_like(slot)) if cfg.agnostic_product else (coefficients[table], slot)
            y = polynomial(A, of_species[0], tables=monomials, slot=of_species[1]) @ w
            x.append(y + residual[L] if L < len(residual) else y)
        scalars = x[0][:, 0]
        if (energies := readout(cfg, t)) is not None:
            learned += jnp.asarray(energies.apply(folded[f"readouts_{t}"], scalars, graph.head))
    head = graph.head
    energy = folded["scale"][head] * (energy + learned) + folded["shift"][head]
    return energy + own if cfg.embedding_readout else energy


def _nonlinear(messages: list[jax.Array], up: list[jax.Array], *, part: dict) -> list[jax.Array]:
    """What `NonLinearInteraction` does with normalised messages [N, 2l+1, C] per l."""
    own = [u @ w for u, w in zip(up, part["res"], strict=True)]
    messages = [m + own[l] if l < len(own) else m for l, m in enumerate(messages)]
    return [m @ w for m, w in zip(gated(messages, part["gate"]), part["out"], strict=True)]


def pair_index(cfg: ModelConfig, a: Array, *, b: Array) -> jax.Array:
    """Table of the pair of species a, b (rows of cfg.species) of receiver and sender.

    Unordered where radial functions know the sum of two radii alone.
    """
    if knows_species(cfg):
        return jnp.asarray(a * len(cfg.species) + b)
    if cfg.distance_transform == "none":
        return jnp.zeros(jnp.broadcast_shapes(a.shape, b.shape), jnp.int32)
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    return (high * (high + 1)) // 2 + low


def knows_species(cfg: ModelConfig) -> bool:
    """Whether radial functions depend on the species of receiver and sender beyond their radii."""
    return any("NonLinear" in cfg.interaction_name(t) for t in range(cfg.num_interactions))


def num_pairs(cfg: ModelConfig) -> int:
    """Tables a model needs."""
    if knows_species(cfg):
        return len(cfg.species) ** 2
    return 1 if cfg.distance_transform == "none" else len(cfg.species) * (len(cfg.species) + 1) // 2


def spline_weights(spline: Spline, r: jax.Array, *, pair: jax.Array, r_max: float) -> tuple[jax.Array, jax.Array]:
    """B-splines that are not zero at r and where their coefficients start.

    Args:
      r: [N, K] A; below `spline.start` the first polynomial goes on.
      pair: [N, K] table.

    Returns:
      phi [N, K, 6], zero from r_max on; first [N*K] int32 row of the stacked tables, -1 from r_max on.
    """
    u = (r - spline.start) / spline.step
    i = jnp.clip(jnp.floor(jax.lax.stop_gradient(u)), 0, spline.rows - TERMS)
    t = (u - i)[..., None]
    phi = jnp.zeros_like(t)
    for row in cardinal_pieces().astype(r.dtype):
        phi = phi * t + row
    inside = r < r_max
    first = jnp.where(inside, pair * spline.rows + i.astype(jnp.int32), -1)
    return jnp.where(inside[..., None], phi, 0.0), first.astype(jnp.int32).reshape(-1)


@cache
def cardinal_pieces() -> np.ndarray:
    """[6 powers, highest first; 6 splines]: polynomials in t of the uniform B-splines that overlap one interval."""
    from scipy.interpolate import BSpline, PPoly  # not at the top: few models need it

    pieces = PPoly.from_spline(BSpline.basis_element(np.arange(DEGREE + 2.0))).c  # [powers, intervals and end knots]
    pieces = pieces[:, DEGREE : DEGREE + TERMS] if pieces.shape[1] > TERMS else pieces
    return pieces[:, ::-1].copy()


def density(phi: jax.Array, first: jax.Array, *, table: jax.Array) -> jax.Array:
    """Learned neighbour count [N]: the sum of a tabulated [rows] function over neighbours."""
    rows = first.reshape(phi.shape[:2])[..., None] + jnp.arange(TERMS, dtype=first.dtype)
    return (phi * jnp.take(table, rows, mode="clip")).sum((1, 2))


def _rows(w: jax.Array, table: jax.Array) -> jax.Array:
    """Weights [C, S, D] of species, or [C, 1, D] for all."""
    return table if w.shape[1] > 1 else jnp.zeros(1, jnp.int32)
