"""The equivariant convolution A[n, p, m3, c] = sum_k R_p(r_nk)[c] sum_{m1 m2} C[m1, m2, m3] h[k, m1, c] Y[m2](r_nk).

Regular edges make the neighbour sum a batched matrix product over the K slots of a receiver: no scatter. Radial
functions are R_p = g W_p with g the U last hidden units of the radial MLP.
"""

from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from equijax import couplings
from equijax.config import ModelConfig
from equijax.graph.fields import Topology
from equijax.graph.gather import gather_senders
from equijax.kernels import build, choice, gpu
from equijax.kernels.convolution import Tabulated, available, neighbour_sum, radial_from_table, table_sum

# A register of float32 or two of float64: models of fewer channels are toys, not worth seconds of a C++ compiler.
KERNEL_CHANNELS = 16
TIMED = (2048, 48)  # atoms and neighbours of the problem that chooses between kernels and XLA on a GPU


def paths(config: ModelConfig, t: int) -> tuple[couplings.Path, ...]:
    """The couplings of interaction t."""
    return couplings.conv_paths(config.input_lmax(t), config.max_ell, out_lmax=config.max_ell, so3=config.so3)


def convolve(
    h: list[jax.Array], g: jax.Array, *, last: jax.Array, Y: jax.Array, paths: Sequence[couplings.Path], graph: Topology
) -> list[jax.Array]:
    """Convolve node features with neighbours.

    Args:
      h: features [N, 2l+1, C] for l = 0..lmax.
      g: [N, K, U] radial hidden units, zero on masked slots.
      last: [U, P, C] last radial layer.
      Y: [N, K, m] spherical harmonics.
      paths: the P couplings.
      graph: species, senders and reverse of the edges, and the sender gather.

    Returns:
      one array [N, P_l, 2l+1, C] per output degree l.
    """
    R = (g.reshape(-1, g.shape[-1]) @ last.reshape(g.shape[-1], -1)).reshape(*g.shape[:2], *last.shape[1:])
    return neighbour_sums(h, R, Y=Y, paths=paths, graph=graph)


def neighbour_sums(
    h: list[jax.Array], R: jax.Array, *, Y: jax.Array, paths: Sequence[couplings.Path], graph: Topology
) -> list[jax.Array]:
    """`convolve` with the radial functions R [N, K, P, C], zero on masked slots."""
    gather, kernel = graph.gather, has_kernel(R.shape[-1], R.dtype)
    if gather is gather_senders and kernel:
        return neighbour_sum(h, R, Y, paths, graph.senders, graph.reverse)
    sender = [gather(x, graph.senders, graph.reverse) for x in h]  # [N, K, 2l+1, C]
    if kernel:
        return neighbour_sum(_rows(sender), R, Y, paths, *_own_slots(R))
    return coupled_on_edge(sender, R, Y=Y, paths=paths)


def convolve_table(
    h: list[jax.Array], R: Tabulated, *, Y: jax.Array, paths: Sequence[couplings.Path], graph: Topology
) -> list[jax.Array]:
    """`convolve` with radial functions from a table.

    Args:
      R: see `Tabulated`.
      h, Y, paths, graph: as in `convolve`, and so the result.
    """
    if kernel_platform(R.table.shape[-1], R.phi.dtype) != "cpu":
        return neighbour_sums(h, radial_from_table(*R), Y=Y, paths=paths, graph=graph)
    if graph.gather is gather_senders:
        return table_sum(h, R, Y, paths, graph.senders, graph.reverse)
    sender = [graph.gather(x, graph.senders, graph.reverse) for x in h]
    return table_sum(_rows(sender), R, Y, paths, *_own_slots(R.phi))


def _rows(sender: list[jax.Array]) -> list[jax.Array]:
    """Values already at the edges as node features: a row for each slot."""
    return [x.reshape(-1, *x.shape[2:]) for x in sender]


