"""Derivatives of the energy: forces, stress, Hessian-vector and wave-vector products. The only place they are taken."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from equijax import executables, potential
from equijax.config import ModelConfig
from equijax.graph.gather import gather_senders, sum_to_senders
from equijax.potential import cast, isolated_energies, per_graph, start_kernels


class Derivatives(NamedTuple):
    """Energies and first derivatives of a batch, on the device or as numpy arrays; zero for padding."""

    node_energy: Any  # [N] eV
    energy: Any  # [G] eV
    forces: Any  # [N, 3] eV/A, -dE/dr
    stress: Any  # [G, 3, 3] eV/A^3, dE/dstrain / volume (ASE sign)


PAIR = "real and imaginary part"  # name of the mapped axis of length 2


class WaveKind(NamedTuple):
    """What a program of `wave_columns` is compiled for, beside the shapes of its arrays."""

    config: Any  # `ModelConfig` or `potential.OtherConfig`
    dtype: str  # of the model
    real: bool  # 2q is a lattice vector at every q: phases are +-1
    slopes: bool  # with the derivatives by q


def _rotate(t: jax.Array, wave: tuple[jax.Array, ...]) -> jax.Array:
    """e^{i phi} t for edge values t [N, K, ...]; wave = (cos,) where phases are real, else (cos, sin), each [N, K].

    `t` may be of a receiver's first slots alone.
    """
    cos, *sin = (w[:, : t.shape[1]].reshape(*t.shape[:2], *(1,) * (t.ndim - 2)).astype(t.dtype) for w in wave)
    if not sin:
        return cos * t
    other = jax.lax.ppermute(t, PAIR, [(0, 1), (1, 0)])
    sign = 2 * jax.lax.axis_index(PAIR).astype(t.dtype) - 1
    return cos * t + sign * sin[0] * other


def wave_gather(wave: tuple[jax.Array, ...]) -> Callable:
    """A `gather_senders` whose values are the ordinary ones and whose tangents, and those of its transpose, turn."""

    @jax.custom_jvp
    def read(x: jax.Array, senders: jax.Array, reverse: jax.Array) -> jax.Array:
        return gather_senders(x, senders, reverse)

    @read.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        _, *index = primals
        return gather_senders(*primals), _rotate(gather_senders(tangents[0], *index), wave)

    @jax.custom_jvp
    def collect(y: jax.Array, senders: jax.Array, reverse: jax.Array) -> jax.Array:
        return sum_to_senders(y, senders, reverse)

    @collect.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        t, reverse = tangents[0], primals[2]
        received = t.reshape(-1, *t.shape[2:])[reverse].reshape(t.shape)
        return sum_to_senders(*primals), _rotate(received, wave).sum(1)

    @jax.custom_vjp
    def gather(x: jax.Array, senders: jax.Array, reverse: jax.Array) -> jax.Array:
        return read(x, senders, reverse)

    gather.defvjp(
        lambda x, senders, reverse: (read(x, senders, reverse), (senders, reverse)),
        lambda index, ct: (collect(ct, *index), None, None),
    )
    return gather


def wave_columns(kind: WaveKind, variables: dict, graph: jraph.GraphsTuple, q: jax.Array, u: jax.Array) -> jax.Array:
    """Responses to B displacement waves; with `kind.slopes`, also their derivatives by the components of q.

    Args:
      kind: static.
      variables, graph: as for `energy_forces_stress`; one structure.
      q: [B, 3] fractional.
      u: [B, N, 3] A, real amplitudes.

    Returns:
      [B, 1 or 4, N, 3] where phases are real, else [B, 1 or 4, 2, N, 3], eV/A.
    """

    def column(q: jax.Array, u: jax.Array) -> jax.Array:
        if not kind.slopes:
            return _wave_response(kind, variables, graph=graph, q=q, u=u)[None]
        value, slope = jax.linearize(lambda q: _wave_response(kind, variables, graph=graph, q=q, u=u), q)
        return jnp.concatenate([value[None], jax.vmap(slope)(jnp.eye(3, dtype=q.dtype))])

    return jax.vmap(column)(q, u)


def _wave_response(
    kind: WaveKind, variables: dict, *, graph: jraph.GraphsTuple, q: jax.Array, u: jax.Array
) -> jax.Array:
    """D_C(q) u without masses, [N, 3] where phases are real, else [2, N, 3]; u [N, 3] real, q [3] fractional."""
    positions = jnp.asarray(graph.nodes.positions)
    n = positions.shape[0]
    phase = 2 * np.pi * (graph.edges.shifts.astype(positions.dtype) @ q).reshape(n, -1)
    wave = (jnp.cos(phase),) if kind.real else (jnp.cos(phase), jnp.sin(phase))
    gather = wave_gather(wave)
    gradient = jax.grad(
        lambda r: potential.total_energy(
            kind.config, variables, graph=graph, positions=r, gather=gather, dtype=kind.dtype
        )
    )

    def response(t: jax.Array) -> jax.Array:
        return jax.jvp(gradient, (positions,), (t,))[1]

    return response(u) if kind.real else jax.vmap(response, axis_name=PAIR)(jnp.stack([u, jnp.zeros_like(u)]))


def push_tangents(
    config: ModelConfig,
    dtype: str,
    variables: dict,
    batch: jraph.GraphsTuple,
    tangents: jax.Array,
    steps: jax.Array,
) -> jax.Array:
    """H t, or T[along, t], for the first `steps` chunks of tangents [MAX_STEPS, B, N, 3]; zero for the rest."""
    gradient = jax.grad(lambda r: potential.total_energy(config, variables, graph=batch, positions=r, dtype=dtype))
    along = batch.nodes.along
    pushed = gradient if along is None else lambda r: jax.jvp(gradient, (r,), (along,))[1]
    _, linear = jax.linearize(pushed, batch.nodes.positions)
    push = jax.vmap(linear)
    return jax.lax.fori_loop(0, steps, lambda i, out: out.at[i].set(push(tangents[i])), jnp.zeros_like(tangents))


def hessian_products(
    config: ModelConfig, variables: dict, graph: jraph.GraphsTuple, tangents: jax.Array, q: jax.Array | None = None
) -> jax.Array:
    """Phi u along every tangent: forward derivative of the energy gradient, like the tangents and in eV/A.

    Args:
      config, variables, graph: as for `energy_forces_stress`.
      tangents: [N, B, 3] A; with `q` real and imaginary parts of displacement waves, [N, B, 2, 3].
      q: [G, B, 3] fractional wave vectors.
    """
    positions = jnp.asarray(graph.nodes.positions)
    if q is not None:
        return _wave_products(config, variables, graph=graph, tangents=tangents, q=q)
    gradient = jax.grad(lambda x: potential.total_energy(config, variables, graph=graph, positions=x))
    _, push = jax.linearize(gradient, positions)
    return jnp.moveaxis(jax.vmap(push)(jnp.moveaxis(tangents, 1, 0)), 0, 1)


def _wave_products(
    config: ModelConfig, variables: dict, *, graph: jraph.GraphsTuple, tangents: jax.Array, q: jax.Array
) -> jax.Array:
    """sum_S Phi[0 i, S j] e^{2 pi i q.S} u_j of every wave; see `equijax.phonons.dynamical`."""
    positions = jnp.asarray(graph.nodes.positions)
    shifts = graph.edges.shifts.astype(positions.dtype).reshape(positions.shape[0], -1, 3)
    index = potential.node_graph_index(graph)

    def one(q: jax.Array, wave: jax.Array) -> jax.Array:  # [G, 3], [2, N, 3]
        phase = 2 * jnp.pi * jnp.einsum("nks,ns->nk", shifts, q[index])
        gather = wave_gather((jnp.cos(phase), jnp.sin(phase)))
        gradient = jax.grad(
            lambda x: potential.total_energy(config, variables, graph=graph, positions=x, gather=gather)
        )
        return jax.vmap(lambda u: jax.jvp(gradient, (positions,), (u,))[1], axis_name=PAIR)(wave)

    waves = jnp.moveaxis(tangents, 0, 2)  # [B, 2, N, 3]
    return jnp.moveaxis(jax.vmap(one)(jnp.moveaxis(q, 1, 0), waves), 2, 0)


def energy_forces_stress(config: ModelConfig, variables: dict, *, graph: jraph.GraphsTuple) -> Derivatives:
    """Energies and first derivatives of a batch (interaction part: add E0 with `isolated_energies`)."""
    positions = jnp.asarray(graph.nodes.positions)
    strain = jnp.zeros((graph.n_node.shape[0], 3, 3), positions.dtype)

    def objective(positions: jax.Array, strain: jax.Array) -> tuple[jax.Array, jax.Array]:
        vectors = potential.edge_vectors(config, graph, positions=positions, strain=strain).astype(positions.dtype)
        node_energy = potential.energy_of_edges(config, variables, graph=graph, vectors=vectors)
        return node_energy.sum(), node_energy

    (_, node_energy), (dr, ds) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(positions, strain)
    volume = jnp.abs(jnp.linalg.det(graph.globals.cell.astype(positions.dtype)))
    stress = ds / jnp.where(volume > 0, volume, 1.0)[:, None, None]
    return Derivatives(node_energy, per_graph(graph, node_energy), -dr, stress)


def gradient_and_product(
    config: ModelConfig, variables: dict, *, graph: jraph.GraphsTuple, tangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """dE/dr [N, 3] eV/A, and the Hessian times one tangent [N, 3] A, eV/A."""
    gradient = jax.grad(lambda r: potential.total_energy(config, variables, graph=graph, positions=r))
    return jax.jvp(gradient, (graph.nodes.positions,), (tangent,))


def gradient_and_virial(
    energy: Callable[[jax.Array, jax.Array], jax.Array], positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """E eV, dE/dr [N, 3] eV/A and dE/dp [3, 3] eV of energy(positions, p) at p = 1, where nothing is deformed."""
    undeformed = jnp.eye(3, dtype=positions.dtype)
    value, (gradient, virial) = jax.value_and_grad(energy, argnums=(0, 1))(positions, undeformed)
    return value, gradient, virial


@partial(jax.jit, static_argnums=0)
def _evaluate(config: ModelConfig, inputs: tuple[dict, jraph.GraphsTuple]) -> Derivatives:
    return energy_forces_stress(config, inputs[0], graph=inputs[1])


@partial(jax.jit, static_argnums=0)
def _virials(config: ModelConfig, inputs: tuple[dict, jraph.GraphsTuple]) -> jax.Array:
    variables, graph = inputs
    vectors = potential.edge_vectors(config, graph, positions=jnp.asarray(graph.nodes.positions))
    slopes = jax.grad(lambda v: potential.energy_of_edges(config, variables, graph=graph, vectors=v).sum())(vectors)
    slopes = jnp.where(graph.edges.mask.reshape(*vectors.shape[:2], 1), slopes, 0.0)
    of_edges = vectors[..., :, None] * slopes[..., None, :]  # [N, K, 3, 3]
    both = 0.5 * (of_edges.sum(1) + sum_to_senders(of_edges, graph.senders, graph.edges.reverse))
    return 0.5 * (both + jnp.swapaxes(both, 1, 2))


def evaluate(config: ModelConfig, variables: dict, *, graph: jraph.GraphsTuple, dtype: str = "float32") -> Derivatives:
    """`energy_forces_stress` compiled, in `dtype`, with E0 added: energies are float64 numpy arrays."""
    return finish(config, variables, graph=graph, started=start(config, variables, graph=graph, dtype=dtype))


def start(config: ModelConfig, variables: dict, *, graph: jraph.GraphsTuple, dtype: str = "float32") -> Derivatives:
    """The device's part of `evaluate`; returns before the device is done."""
    return launch("energy_forces_stress", _evaluate, config=config, inputs=(variables, graph), dtype=dtype)


