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
from equijax.graph.fields import Array, Topology
from equijax.graph.shapes import MAX_DENSE_SPECIES
from equijax.nn import convolution
from equijax.nn.contraction import SymmetricContraction
from equijax.nn.radial import RadialMLP

_normal = nn.initializers.normal(1.0)


class Linear(nn.Module):
    """y_l = x_l W_l / sqrt(C_in), one matrix per degree l (e3nn o3.Linear)."""

    lmax: int
    widths: tuple[int, ...] | None = None  # channels of each degree of the result; None: as they come

    @nn.compact
    def __call__(self, x: list[jax.Array]) -> list[jax.Array]:
        """[N, 2l+1, C] for each l -> [N, 2l+1, widths[l]]."""
        channels = x[0].shape[-1]
        widths = self.widths or (channels,) * (self.lmax + 1)
        return [
            x[l] @ (self.param(f"l{l}", _normal, (channels, widths[l])).astype(x[l].dtype) / math.sqrt(channels))
            for l in range(self.lmax + 1)
        ]


class PathLinear(nn.Module):
    """m_l = sum_p A_lp W_lp / sqrt(P_l C): mixes the convolution's paths of each degree."""

    paths: tuple[couplings.Path, ...]
    widths: tuple[int, ...]  # channels of each degree of the result

    @nn.compact
    def __call__(self, messages: list[jax.Array]) -> list[jax.Array]:
        """[N, P_l, 2l+1, C] for each l -> [N, 2l+1, widths[l]]."""
        out = []
        for l, message in enumerate(messages):
            num_paths, channels = message.shape[1], message.shape[-1]
            w = self.param(f"l{l}", _normal, (num_paths, channels, self.widths[l])).astype(message.dtype)
            out.append(jnp.einsum("npmc,pcd->nmd", message, w / math.sqrt(num_paths * channels)))
        return out


class SkipTP(nn.Module):
    """Per-species linear y_l = x_l W_l[:, z_n, :] / sqrt(C Z) (e3nn FullyConnectedTensorProduct with one-hot)."""

    lmax: int
    num_species: int

    @nn.compact
    def __call__(self, x: list[jax.Array], slot: Array, table: Array) -> list[jax.Array]:
        """[N, 2l+1, C] for each l, slot [N] rows of table [U] -> the same shapes for l = 0..lmax."""
        channels = x[0].shape[-1]
        norm = 1.0 / math.sqrt(channels * self.num_species)
        out = []
        for l in range(self.lmax + 1):
            w = self.param(f"l{l}", _normal, (channels, self.num_species, channels)).astype(x[l].dtype)
            out.append(species_linear(x[l], w[:, table] * norm, slot=slot))
        return out


def species_linear(x: jax.Array, w: jax.Array, *, slot: Array) -> jax.Array:
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
        self, x: list[jax.Array], embedding: jax.Array | None, geometry: Geometry, graph: Topology
    ) -> tuple[list[jax.Array], list[jax.Array] | None]:
        """Features [N, 2l+1, C] per l -> messages [N, 2l+1, C] for l = 0..max_ell, residual features per l or None.

        `embedding` [S, C] of each species is what the first interaction's x has; None if x differs within a species.
        """
        cfg, t = self.config, self.t
        name = cfg.interaction_name(t)
        lmax = cfg.input_lmax(t)
        residual = None
        if "Residual" in name:
            # the output may hold degrees the input lacks: those have no path and stay absent (zero)
            skip = SkipTP(min(lmax, cfg.output_lmax(t)), len(cfg.species), name="skip_tp")
            residual = skip(x, graph.slot, graph.table)
        paths, width = convolution.paths(cfg, t), cfg.edge_width(t)
        hidden, last = RadialMLP(cfg, len(paths), width, name="radial_mlp")(geometry.basis)
        if not cfg.apply_cutoff:
            hidden = hidden * geometry.cutoff[..., None]
        up = Linear(lmax, (width,) * (lmax + 1), name="linear_up")
        if t == 0 and embedding is not None and graph.table.shape[0] <= MAX_DENSE_SPECIES:
            by_species = up([embedding[:, None, :]])[0][:, 0]
            messages = convolution.convolve_species(by_species, hidden, last=last, Y=geometry.Y, graph=graph)
        else:
            messages = convolution.convolve(up(x), hidden, last=last, Y=geometry.Y, paths=paths, graph=graph)
        messages = PathLinear(paths, (cfg.channels,) * (cfg.max_ell + 1), name="linear")(messages)
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
        slot, table = graph.slot, graph.table
        if cfg.agnostic_product:
            slot, table = jnp.zeros_like(slot), np.zeros(1, np.int32)
        out = [
            SymmetricContraction(
                cfg.max_ell,
                L,
                cfg.correlation[t],
                cfg.product_species,
                cfg.contraction_paths[t][L],
                cfg.so3,
                name=f"contraction_l{L}",
            )(A, slot, table)
            for L in range(cfg.output_lmax(t) + 1)
        ]
        out = Linear(cfg.output_lmax(t), name="linear")(out)
        if residual is not None:
            out = [y + residual[L] if L < len(residual) else y for L, y in enumerate(out)]
        return out
