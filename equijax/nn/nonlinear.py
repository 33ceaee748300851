"""The non-linear interaction of MACE-MH and MACE-OMOL (mace-torch's RealAgnosticResidualNonLinearInteractionBlock).

    m_n = linear(sum_k R(r_nk, z_k, z_n) Y(r_nk) linear_up(h_k)) / (alpha + beta sum_k d(r_nk, z_k, z_n))
    A_n = linear_out(gated(m_n + linear_res(linear_up(h_n))))

R and d are MLPs with LayerNorm that also see an embedding of the two species.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.config import ModelConfig
from equijax.errors import InputError
from equijax.graph.fields import Topology
from equijax.graph.shapes import MAX_DENSE_SPECIES
from equijax.nn import convolution
from equijax.nn.blocks import Geometry, Linear, PathLinear
from equijax.nn.radial import activation_norm

LAYER_NORM_EPS = 1e-5  # that of torch.nn.LayerNorm
DENSITY_MLP = (64,)  # hidden units of the density
ALPHA = 20.0  # at the start of training; beta is 0 there
_normal = nn.initializers.normal(1.0)


class NonLinearInteraction(nn.Module):
    """Message passing step t, to be used in the place of `blocks.Interaction`."""

    config: ModelConfig
    t: int

    @nn.compact
    def __call__(
        self, x: list[jax.Array], embedding: jax.Array | None, geometry: Geometry, graph: Topology
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """As `blocks.Interaction.__call__`: messages [N, 2l+1, C] for l = 0..max_ell, residual features per l."""
        cfg, t = self.config, self.t
        lmax, paths = cfg.input_lmax(t), convolution.paths(cfg, t)
        residual = Linear(min(lmax, cfg.output_lmax(t)), name="skip_tp")(x)
        hidden, last, density = EdgeFunctions(cfg, t, name="edges")(geometry, graph)
        linear_up = Linear(lmax, (cfg.edge_width(t),) * (lmax + 1), name="linear_up")
        up = linear_up(x)
        if t == 0 and embedding is not None and graph.table.shape[0] <= MAX_DENSE_SPECIES:
            by_species = linear_up([embedding[:, None, :]])[0][:, 0]
            messages = convolution.convolve_species(by_species, hidden, last=last, Y=geometry.Y, graph=graph)
        else:
            messages = convolution.convolve(up, hidden, last=last, Y=geometry.Y, paths=paths, graph=graph)
        widths = gate_widths(cfg)
        messages = PathLinear(paths, widths, name="linear")(messages)
        alpha = self.param("alpha", lambda _: np.asarray(ALPHA)).astype(hidden.dtype)
        beta = self.param("beta", lambda _: np.asarray(0.0)).astype(hidden.dtype)
        messages = [m / (alpha + beta * density.sum(1))[:, None, None] for m in messages]
        own = Linear(lmax, widths[: lmax + 1], name="linear_res")(up)
        messages = [m + own[l] if l <= lmax else m for l, m in enumerate(messages)]
        norms = jnp.asarray(self.variable("constants", "gate", gate_norms).value, hidden.dtype)
        return Linear(cfg.max_ell, name="linear_out")(gated(messages, norms)), residual


class EdgeFunctions(nn.Module):
    """Radial functions and density of every edge slot, which depend on the length and on the two species."""

    config: ModelConfig
    t: int

    @nn.compact
    def __call__(self, geometry: Geometry, graph: Topology) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Hidden units [N, K, U+1], last layer [U+1, P, C] with the bias as its last row, density [N, K].

        All of an edge slot is zero beyond the cutoff.
        """
        cfg, basis = self.config, geometry.basis
        num, channels = len(cfg.species), cfg.channels
        species = [
            self.param(name, _normal, (num, channels)).astype(basis.dtype)[graph.table] / math.sqrt(num)
            for name in ("source", "target")
        ]
        # a model whose basis has the cutoff already ends where it is zero, with a step
        inside = jnp.where(geometry.cutoff > 0, 1.0, 0.0).astype(basis.dtype)
        cutoff = inside if cfg.apply_cutoff else geometry.cutoff
        width, count = cfg.edge_width(self.t), len(convolution.paths(cfg, self.t))
        hidden, w, b = NormedMLP((*cfg.radial_mlp, count * width), name="radial_mlp")(basis, species, graph)
        hidden = jnp.concatenate([hidden, jnp.ones_like(hidden[..., :1])], axis=-1) * cutoff[..., None]
        last = jnp.concatenate([w.T, b[None]]).reshape(-1, count, width)
        units, w, b = NormedMLP((*DENSITY_MLP, 1), name="density_mlp")(basis, species, graph)
        return hidden, last, jnp.tanh((units @ w[0] + b) ** 2) * cutoff


