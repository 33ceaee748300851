"""Functions of the edge length: cutoff, distance transforms, radial bases, the radial MLP and ZBL repulsion."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from ase.data import covalent_radii
from jax.typing import DTypeLike

from equijax.config import ModelConfig

BOHR_A = 0.529  # Bohr radius in A, the rounded value of mace-torch's ZBL term
COULOMB_EV_A = 14.3996  # e^2 / (4 pi eps0) in eV A, as there
ZBL_EXPONENTS = (3.2, 0.9423, 0.4028, 0.2016)  # Ziegler, Biersack, Littmark 1985, universal screening function
NUM_RADII = len(covalent_radii)


def envelope(r: jax.Array, r_max: jax.Array | float, *, p: int) -> jax.Array:
    """Polynomial cutoff 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), x = r / r_max; 0 beyond r_max.

    Value and the first two derivatives vanish at r_max (Gasteiger et al. 2020, Eq. 8). Shape of `r`, A.
    """
    x = r / r_max
    c1, c2, c3 = (p + 1.0) * (p + 2.0) / 2.0, p * (p + 2.0), p * (p + 1.0) / 2.0
    xp = jax.lax.integer_pow(x, p)
    return jnp.where(x < 1.0, 1.0 - xp * (c1 - x * (c2 - c3 * x)), 0.0)


def agnesi(r: jax.Array, r0: jax.Array, *, a: jax.Array, q: jax.Array, p: jax.Array) -> jax.Array:
    """Agnesi transform 1 / (1 + a x^q / (1 + x^(q-p))), x = r / r0 (Witt et al., J. Chem. Phys. 159, 164101, 2023)."""
    # both powers as one array: an exponential is among the operations that XLA takes longest to compile
    power = jnp.exp(jnp.log(r / r0)[..., None] * jnp.stack([q, q - p]))
    return 1.0 / (1.0 + a * power[..., 0] / (1.0 + power[..., 1]))


def soft(r: jax.Array, r0: jax.Array, *, alpha: jax.Array) -> jax.Array:
    """Tanh switch from 3/4 r0 for r << r0 to r for r >> r0."""
    low, high = 0.75 * r0, (4.0 / 3.0) * r0
    switch = 0.5 * (1.0 + jnp.tanh(alpha / (high - low) * (r - 0.5 * (low + high))))
    return low + (r - low) * switch


class RadialBasis(nn.Module):
    """Radial functions and cutoff of every edge slot."""

    config: ModelConfig

    @nn.compact
    def __call__(self, r: jax.Array, z_sender: jax.Array, z_receiver: jax.Array) -> tuple[jax.Array, jax.Array]:
        """r [N, K] in A and atomic numbers [N, K] -> basis [N, K, B] (cutoff applied if the model does), cutoff."""
        cfg = self.config
        cutoff = envelope(r, cfg.r_max, p=cfg.cutoff_power)
        x = self._transform(r, z_sender, z_receiver)[..., None]
        basis = getattr(self, "_" + cfg.radial_basis)(x)
        return (basis * cutoff[..., None] if cfg.apply_cutoff else basis), cutoff

    def _transform(self, r: jax.Array, z_sender: jax.Array, z_receiver: jax.Array) -> jax.Array:
        kind = self.config.distance_transform
        if kind == "none":
            return r
        radii = self._constant("covalent_radii", covalent_radii, r.dtype)
        r0 = radii[z_sender] + radii[z_receiver]
        if kind == "soft":
            return soft(r, r0, alpha=self._constant("alpha", 4.0, r.dtype))
        values = {"a": 1.0805, "q": 0.9183, "p": 4.5791}  # published constants of the transform
        return agnesi(r, 0.5 * r0, **{k: self._constant(k, v, r.dtype) for k, v in values.items()})

    def _bessel(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        weights = self._constant("bessel_weights", np.pi / cfg.r_max * np.arange(1, cfg.num_radial + 1), x.dtype)
        return math.sqrt(2.0 / cfg.r_max) * jnp.sin(weights * x) / x

    def _gaussian(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        centres = self._constant("gaussian_weights", np.linspace(0.0, cfg.r_max, cfg.num_radial), x.dtype)
        return jnp.exp(-0.5 / (cfg.r_max / (cfg.num_radial - 1)) ** 2 * (x - centres) ** 2)

    def _chebyshev(self, x: jax.Array) -> jax.Array:
        # T_n by its recursion: a polynomial, so finite with all derivatives at x = +-1 and beyond
        previous, current = jnp.ones_like(x), x
        out = [current]
        for _ in range(self.config.num_radial - 1):
            previous, current = current, 2.0 * x * current - previous
            out.append(current)
        return jnp.concatenate(out, axis=-1)

    def _constant(self, name: str, value: npt.ArrayLike, dtype: DTypeLike) -> jax.Array:
        return jnp.asarray(self.variable("constants", name, lambda: np.asarray(value, np.float64)).value, dtype)


class ZBL(nn.Module):
    """Screened nuclear repulsion per receiver (Ziegler, Biersack, Littmark 1985), as in mace-torch.

    V_n = 1/2 sum_k 14.3996 Z_n Z_k / r phi(r / a) envelope(r; R_n + R_k),   a = 0.529 c / (Z_n^x + Z_k^x)
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, r: jax.Array, z_sender: jax.Array, z_receiver: jax.Array) -> jax.Array:
        """r [N, K] in A, atomic numbers [N, K] -> [N] eV."""
        defaults = {
            "c": [0.1818, 0.5099, 0.2802, 0.02817],
            "a_exp": 0.300,
            "a_prefactor": 0.4543,
            "covalent_radii": covalent_radii,
        }
        const = {
            k: jnp.asarray(self.variable("constants", k, lambda v=v: np.asarray(v, np.float64)).value, r.dtype)
            for k, v in defaults.items()
        }
        zs, zr = z_sender.astype(r.dtype), z_receiver.astype(r.dtype)
        a = const["a_prefactor"] * BOHR_A / (zs ** const["a_exp"] + zr ** const["a_exp"])
        phi = (const["c"] * jnp.exp(-jnp.asarray(ZBL_EXPONENTS, r.dtype) * (r / a)[..., None])).sum(-1)
        radius = const["covalent_radii"][z_sender] + const["covalent_radii"][z_receiver]
        pair = COULOMB_EV_A * zs * zr / r * phi * envelope(r, radius, p=self.config.zbl_power)
        return 0.5 * pair.sum(-1)


