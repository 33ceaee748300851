"""The potential: one pure function from parameters and a graph to the energy of every atom."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import ase
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from ase.calculators.calculator import Calculator

from equijax import graph as graphs
from equijax import precision
from equijax.config import Compute, ModelConfig
from equijax.graph.fields import Topology
from equijax.graph.gather import gather_senders
from equijax.graph.near import masked_vector, within_r_max
from equijax.nn import dispersion, folded, initial, kernels
from equijax.nn.mace import MACE
from equijax.pytrees import path_name


class Evaluated(NamedTuple):
    """Energy and first derivatives of a structure of n atoms; NaN where there is an error."""

    energy: float  # eV
    energies: np.ndarray  # [n] eV
    forces: np.ndarray  # [n, 3] eV/A
    stress: np.ndarray  # [3, 3] eV/A^3, ASE sign, over the volume of the cell; NaN where the cell vectors span none
    error: str | None = None  # why there is none


class OtherConfig(Protocol):
    """Hyper-parameters of a potential that is no MACE, and its energies: `equijax.testing.PairConfig` is one."""

    species: tuple[int, ...]
    heads: tuple[str, ...]
    r_max: float  # A

    def node_energies(self, variables: dict, vectors: jax.Array, topology: Topology) -> jax.Array:
        """Interaction energies [N] eV, see `energy_from_vectors`."""
        ...


class Potential(Protocol):
    """What everything that works with a model needs of it: `equijax.ForceField` is one."""

    @property
    def config(self) -> Any:
        """Hyper-parameters: `ModelConfig`, or `OtherConfig`."""
        ...

    @property
    def variables(self) -> dict:
        """{"params": ..., "constants": ...}, numpy arrays."""
        ...

    @property
    def metadata(self) -> dict:
        """Where it comes from, for reports."""
        ...

    @property
    def head(self) -> str | None:
        """The head in use, of a model that has several."""
        ...

    @property
    def head_index(self) -> int:
        """Its position among the model's heads."""
        ...

    @property
    def pool(self) -> graphs.SizePool:
        """Padded shapes of single structures."""
        ...

    def with_head(self, name: str) -> "Potential":
        """The same model with another head."""
        ...

    def specialise(self, species: Iterable[int | str], tolerance: dict | None = None) -> "Potential":
        """The same potential for these species alone, several times faster."""
        ...

    def device_variables(self, dtype: str = "float32") -> dict:
        """The variables in `dtype` on the default device."""
        ...

    def node_energies(self, variables: dict, vectors: jax.Array, topology: Topology) -> jax.Array:
        """Interaction energies [N] eV, see `energy_from_vectors`."""
        ...

    def evaluate(
        self,
        images: Sequence[ase.Atoms],
        *,
        compute: Compute = ...,
        errors: Literal["raise", "report"] = "raise",
        names: Sequence[str] | None = None,
    ) -> list[Evaluated]:
        """Energy, forces and stress of many structures."""
        ...

    def calculator(self, dtype: str = "float64", fast: bool = False) -> Calculator:
        """An ASE calculator."""
        ...


def node_graph_index(graph: jraph.GraphsTuple) -> jax.Array:
    """[N] graph of each node."""
    num_graphs, num_nodes = graph.n_node.shape[0], graph.nodes.slot.shape[0]
    return jnp.repeat(jnp.arange(num_graphs), graph.n_node, total_repeat_length=num_nodes)


