"""The MACE potential: edge vectors and species in, one interaction energy per atom out."""

import math
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax import couplings, precision
from equijax.config import ModelConfig
from equijax.errors import needed
from equijax.graph.fields import Array, Topology
from equijax.nn.attention import AttentionInteraction
from equijax.nn.blocks import Geometry, Interaction, Product
from equijax.nn.embeddings import JointEmbedding
from equijax.nn.nonlinear import NonLinearInteraction
from equijax.nn.radial import ZBL, RadialBasis
from equijax.nn.readouts import LinearReadout, readout

# Blocks of a kind of their own; `Interaction` is all others.
BLOCKS = {
    "RealAgnosticResidualNonLinearInteractionBlock": NonLinearInteraction,
    "RealAgnosticAttResidualInteractionBlock": AttentionInteraction,
}


class MACE(nn.Module):
    """Scale-shifted MACE (Batatia et al., NeurIPS 2022; arXiv:2401.00096 for the foundation models)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, vectors: jax.Array, graph: Topology) -> jax.Array:
        """Interaction energies of atoms, without the isolated-atom energies E0.

        Args:
          vectors: [N, K, 3] receiver minus sender position, A; masked slots must be longer than r_max.
          graph: species, heads, senders and reverse of the edges.

        Returns:
          [N] eV, differentiable to any order.
        """
        cfg = self.config
        dtype, shape = vectors.dtype, vectors.shape[:2]
        r, Y = edge_harmonics(cfg, vectors)
        numbers = jnp.asarray(np.array(cfg.species))[graph.table][graph.slot]
        z_receiver = jnp.broadcast_to(numbers[:, None], shape)
        z_sender = numbers[graph.senders].reshape(shape)
        basis, cutoff = RadialBasis(cfg, name="radial")(r, z_sender, z_receiver)
        geometry = Geometry(Y, basis, cutoff)

        kernel = self.param("node_embedding", nn.initializers.normal(1.0), (len(cfg.species), cfg.channels))
        embedding = kernel.astype(dtype)[graph.table] / math.sqrt(len(cfg.species))
        x = [embedding[graph.slot][:, None, :]]
        if cfg.embeddings:
            embedded = needed(graph.embedded, "a model with embeddings reads numbers of each structure: there are none")
            x = [x[0] + JointEmbedding(cfg, name="joint_embedding")(embedded)[:, None, :]]
        energy = ZBL(cfg, name="zbl")(r, z_sender, z_receiver) if cfg.pair_repulsion else jnp.zeros(shape[0], dtype)
        embedding_readout = LinearReadout(len(cfg.heads), name="embedding_readout") if cfg.embedding_readout else None
        own = None if embedding_readout is None else embedding_readout(x[0][:, 0], graph.head)
        readouts = []
        for t in range(cfg.num_interactions):
            block = BLOCKS.get(cfg.interaction_name(t), Interaction)(cfg, t, name=f"interactions_{t}")
            messages, residual = block(x, None if cfg.embeddings else embedding, geometry, graph)
            x = Product(cfg, t, name=f"products_{t}")(messages, residual, graph)
            self.sow("intermediates", f"features_{t}", x)  # nothing, but for `equijax.descriptors`
            if (energies := readout(cfg, t, name=f"readouts_{t}")) is not None:
                readouts.append(energies(x[0][:, 0], graph.head))
        energy = self._scale_shift(energy, reduce(jnp.add, readouts), graph.head)
        return energy if own is None else energy + own

    def _scale_shift(self, pair: jax.Array, learned: jax.Array, head: Array) -> jax.Array:
        """Scale-shift acts on repulsion and readouts alike, as mace-torch does; a plain MACE has neither."""
        if not self.config.scale_shift:
            return pair + learned
        ones, zeros = np.ones(len(self.config.heads)), np.zeros(len(self.config.heads))
        scale = self.variable("constants", "scale", lambda: ones).value.astype(pair.dtype)
        shift = self.variable("constants", "shift", lambda: zeros).value.astype(pair.dtype)
        return scale[head] * (pair + learned) + shift[head]


@precision.exact
def edge_harmonics(config: ModelConfig, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lengths [N, K] A and real spherical harmonics [N, K, m] of edge vectors [N, K, 3], "component" normalised."""
    r = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
    u, Y = vectors / r[..., None], couplings.harmonics(config.max_ell)
    # products with constant matrices, at any order of derivative: few operations for XLA to compile
    forms = [u @ jnp.asarray(A[1:], u.dtype) + jnp.asarray(A[0], u.dtype) for A in Y.linear]
    return r, math.prod(forms[1:], start=forms[0]) @ jnp.asarray(Y.mix, u.dtype)
