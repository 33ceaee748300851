"""Readouts: energies of atoms from their scalars."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.config import ModelConfig
from equijax.graph.fields import Array
from equijax.nn.radial import activation_norm

_normal = nn.initializers.normal(1.0)


class LinearReadout(nn.Module):
    """Energies of all heads from scalars, s W / sqrt(C)."""

    num_heads: int

    @nn.compact
    def __call__(self, scalars: jax.Array, head: Array) -> jax.Array:
        """scalars [N, C], head [N] -> [N] eV before scale and shift."""
        channels = scalars.shape[-1]
        w = self.param("linear", _normal, (channels, self.num_heads)).astype(scalars.dtype)
        return _pick(scalars @ (w / math.sqrt(channels)), head)


class NonLinearReadout(nn.Module):
    """Energies by an MLP whose hidden units belong to one head each.

    One hidden layer; two, with biases after the first, in mace-torch's NonLinearBiasReadoutBlock.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, scalars: jax.Array, head: Array) -> jax.Array:
        """scalars [N, C], head [N] -> [N] eV before scale and shift."""
        cfg = self.config
        num_heads, channels = len(cfg.heads), scalars.shape[-1]
        width = num_heads * cfg.readout_mlp
        w1 = self.param("linear_1", _normal, (channels, width)).astype(scalars.dtype)
        w2 = self.param("linear_2", _normal, (width, num_heads)).astype(scalars.dtype)
        gate = {"silu": nn.silu, "tanh": jnp.tanh, "abs": jnp.abs, "none": lambda x: x}[cfg.gate]
        norm = self.variable("constants", "gate", lambda: np.asarray(activation_norm(cfg.gate))).value
        hidden = norm.astype(scalars.dtype) * gate(scalars @ (w1 / math.sqrt(channels)))
        # unit j belongs to head j // readout_mlp; the other heads' units are masked out
        owner = np.arange(width) // cfg.readout_mlp
        hidden = hidden * (owner == head[:, None])
        if cfg.readout == "NonLinearReadoutBlock":
            return _pick(hidden @ (w2 / math.sqrt(width)), head)
        middle = self.param("linear_mid", _normal, (width, width)).astype(scalars.dtype)
        inner, outer = (
            self.param(name, nn.initializers.zeros, (size,)).astype(scalars.dtype)
            for name, size in (("bias_mid", width), ("bias_2", num_heads))
        )
        hidden = norm.astype(scalars.dtype) * gate(hidden @ (middle / math.sqrt(width)) + inner)
        hidden = hidden * (owner == head[:, None])
        return _pick(hidden @ (w2 / math.sqrt(width)) + outer, head)


def readout(config: ModelConfig, t: int, *, name: str | None = None) -> nn.Module | None:
    """Readout after interaction t: an MLP after the last of several, linear elsewhere, or none."""
    if 0 < t == config.num_interactions - 1:
        return NonLinearReadout(config, name=name)
    if config.last_readout_only:
        return None
    return LinearReadout(len(config.heads), name=name)


def _pick(values: jax.Array, head: Array) -> jax.Array:
    return values[:, 0] if values.shape[1] == 1 else jnp.take_along_axis(values, head[:, None], axis=1)[:, 0]