@precision.exact
def edge_vectors(
    config: ModelConfig,
    graph: jraph.GraphsTuple,
    *,
    positions: jax.Array,
    strain: jax.Array | None = None,
    gather: Callable = gather_senders,
) -> jax.Array:
    """Receiver minus sender, r_n - r_s - S . cell, deformed by the symmetric strain of the graph.

    They are the graph's own vectors, changed by how far `positions` are from the graph's.

    Args:
      config: for r_max, the scale of masked vectors.
      graph: a batch from `equijax.graph.regular`.
      positions: [N, 3] A.
      strain: [G, 3, 3] or None; r -> r (1 + (strain + strain^T) / 2).
      gather: sender gather.

    Returns:
      [N, K, 3] A; masked slots hold a constant vector of twice the longest cutoff.
    """
    n = positions.shape[0]
    mask = graph.edges.mask.reshape(n, -1, 1)
    moved = positions - jnp.asarray(graph.nodes.positions, positions.dtype)
    sender = gather(moved, graph.senders, graph.edges.reverse)
    vectors = graph.edges.vectors.astype(positions.dtype).reshape(n, -1, 3) + moved[:, None, :] - sender
    if strain is not None:
        index = node_graph_index(graph)
        symmetric = 0.5 * (strain + jnp.swapaxes(strain, 1, 2))[index]
        vectors = vectors + jnp.einsum("nkx,nxy->nky", vectors, symmetric)
    return jnp.where(mask, vectors, masked_vector(config, positions.dtype))


def energy(
    config: ModelConfig,
    variables: dict,
    *,
    graph: jraph.GraphsTuple,
    positions: jax.Array | None = None,
    gather: Callable = gather_senders,
    dtype: str | np.dtype | None = None,
) -> jax.Array:
    """Interaction energy of every atom, isolated-atom energies E0 not included; 0 for padding atoms.

    Args:
      config: hyper-parameters (static).
      variables: {"params": ..., "constants": ...}.
      graph: a batch from `equijax.graph.regular`.
      positions: [N, 3] A, default the graph's.
      gather: sender gather (Bloch waves replace it).
      dtype: of the computation, default that of `positions`. A lower one starts at the edge vectors: these, and the
        sums over edges that give each atom's derivatives, keep the precision of `positions`.

    Returns:
      [N] eV.
    """
    positions = jnp.asarray(graph.nodes.positions) if positions is None else positions
    vectors = edge_vectors(config, graph, positions=positions, gather=gather).astype(dtype or positions.dtype)
    return energy_of_edges(config, variables, graph=graph, vectors=vectors, gather=gather)


def energy_of_edges(
    config: ModelConfig,
    variables: dict,
    *,
    graph: jraph.GraphsTuple,
    vectors: jax.Array,
    gather: Callable = gather_senders,
) -> jax.Array:
    """`energy` with the edge vectors [N, K, 3] already made by `edge_vectors`."""
    topology = topology_of(graph, vectors.dtype, gather=gather)
    index = node_graph_index(graph)
    node_energy = energy_from_vectors(config, variables, vectors=vectors, topology=topology)
    return jnp.where(index < graph.n_node.shape[0] - 1, node_energy, 0.0)


def topology_of(graph: jraph.GraphsTuple, dtype: np.dtype, *, gather: Callable = gather_senders) -> Topology:
    """What a model reads of a batch beside its edge vectors; numbers that it embeds are of `dtype`."""
    index = node_graph_index(graph)
    head, embedded = jnp.asarray(graph.globals.head)[index], graph.globals.embedded
    topology = Topology(graph.nodes.slot, graph.globals.table, head, graph.senders, graph.edges.reverse, gather)
    topology = topology._replace(near=graph.globals.near)
    return topology if embedded is None else topology._replace(embedded=jnp.asarray(embedded)[index].astype(dtype))


@precision.chosen
def energy_from_vectors(
    config: ModelConfig | OtherConfig, variables: dict, *, vectors: jax.Array, topology: Topology
) -> jax.Array:
    """Interaction energies [N] of atoms whose edges are already known: for graphs that live on the device.

    Args:
      vectors: [N, K, 3] receiver minus sender, A; masked slots longer than r_max.
      topology: species, heads, senders and reverse of the edges.
    """
    if not isinstance(config, ModelConfig):
        return config.node_energies(variables, vectors, topology)
    near, inner = within_r_max(config, vectors, topology=topology)
    learned = _mace(config, variables, vectors=near, topology=inner)
    if config.dispersion is None:
        return learned
    tables = variables["constants"]["dispersion"]
    return learned + dispersion.node_energies(config.dispersion, tables, vectors=vectors, topology=topology)