def atomic_virials(
    config: ModelConfig, variables: dict, *, graph: jraph.GraphsTuple, dtype: str = "float32"
) -> np.ndarray:
    """Share of every atom in dE/dstrain, [N, 3, 3] eV, numpy: over a graph they sum to stress times volume.

        W_i = 1/2 sum_(edges e of i) sym(r_e (x) dE/dr_e),   r_e the vector of an edge, which gives half to either end

    As mace-torch does: how a many-body energy is shared among atoms is a convention.
    """
    found = launch("atomic_virials", _virials, config=config, inputs=(variables, graph), dtype=dtype)
    return np.asarray(found, np.float64)


def launch(name: str, function: Any, *, config: Any, inputs: tuple[dict, jraph.GraphsTuple], dtype: str) -> Any:
    """What function(config, (variables, graph)), jitted, gives, compiled once a shape, in `dtype`; on the device.

    Args:
      name: of the function, for its programs.
      function: made by `jax.jit` with a static first argument.
      config: `ModelConfig` or `potential.OtherConfig`.
      inputs: variables and graph.
      dtype: of the computation.
    """
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        inputs = cast(inputs[0], dtype), cast(inputs[1], dtype)

        def lower() -> jax.stages.Lowered:
            start_kernels(config, dtype)
            return function.lower(config, inputs)

        key, atoms = (name, config, executables.shapes(inputs)), len(inputs[1].nodes.positions)
        return executables.program(key, lower, work=atoms).call(inputs)