class RadialMLP(nn.Module):
    """Bias-free MLP of the radial basis up to its last hidden layer, and the last layer's weights.

    The last layer is returned, not applied: how it is applied is the convolution's choice. Each layer is
    `act(x W / sqrt(fan_in))` with the activation normalised to unit second moment (e3nn FullyConnectedNet).
    """

    config: ModelConfig
    num_paths: int
    channels: int

    @nn.compact
    def __call__(self, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
        """basis [N, K, B] -> hidden [N, K, U], last layer [U, P, C] including its 1/sqrt(U)."""
        sizes = (self.config.num_radial, *self.config.radial_mlp)
        x = basis.reshape(-1, basis.shape[-1])  # the transpose of a plain matrix product is one: several times faster
        norm = self.variable("constants", "silu", lambda: np.asarray(activation_norm("silu"))).value
        norm = jnp.asarray(norm, x.dtype)
        for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            w = self.param(f"layer{i}", nn.initializers.normal(1.0), (fan_in, fan_out))
            x = norm * nn.silu(x @ (w.astype(x.dtype) / math.sqrt(fan_in)))
        shape = (sizes[-1], self.num_paths, self.channels)
        last = self.param(f"layer{len(sizes) - 1}", nn.initializers.normal(1.0), shape)
        return x.reshape(*basis.shape[:-1], -1), last.astype(x.dtype) / math.sqrt(sizes[-1])


def activation_norm(name: str) -> float:
    """1 / sqrt(E[f(z)^2]), z standard normal: e3nn's second-moment normalisation, by Gauss-Hermite quadrature."""
    z, weights = np.polynomial.hermite_e.hermegauss(200)
    values = np.asarray(e3nn_activation(name)(z))
    return float((weights * values**2).sum() / weights.sum()) ** -0.5


def e3nn_activation(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The activation called `name` in a ModelConfig, as a function of an array."""
    return {
        "silu": lambda x: x / (1.0 + np.exp(-x)),
        "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
        "tanh": np.tanh,
        "abs": np.abs,
        "none": lambda x: x,
    }[name]