def _mace(config: ModelConfig, variables: dict, *, vectors: jax.Array, topology: Topology) -> jax.Array:
    if config.spline is not None:
        return folded.node_energies(config, variables["constants"], vectors=vectors, graph=topology)
    # a tuple where `mutable` asks for one
    return MACE(config).apply(variables, vectors, topology)  # pyright: ignore[reportReturnType]


def start_kernels(config: ModelConfig | OtherConfig, dtype: str | np.dtype) -> None:
    """Compile the C++ kernels of a MACE in the background: before a program that needs them is traced."""
    if isinstance(config, ModelConfig):
        kernels.start(config, np.dtype(dtype).name, terms=0 if config.spline is None else folded.TERMS)


def total_energy(
    config: ModelConfig,
    variables: dict,
    *,
    graph: jraph.GraphsTuple,
    positions: jax.Array | None = None,
    gather: Callable = gather_senders,
    dtype: str | np.dtype | None = None,
) -> jax.Array:
    """Sum of `energy` over all atoms of all graphs: the scalar whose gradient gives the forces."""
    return energy(config, variables, graph=graph, positions=positions, gather=gather, dtype=dtype).sum()


def per_graph(graph: jraph.GraphsTuple, node_values: jax.Array) -> jax.Array:
    """Sum node values [N, ...] over each graph -> [G, ...]."""
    return jax.ops.segment_sum(node_values, node_graph_index(graph), graph.n_node.shape[0])


def isolated_energies(config: ModelConfig, variables: dict, *, graph: jraph.GraphsTuple) -> np.ndarray:
    """E0 of every atom in float64, [N] eV, 0 for padding; on the host, where large constants lose no digits."""
    e0 = np.asarray(variables["constants"]["atomic_energies"], np.float64)
    index = np.repeat(np.arange(len(graph.n_node)), np.asarray(graph.n_node))
    rows = np.asarray(graph.globals.table)[np.asarray(graph.nodes.slot)]
    values = e0[np.asarray(graph.globals.head)[index], rows]
    return np.where(index < len(graph.n_node) - 1, values, 0.0)


def cast(tree: Any, dtype: str | np.dtype) -> Any:
    """Floating-point leaves of a pytree as arrays of `dtype` (integers and masks untouched)."""

    dtype = np.dtype(dtype)

    def leaf(x: Any) -> Any:
        if getattr(x, "dtype", None) == dtype:
            return x
        x = x if isinstance(x, jax.Array) else np.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(leaf, tree)


def init_variables(config: ModelConfig, seed: int = 0) -> dict:
    """Random weights (float64 numpy) of the right shapes for `config`, distributed as mace-torch draws them; E0 = 0."""
    zeros = np.zeros(1, np.int32)
    graph = Topology(zeros, zeros, zeros, zeros, zeros, embedded=np.zeros((1, len(config.embeddings))))
    constants: dict = {}

    def init(key: jax.Array) -> Mapping[str, Any]:
        made = dict(MACE(config).init(key, np.array([[[1.0, 0.5, 0.25]]]), graph))
        constants.update(made.get("constants", {}))  # of numpy, tracing or not
        return made["params"]

    with jax.enable_x64(True):
        shapes = jax.eval_shape(init, jax.random.PRNGKey(seed))  # drawing in numpy spares compiling each draw
    rng = np.random.default_rng(seed)

    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: initial.draw(rng, path_name(path), shape=leaf.shape), shapes
    )
    constants["atomic_energies"] = np.zeros((len(config.heads), len(config.species)))
    return {"params": params, "constants": constants}
