"""Interaction, product and readout blocks. Features are [N, 2l+1, C] arrays per degree l, channel innermost.

Parameters hold the raw values of mace-torch; the normalisations of e3nn (1/sqrt(fan-in)) are applied here.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax import couplings
from equijax.config import ModelConfig
from equijax.graph.fields import Topology
from equijax.graph.shapes import MAX_DENSE_SPECIES
from equijax.nn import convolution
from equijax.nn.contraction import SymmetricContraction
from equijax.nn.radial import RadialMLP, activation_norm

_normal = nn.initializers.normal(1.0)


class Linear(nn.Module):
    """y_l = x_l W_l / sqrt(C_in), one matrix per degree l (e3nn o3.Linear)."""

    lmax: int

    @nn.compact
    def __call__(self, x: list[jax.Array]) -> list[jax.Array]:
        """[N, 2l+1, C] for each l -> the same shapes."""
        channels = x[0].shape[-1]
        return [
            x[l] @ (self.param(f"l{l}", _normal, (channels, channels)).astype(x[l].dtype) / math.sqrt(channels))
            for l in range(self.lmax + 1)
        ]


class PathLinear(nn.Module):
    """m_l = sum_p A_lp W_lp / sqrt(P_l C): mixes the convolution's paths of each degree."""

    paths: tuple[couplings.Path, ...]

    @nn.compact
    def __call__(self, messages: list[jax.Array]) -> list[jax.Array]:
        """[N, P_l, 2l+1, C] for each l -> [N, 2l+1, C]."""
        out = []
        for l, message in enumerate(messages):
            num_paths, channels = message.shape[1], message.shape[-1]
            w = self.param(f"l{l}", _normal, (num_paths, channels, channels)).astype(message.dtype)
            out.append(jnp.einsum("npmc,pcd->nmd", message, w / math.sqrt(num_paths * channels)))
        return out


class SkipTP(nn.Module):
    """Per-species linear y_l = x_l W_l[:, z_n, :] / sqrt(C Z) (e3nn FullyConnectedTensorProduct with one-hot)."""

    lmax: int
    num_species: int

    @nn.compact
    def __call__(self, x: list[jax.Array], slot: jax.Array, table: jax.Array) -> list[jax.Array]:
        """[N, 2l+1, C] for each l, slot [N] rows of table [U] -> the same shapes for l = 0..lmax."""
        channels = x[0].shape[-1]
        norm = 1.0 / math.sqrt(channels * self.num_species)
        out = []
        for l in range(self.lmax + 1):
            w = self.param(f"l{l}", _normal, (channels, self.num_species, channels)).astype(x[l].dtype)
            out.append(species_linear(x[l], w[:, table] * norm, slot=slot))
        return out


def species_linear(x: jax.Array, w: jax.Array, *, slot: jax.Array) -> jax.Array:
    """y[n] = x[n] w[:, slot[n]]: x [N, m, C], w [C, U, D], slot [N] -> [N, m, D]."""
    num = w.shape[1]
    if num == 1:
        return x @ w[:, 0]
    if num > MAX_DENSE_SPECIES:
        return jnp.einsum("nmc,cnd->nmd", x, w[:, slot])
    one_hot = jax.nn.one_hot(slot, num, dtype=x.dtype)
    return jnp.einsum("nmcz,czd->nmd", x[..., None] * one_hot[:, None, None, :], w)


class Geometry(NamedTuple):
    """Functions of the edge vectors that every interaction reads."""

    Y: jax.Array  # [N, K, m] spherical harmonics
    basis: jax.Array  # [N, K, radial functions]
    cutoff: jax.Array  # [N, K] envelope