def _own_slots(edges: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Senders and reverse slots when every slot [N, K] has a row of its own."""
    slots = jnp.arange(edges.shape[0] * edges.shape[1], dtype=jnp.int32)
    return slots, slots


def convolve_species(h: jax.Array, g: jax.Array, *, last: jax.Array, Y: jax.Array, graph: Topology) -> list[jax.Array]:
    """`convolve` for features that depend on the sender's species alone, as those of the first interaction do.

        A_l[n, m, c] = sum_{s u} (sum_{k of species s} Y_lm(r_nk) g_u(r_nk)) W_l[u, c] h[s, c]

    Radial hidden units times Y are summed per sender species first, so the last radial layer runs once an atom, not
    once an edge.

    Args:
      h: [S, C] scalars of each species of the batch.
      g, last, Y, graph: as in `convolve`; the paths are (0, l, l), whose Clebsch-Gordan coefficient is 1.

    Returns:
      one array [N, 1, 2l+1, C] per degree l.
    """
    n, k, units = g.shape
    species, channels = h.shape
    one_hot = jax.nn.one_hot(jnp.asarray(graph.slot)[graph.senders].reshape(n, k), species, dtype=g.dtype)
    by_species = g if species == 1 else (one_hot[..., None] * g[:, :, None, :]).reshape(n, k, species * units)
    T = jnp.einsum("nkm,nkx->nmx", Y, by_species)
    W = jnp.einsum("sc,upc->psuc", h, last).reshape(-1, species * units, channels)
    return [(T[:, l * l : (l + 1) ** 2] @ W[l])[:, None] for l in range(last.shape[1])]


def kernel_platform(channels: int, dtype: npt.DTypeLike) -> str:
    """Whose kernels compute a model: "cpu" (C++), "cuda" (Pallas), or none, by XLA on a CPU ("") or "other" device."""
    repays = channels >= KERNEL_CHANNELS
    if jax.default_backend() == "cpu":
        return "cpu" if repays and available(channels, dtype) else ""
    return "cuda" if repays and gpu.available(channels) else "other"


def has_kernel(channels: int, dtype: npt.DTypeLike) -> bool:
    """Whether the neighbour sum is left to a kernel: wherever there is one on a CPU, on a GPU where it is faster."""
    place = kernel_platform(channels, dtype)
    if place == "cuda" and build.mode() != "require":
        return _faster_on_gpu(channels, np.dtype(dtype).name)
    return place in ("cpu", "cuda")


@cache
def _faster_on_gpu(channels: int, dtype: str) -> bool:
    """By timing value and gradients of a neighbour sum like that of the second interaction of the published models."""
    n, k = TIMED
    rng, paths = np.random.default_rng(0), couplings.conv_paths(1, 3, out_lmax=3)
    partner = np.arange(n)[:, None] ^ (1 + np.arange(k))  # symmetric: slot k of either is the pair's
    senders = partner.ravel().astype(np.int32)
    reverse = (partner * k + np.arange(k)).ravel().astype(np.int32)
    shapes = ((n, 4, channels), (n, k, len(paths), channels), (n, k, 16))
    x = [rng.normal(size=s).astype(dtype) for s in shapes]  # numpy's: a program may be being traced

    def by_kernel(h: jax.Array, R: jax.Array, Y: jax.Array) -> list[jax.Array]:
        return neighbour_sum([h[:, :1], h[:, 1:]], R, Y, paths, senders, reverse)

    def by_xla(h: jax.Array, R: jax.Array, Y: jax.Array) -> list[jax.Array]:
        sender = [gather_senders(a, jnp.asarray(senders), jnp.asarray(reverse)) for a in (h[:, :1], h[:, 1:])]
        return coupled_on_edge(sender, R, Y=Y, paths=paths)

    ways = {"XLA": choice.value_and_gradients(by_xla, x), "Pallas": choice.value_and_gradients(by_kernel, x)}
    return choice.fastest(f"neighbour sums of {channels} channels in {dtype}", ways) == "Pallas"


def coupled_on_edge(
    sender: list[jax.Array], R: jax.Array, *, Y: jax.Array, paths: Sequence[couplings.Path]
) -> list[jax.Array]:
    """Fold Clebsch-Gordan into Y on the edge; one batched [2 l3 + 1, K m1] x [K m1, C] product per path."""
    out = [[] for _ in range(max(p.l3 for p in paths) + 1)]
    n, k = Y.shape[:2]
    for i, (l1, l2, l3) in enumerate(paths):
        C = np.asarray(couplings.clebsch_gordan(l1, l2, l3))
        B = jnp.einsum("nkb,abm->nkam", Y[..., l2 * l2 : (l2 + 1) ** 2], C.astype(Y.dtype))
        X = R[:, :, i, None, :] * sender[l1]
        d1 = 2 * l1 + 1
        out[l3].append(jnp.einsum("nem,nec->nmc", B.reshape(n, k * d1, -1), X.reshape(n, k * d1, -1)))
    return [jnp.stack(parts, axis=1) for parts in out]
