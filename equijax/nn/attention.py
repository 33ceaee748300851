"""Radial functions that see the scalars of both atoms (mace-torch's RealAgnosticAttResidualInteractionBlock)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.config import ModelConfig
from equijax.graph.fields import Topology
from equijax.nn import convolution
from equijax.nn.blocks import Geometry, Linear, PathLinear
from equijax.nn.radial import activation_norm

DOWN, UNITS = 64, (256, 256, 256)  # scalars of each atom, and hidden units: fixed in mace-torch


class AttentionInteraction(nn.Module):
    """Message passing step t, to be used in the place of `blocks.Interaction`."""

    config: ModelConfig
    t: int

    @nn.compact
    def __call__(
        self, x: list[jax.Array], embedding: jax.Array | None, geometry: Geometry, graph: Topology
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """As `blocks.Interaction.__call__`: messages [N, 2l+1, C] for l = 0..max_ell, residual features per l."""
        cfg, t = self.config, self.t
        lmax, paths, width = cfg.input_lmax(t), convolution.paths(cfg, t), cfg.edge_width(t)
        residual = Linear(min(lmax, cfg.output_lmax(t)), name="skip_tp")(x)
        up = Linear(lmax, (width,) * (lmax + 1), name="linear_up")(x)
        down = Linear(0, (DOWN,), name="linear_down")(x)[0][:, 0]  # [N, D]
        basis = geometry.basis
        near = graph.gather(down, graph.senders, graph.reverse)
        own = jnp.broadcast_to(down[:, None], near.shape)
        hidden, last = self._radial(jnp.concatenate([basis, near, own], axis=-1), len(paths), width)
        cutoff = jnp.where(geometry.cutoff > 0, 1.0, 0.0).astype(basis.dtype) if cfg.apply_cutoff else geometry.cutoff
        messages = convolution.convolve(
            up, hidden * cutoff[..., None], last=last, Y=geometry.Y, paths=paths, graph=graph
        )
        messages = PathLinear(paths, (cfg.channels,) * (cfg.max_ell + 1), name="linear")(messages)
        return [m / cfg.avg_num_neighbors for m in messages], residual

    def _radial(self, features: jax.Array, num_paths: int, width: int) -> tuple[jax.Array, jax.Array]:
        """Hidden units [N, K, U] of edge features [N, K, B + 2 D], and the last layer [U, P, C]."""
        sizes, x = (features.shape[-1], *UNITS), features.reshape(-1, features.shape[-1])
        norm = self.variable("constants", "silu", lambda: np.asarray(activation_norm("silu"))).value
        norm = jnp.asarray(norm, x.dtype)
        normal = nn.initializers.normal(1.0)
        for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            w = self.param(f"radial{i}", normal, (fan_in, fan_out)).astype(x.dtype)
            x = norm * nn.silu(x @ (w / math.sqrt(fan_in)))
        last = self.param(f"radial{len(UNITS)}", normal, (sizes[-1], num_paths, width)).astype(x.dtype)
        return x.reshape(*features.shape[:-1], -1), last / math.sqrt(sizes[-1])
