"""What a model knows of each atom's surroundings: the node features that its interactions end with."""

from collections.abc import Sequence
from functools import partial
from typing import cast

import ase
import jax
import jraph
import numpy as np

from equijax import graph, potential
from equijax.config import Compute, ModelConfig
from equijax.errors import InputError
from equijax.graph.near import within_r_max
from equijax.nn.mace import MACE
from equijax.potential import Potential


def descriptors(
    ff: Potential,
    images: Sequence[ase.Atoms],
    *,
    invariants_only: bool = True,
    num_layers: int | None = None,
    compute: Compute = Compute(),
) -> list[np.ndarray]:
    """Node features after each interaction, as mace-torch's `get_descriptors` orders them.

    Args:
      ff: a ForceField; not a specialised one, whose features are scaled otherwise.
      images: structures.
      invariants_only: of each interaction the C scalars alone; else every degree l in turn, [C, 2l+1] each, in the
        order of e3nn (l = 1: x, y, z).
      num_layers: of the first interactions; None for all.
      compute: dtype.

    Returns:
      per structure [N, features], in the dtype of the computation.

    Raises:
      InputError: a structure the model cannot describe; a specialised model; more layers than there are.
    """
    config = ff.config
    if not isinstance(config, ModelConfig) or config.spline is not None:
        raise InputError("descriptors are those of a plain MACE: this model is specialised, or no MACE")
    layers = config.num_interactions if num_layers is None else num_layers
    if not 1 <= layers <= config.num_interactions:
        raise InputError(f"num_layers = {num_layers}: expected 1 to {config.num_interactions}, or None for all")
    variables, found = ff.device_variables(compute.dtype), []
    for atoms in images:
        batch = graph.from_atoms(atoms, config, pool=ff.pool, heads=[ff.head_index])
        with jax.enable_x64(compute.dtype == "float64"):
            features = _features(config, (variables, potential.cast(batch, compute.dtype)))
        chosen = [layer[:1] if invariants_only else layer for layer in features[:layers]]
        found.append(np.concatenate([_flat(f) for f in chosen], axis=1)[: len(atoms)])
    return found


@partial(jax.jit, static_argnums=0)
def _features(config: ModelConfig, inputs: tuple[dict, jraph.GraphsTuple]) -> list[list[jax.Array]]:
    """Per interaction and degree [N, 2l+1, C]."""
    variables, graph = inputs
    vectors = potential.edge_vectors(config, graph, positions=jax.numpy.asarray(graph.nodes.positions))
    topology = potential.topology_of(graph, vectors.dtype)
    vectors, topology = within_r_max(config, vectors, topology=topology)
    _, kept = cast(tuple, MACE(config).apply(variables, vectors, topology, mutable=["intermediates"]))
    return [kept["intermediates"][f"features_{t}"][0] for t in range(config.num_interactions)]


def _flat(features: list[jax.Array]) -> np.ndarray:
    """[N, sum of C (2l+1)]: degree by degree, the components of a channel together."""
    return np.concatenate([np.swapaxes(f, 1, 2).reshape(len(f), -1) for f in map(np.asarray, features)], axis=1)