def finish(config: ModelConfig, variables: dict, *, graph: jraph.GraphsTuple, started: Derivatives) -> Derivatives:
    """The host's part of `evaluate`: waits for what `start` returned."""
    out = Derivatives(*(np.asarray(x, np.float64) for x in started))
    node_energy = out.node_energy + isolated_energies(config, variables, graph=graph)
    index = np.repeat(np.arange(len(graph.n_node)), np.asarray(graph.n_node))
    energy = np.bincount(index, weights=node_energy, minlength=len(graph.n_node))
    return out._replace(node_energy=node_energy, energy=energy)


def by_parameters(
    energy: Callable[[Any, jax.Array], jax.Array], parameters: Any, *, positions: jax.Array, directions: jax.Array
) -> tuple[Any, Any]:
    """Derivatives by parameters of an energy(parameters, positions) eV, and of its slopes along some directions.

        dE/dp,   d/dp (dE(r + e x)/de at e = 0)

    Args:
      energy: pure.
      parameters: any pytree of floating leaves.
      positions: [N, 3] A.
      directions: [B, N, 3] x; a slope is minus the forces along it.

    Returns:
      two pytrees like `parameters`, the second with a leading axis [B].
    """

    def slope(parameters: Any, direction: jax.Array) -> jax.Array:
        return jax.jvp(lambda r: energy(parameters, r), (positions,), (direction,))[1]

    of_slopes = jax.vmap(jax.grad(slope), in_axes=(None, 0))(parameters, directions)
    return jax.grad(energy)(parameters, positions), of_slopes