class NormedMLP(nn.Module):
    """MLP of edge features [basis, source[z_k], target[z_n]]: x -> silu(LayerNorm(W x + b)), and a last layer W x + b.

    Weights are [out, in], as torch has them. The last layer is returned, not applied. The species enter the first layer
    as rows of a table of its values, so that no edge holds their embeddings.
    """

    sizes: tuple[int, ...]  # of the hidden layers and of the result

    @nn.compact
    def __call__(
        self, basis: jax.Array, species: list[jax.Array], graph: Topology
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """basis [N, K, B], source and target [S, C] -> hidden units [N, K, U], last weights [out, U] and bias [out]."""
        n, k, num = basis.shape
        fan_in = num + sum(table.shape[1] for table in species)
        slot = jnp.asarray(graph.slot)
        rows = slot[graph.senders], jnp.repeat(slot, k, total_repeat_length=n * k)
        x = basis.reshape(n * k, num)
        for i, fan_out in enumerate(self.sizes):
            w, b = self._layer(i, fan_in, fan_out, basis.dtype)
            if i == len(self.sizes) - 1:
                return x.reshape(n, k, -1), w, b
            if i == 0:
                first, *by_species = jnp.split(w, np.cumsum([num, species[0].shape[1]]), axis=1)
                x = x @ first.T
                for table, part, row in zip(species, by_species, rows, strict=True):
                    x = x + (table @ part.T)[row]
            else:
                x = x @ w.T
            x = nn.silu(self._normalised(i, x + b))
            fan_in = fan_out
        raise InputError(f"an MLP of sizes {self.sizes} has no layer")

    def _layer(self, i: int, fan_in: int, fan_out: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        draw = nn.initializers.uniform(1 / math.sqrt(fan_in))
        w = self.param(f"layer{i}", draw, (fan_out, fan_in))
        return w.astype(dtype), self.param(f"bias{i}", draw, (fan_out,)).astype(dtype)

    def _normalised(self, i: int, x: jax.Array) -> jax.Array:
        """LayerNorm over the units (Ba, Kiros, Hinton 2016, Eq. 4)."""
        scale = self.param(f"scale{i}", nn.initializers.ones, x.shape[-1:]).astype(x.dtype)
        offset = self.param(f"offset{i}", nn.initializers.zeros, x.shape[-1:]).astype(x.dtype)
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS) * scale + offset


def gated(x: list[jax.Array], norms: jax.Array) -> list[jax.Array]:
    """silu of the scalars, and sigmoid gates on all other components: [N, 2l+1, C] from `gate_widths` to C per l.

    The first C scalars stay scalars; the next C gate l = 1, the next l = 2, and so on. `norms` [2] are the factors
    of the two activations.
    """
    scalars, *gates = jnp.split(x[0], len(x), axis=-1)
    rest = [y * (norms[1] * nn.sigmoid(gate)) for y, gate in zip(x[1:], gates, strict=True)]
    return [norms[0] * nn.silu(scalars), *rest]


def gate_widths(config: ModelConfig) -> tuple[int, ...]:
    """Channels of each degree that `gated` takes."""
    return (config.channels * (config.max_ell + 1), *(config.channels,) * config.max_ell)


def gate_norms() -> np.ndarray:
    """[2] factors of silu and sigmoid, normalised to a second moment of 1."""
    return np.array([activation_norm("silu"), activation_norm("sigmoid")])