class Interaction(nn.Module):
    """Message passing step t: linear_up, convolution with neighbours, linear, normalisation, species-wise skip."""

    config: ModelConfig
    t: int

    @nn.compact
    def __call__(
        self, x: list[jax.Array], embedding: jax.Array, geometry: Geometry, graph: Topology
    ) -> tuple[list[jax.Array], list[jax.Array] | None]:
        """Features [N, 2l+1, C] per l -> messages [N, 2l+1, C] for l = 0..max_ell, residual features per l or None."""
        cfg, t = self.config, self.t
        name = cfg.interaction_name(t)
        lmax = cfg.input_lmax(t)
        residual = None
        if "Residual" in name:
            # the output may hold degrees the input lacks: those have no path and stay absent (zero)
            skip = SkipTP(min(lmax, cfg.output_lmax(t)), len(cfg.species), name="skip_tp")
            residual = skip(x, graph.slot, graph.table)
        paths = couplings.conv_paths(lmax, cfg.max_ell, out_lmax=cfg.max_ell)
        hidden, last = RadialMLP(cfg, len(paths), name="radial_mlp")(geometry.basis)
        if not cfg.apply_cutoff:
            hidden = hidden * geometry.cutoff[..., None]
        up = Linear(lmax, name="linear_up")
        if t == 0 and graph.table.shape[0] <= MAX_DENSE_SPECIES:
            by_species = up([embedding[:, None, :]])[0][:, 0]
            messages = convolution.convolve_species(by_species, hidden, last=last, Y=geometry.Y, graph=graph)
        else:
            messages = convolution.convolve(up(x), hidden, last=last, Y=geometry.Y, paths=paths, graph=graph)
        messages = PathLinear(paths, name="linear")(messages)
        norm = self._density(geometry) if "Density" in name else cfg.avg_num_neighbors
        messages = [m / norm for m in messages]
        if residual is None:
            messages = SkipTP(cfg.max_ell, len(cfg.species), name="skip_tp")(messages, graph.slot, graph.table)
        return messages, residual

    def _density(self, geometry: Geometry) -> jax.Array:
        """1 + sum_k tanh(d_k^2): the learned neighbour count [N, 1, 1]."""
        w = self.param("density", _normal, (self.config.num_radial, 1)).astype(geometry.basis.dtype)
        edge = jnp.tanh((geometry.basis @ (w / math.sqrt(self.config.num_radial))) ** 2)[..., 0]
        if not self.config.apply_cutoff:
            edge = edge * geometry.cutoff
        return 1.0 + edge.sum(1)[:, None, None]


class Product(nn.Module):
    """Symmetric contraction to every output degree, linear, plus the residual."""

    config: ModelConfig
    t: int

    @nn.compact
    def __call__(self, messages: list[jax.Array], residual: list[jax.Array] | None, graph: Topology) -> list[jax.Array]:
        """[N, 2l+1, C] for l = 0..max_ell -> [N, 2L+1, C] for L = 0..output_lmax."""
        cfg, t = self.config, self.t
        A = jnp.concatenate(messages, axis=1)
        out = [
            SymmetricContraction(
                cfg.max_ell,
                L,
                cfg.correlation[t],
                len(cfg.species),
                cfg.contraction_paths[t][L],
                name=f"contraction_l{L}",
            )(A, graph.slot, graph.table)
            for L in range(cfg.output_lmax(t) + 1)
        ]
        out = Linear(cfg.output_lmax(t), name="linear")(out)
        if residual is not None:
            out = [y + residual[L] if L < len(residual) else y for L, y in enumerate(out)]
        return out


class LinearReadout(nn.Module):
    """Energies of all heads from scalars, s W / sqrt(C)."""

    num_heads: int

    @nn.compact
    def __call__(self, scalars: jax.Array, head: jax.Array) -> jax.Array:
        """scalars [N, C], head [N] -> [N] eV before scale and shift."""
        channels = scalars.shape[-1]
        w = self.param("linear", _normal, (channels, self.num_heads)).astype(scalars.dtype)
        return _pick(scalars @ (w / math.sqrt(channels)), head)


class NonLinearReadout(nn.Module):
    """Energies by a one-hidden-layer MLP whose hidden units belong to one head each."""

    config: ModelConfig

    @nn.compact
    def __call__(self, scalars: jax.Array, head: jax.Array) -> jax.Array:
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
        return _pick(hidden @ (w2 / math.sqrt(width)), head)


def readout(config: ModelConfig, t: int, *, name: str | None = None) -> nn.Module:
    """Readout after interaction t: an MLP after the last of several, linear elsewhere."""
    if 0 < t == config.num_interactions - 1:
        return NonLinearReadout(config, name=name)
    return LinearReadout(len(config.heads), name=name)


def _pick(values: jax.Array, head: jax.Array) -> jax.Array:
    return values[:, 0] if values.shape[1] == 1 else jnp.take_along_axis(values, head[:, None], axis=1)[:, 0]
