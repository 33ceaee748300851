"""Energy of a graph and its derivatives with respect to positions and strain: the only place they are taken."""

from functools import partial

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from equijax import precision
from equijax.config import ModelConfig
from equijax.gather import gather_senders
from equijax.nn import specialised
from equijax.nn.mace import MACE

MASKED_LENGTH = 2.0  # length of a masked edge in units of r_max: beyond the cutoff, away from r = 0


def node_graph_index(graph: jraph.GraphsTuple) -> jax.Array:
    """[N] graph of each node."""
    num_graphs, num_nodes = graph.n_node.shape[0], graph.nodes["slot"].shape[0]
    return jnp.repeat(jnp.arange(num_graphs), graph.n_node, total_repeat_length=num_nodes)


@precision.exact
def edge_vectors(
    config: ModelConfig, graph: jraph.GraphsTuple, positions: jax.Array, strain=None, gather=gather_senders
) -> jax.Array:
    """Receiver minus sender, r_n - r_s - S . cell, deformed by the symmetric strain of the graph.

    They are the graph's own vectors, changed by how far `positions` are from the graph's.

    Args:
      config: for r_max, the scale of masked vectors.
      graph: a batch from `equijax.graph`.
      positions: [N, 3] A.
      strain: [G, 3, 3] or None; r -> r (1 + (strain + strain^T) / 2).
      gather: sender gather.

    Returns:
      [N, K, 3] A; masked slots hold a constant vector of length 2 r_max.
    """
    n = positions.shape[0]
    mask = graph.edges["mask"].reshape(n, -1, 1)
    moved = positions - jnp.asarray(graph.nodes["positions"], positions.dtype)
    sender = gather(moved, graph.senders, graph.edges["reverse"])
    vectors = graph.edges["vectors"].astype(positions.dtype).reshape(n, -1, 3) + moved[:, None, :] - sender
    if strain is not None:
        index = node_graph_index(graph)
        symmetric = 0.5 * (strain + jnp.swapaxes(strain, 1, 2))[index]
        vectors = vectors + jnp.einsum("nkx,nxy->nky", vectors, symmetric)
    far = jnp.array([MASKED_LENGTH * config.r_max, 0.0, 0.0], positions.dtype)
    return jnp.where(mask, vectors, far)


def energy(
    config: ModelConfig,
    variables: dict,
    graph: jraph.GraphsTuple,
    positions=None,
    strain=None,
    gather=gather_senders,
    dtype=None,
) -> jax.Array:
    """Interaction energy of every atom, isolated-atom energies E0 not included; 0 for padding atoms.

    Args:
      config: hyper-parameters (static).
      variables: {"params": ..., "constants": ...}.
      graph: a batch from `equijax.graph`.
      positions: [N, 3] A, default the graph's.
      strain: [G, 3, 3] or None.
      gather: sender gather (Bloch waves replace it).
      dtype: of the computation, default that of `positions`. A lower one starts at the edge vectors: these, and the
        sums over edges that give each atom's derivatives, keep the precision of `positions`.

    Returns:
      [N] eV.
    """
    positions = jnp.asarray(graph.nodes["positions"]) if positions is None else positions
    vectors = edge_vectors(config, graph, positions, strain, gather).astype(dtype or positions.dtype)
    index = node_graph_index(graph)
    inputs = {
        "slot": graph.nodes["slot"],
        "table": graph.globals["table"],
        "head": jnp.asarray(graph.globals["head"])[index],
        "senders": graph.senders,
        "reverse": graph.edges["reverse"],
        "gather": gather,
    }
    node_energy = energy_from_vectors(config, variables, vectors, inputs)
    return jnp.where(index < graph.n_node.shape[0] - 1, node_energy, 0.0)


@precision.chosen
def energy_from_vectors(config: ModelConfig, variables: dict, vectors: jax.Array, inputs: dict) -> jax.Array:
    """Interaction energies [N] of atoms whose edges are already known: for graphs that live on the device.

    Args:
      vectors: [N, K, 3] receiver minus sender, A; masked slots longer than r_max.
      inputs: slot [N], table [S], head [N], senders [N*K], reverse [N*K]; see `equijax.graph`.
    """
    return POTENTIALS[type(config)](config, variables, vectors, inputs)


def _mace(config, variables, vectors, inputs):
    if config.spline is not None:
        return specialised.node_energies(config, variables["constants"], vectors, inputs)
    return MACE(config).apply(variables, vectors, inputs)


# `energy_from_vectors` of each kind of config
POTENTIALS: dict = {ModelConfig: _mace}


def total_energy(config, variables, graph, positions=None, strain=None, gather=gather_senders, dtype=None) -> jax.Array:
    """Sum of `energy` over all atoms of all graphs: the scalar whose gradient gives forces and stress."""
    return energy(config, variables, graph, positions, strain, gather, dtype).sum()


