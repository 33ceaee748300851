"""Numbers of a whole structure, such as its charge and spin, as features of its atoms."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.config import ModelConfig
from equijax.graph.fields import Array


class JointEmbedding(nn.Module):
    """silu(W [e_1, e_2, ..]) with e_i a row of a table or an MLP of one number (mace-torch's GenericJointEmbedding).

    Weights are [out, in], as torch has them; activations are not normalised.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, embedded: Array) -> jax.Array:
        """Numbers [N, F] -> features [N, C] to add to those of the species."""
        parts = []
        for i, spec in enumerate(self.config.embeddings):
            x = embedded[:, i : i + 1]
            if spec.classes:
                rows = self._weight(f"{spec.name}_table", (spec.classes, spec.width), x.dtype)
                parts.append(rows[(x[:, 0] + spec.offset).astype(jnp.int32)])
                continue
            for layer, fan_in in ((0, 1), (2, spec.width)):
                x = x @ self._weight(f"{spec.name}_layer{layer}", (spec.width, fan_in), x.dtype).T
                if spec.bias:
                    x = x + self._weight(f"{spec.name}_bias{layer}", (spec.width,), x.dtype)
                x = nn.silu(x) if layer == 0 else x
            parts.append(x)
        joined = jnp.concatenate(parts, axis=-1)
        return nn.silu(joined @ self._weight("project", (self.config.channels, joined.shape[-1]), joined.dtype).T)

    def _weight(self, name: str, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return self.param(name, nn.initializers.normal(shape[-1] ** -0.5), shape).astype(dtype)