def per_graph(graph: jraph.GraphsTuple, node_values: jax.Array) -> jax.Array:
    """Sum node values [N, ...] over each graph -> [G, ...]."""
    return jax.ops.segment_sum(node_values, node_graph_index(graph), graph.n_node.shape[0])


def energy_forces_stress(config: ModelConfig, variables: dict, graph: jraph.GraphsTuple) -> dict[str, jax.Array]:
    """Energies and first derivatives of a batch (interaction part: add E0 with `isolated_energies`).

    Returns:
      node_energy [N] eV, energy [G] eV, forces [N, 3] = -dE/dr in eV/A, stress [G, 3, 3] = dE/dstrain / volume in
      eV/A^3 (ASE sign; NaN-free zero for the padding graph).
    """
    positions = jnp.asarray(graph.nodes["positions"])
    strain = jnp.zeros((graph.n_node.shape[0], 3, 3), positions.dtype)

    def objective(positions, strain):
        node_energy = energy(config, variables, graph, positions, strain)
        return node_energy.sum(), node_energy

    (_, node_energy), (dr, ds) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(positions, strain)
    volume = jnp.abs(jnp.linalg.det(graph.globals["cell"].astype(positions.dtype)))
    stress = ds / jnp.where(volume > 0, volume, 1.0)[:, None, None]
    return {"node_energy": node_energy, "energy": per_graph(graph, node_energy), "forces": -dr, "stress": stress}


def isolated_energies(config: ModelConfig, variables: dict, graph: jraph.GraphsTuple) -> np.ndarray:
    """E0 of every atom in float64, [N] eV, 0 for padding; on the host, where large constants lose no digits."""
    e0 = np.asarray(variables["constants"]["atomic_energies"], np.float64)
    index = np.repeat(np.arange(len(graph.n_node)), np.asarray(graph.n_node))
    rows = np.asarray(graph.globals["table"])[np.asarray(graph.nodes["slot"])]
    values = e0[np.asarray(graph.globals["head"])[index], rows]
    return np.where(index < len(graph.n_node) - 1, values, 0.0)


@partial(jax.jit, static_argnums=0)
def _evaluate(config, variables, graph):
    return energy_forces_stress(config, variables, graph)


def evaluate(config: ModelConfig, variables: dict, graph: jraph.GraphsTuple, dtype="float32") -> dict[str, np.ndarray]:
    """`energy_forces_stress` compiled, in `dtype`, with E0 added: energies are float64 numpy arrays."""
    return finish(config, variables, graph, start(config, variables, graph, dtype))


def start(config: ModelConfig, variables: dict, graph: jraph.GraphsTuple, dtype="float32") -> dict[str, jax.Array]:
    """The device's part of `evaluate`; returns before the device is done."""
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        return _evaluate(config, cast(variables, dtype), cast(graph, dtype))


def finish(config: ModelConfig, variables: dict, graph: jraph.GraphsTuple, started: dict) -> dict[str, np.ndarray]:
    """The host's part of `evaluate`: waits for what `start` returned."""
    out = {k: np.asarray(v, np.float64) for k, v in started.items()}
    e0 = isolated_energies(config, variables, graph)
    out["node_energy"] = out["node_energy"] + e0
    index = np.repeat(np.arange(len(graph.n_node)), np.asarray(graph.n_node))
    out["energy"] = np.bincount(index, weights=out["node_energy"], minlength=len(graph.n_node))
    return out


def cast(tree, dtype):
    """Floating-point leaves of a pytree as arrays of `dtype` (integers and masks untouched)."""

    def leaf(x):
        x = x if isinstance(x, jax.Array) else np.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(leaf, tree)


def init_variables(config: ModelConfig, seed: int = 0) -> dict:
    """Random weights (float64 numpy) of the right shapes for `config`, distributed as mace-torch draws them; E0 = 0."""
    zeros = np.zeros(1, np.int32)
    graph = {"slot": zeros, "table": zeros, "head": zeros, "senders": zeros, "reverse": zeros}
    with jax.enable_x64(True):
        init = lambda key: MACE(config).init(key, np.array([[[1.0, 0.5, 0.25]]]), graph)  # noqa: E731
        key = jax.random.PRNGKey(seed)
        shapes = jax.eval_shape(init, key)["params"]
        # compiled for its constants alone, the forward pass drops out; drawing in numpy saves compiling each draw
        constants = jax.tree.map(np.asarray, jax.jit(lambda key: init(key).get("constants", {}))(key))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        paths = leaf.shape[1] if "_nu" in path[-1].key else 1  # contraction weights are divided by their path count
        return rng.normal(size=leaf.shape) / paths

    constants["atomic_energies"] = np.zeros((len(config.heads), len(config.species)))
    return {"params": jax.tree_util.tree_map_with_path(draw, shapes), "constants": constants}
