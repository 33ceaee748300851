"""Low-rank and full-size adapters of a frozen backbone: initialise, apply, merge, count.

Every parameter array is a stack of matrices, one per irrep path (and per species where weights belong to a species);
each matrix gets its own pair of factors (LoRA, Hu et al., arXiv:2106.09685), in the raw scale of the weights, so that
the path normalisations of the forward pass apply unchanged:

    W_b -> W_b + (alpha / r) A_b B_b,      A_b [m, r] normal,  B_b [r, n] zero at the start

| array                                | stack over     | matrix              |
| ------------------------------------ | -------------- | ------------------- |
| interactions_t/linear_up, products_t/linear, readouts, radial hidden layers | - | in x out |
| interactions_t/linear/l [P, C, C]    | paths          | C x C               |
| interactions_t/radial_mlp/last [U, P, C] | paths      | U x C               |
| interactions_t/edges/radial_mlp [out, in]; biases, alpha, beta | - | as they are |
| interactions_t/skip_tp/l [C, Z, C]   | species        | C x C               |
| products_t/contraction_lL/lL_nu [Z, paths, C] | species | paths x C         |
| node_embedding [Z, C]                | species        | 1 x C               |

Where r (m + n) >= m n the factors would be larger than the matrix, which then gets a full residual: fewer parameters
and the same or more freedom (its rank is at most min(m, n)). Adapters are a pytree apart from the backbone: gradients
are taken with respect to it alone.
"""

import math
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax import tables
from equijax.errors import InputError
from equijax.pytrees import listing, path_name, paths_of, select

# What `--strategy lora` adapts: everything but the two-number-a-basis-function density kernels, and in non-linear
# interactions and embeddings also biases, norms and embeddings.
TARGETS = (
    "node_embedding",
    r"interactions_\d+/linear_up",
    r"interactions_\d+/linear(_res|_out|_down)?",
    r"interactions_\d+/skip_tp",
    r"interactions_\d+/(radial_mlp|edges/radial_mlp/layer\d+|radial\d+)",
    r"products_\d+/contraction_l\d+",
    r"products_\d+/linear",
    r"readouts_\d+",
)


class Layout(NamedTuple):
    """Which axis of an array is a stack of matrices, and whether it runs over species."""

    axis: int | None
    species: bool


# (path, number of axes) -> layout; the first match counts, everything else is one matrix
_LAYOUTS = (
    (r"node_embedding|interactions_\d+/edges/(source|target)", 2, Layout(0, True)),
    (r"interactions_\d+/skip_tp/l\d+", 3, Layout(1, True)),
    (r"products_\d+/contraction_l\d+/l\d+_nu\d+", 3, Layout(0, True)),
    (r"interactions_\d+/linear/l\d+", 3, Layout(0, False)),
    (r"interactions_\d+/(radial_mlp/layer|radial)\d+", 3, Layout(1, False)),
    (r".*", 2, Layout(None, False)),
    (r".*", 1, Layout(None, False)),  # biases and the like: a row, whose residual is full
    (r".*", 0, Layout(None, False)),
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapters:
    """Trainable arrays keyed by the path of what they adapt; a pytree whose leaves are all floating point.

    Each value is {"A": [b, m, r], "B": [b, r, n]} or {"delta": [b, m, n]}, b running over paths or species (1 where
    the array is a single matrix).
    """

    arrays: dict[str, dict[str, Any]]  # jax or numpy
    alpha: float = field(metadata={"static": True})
    rows: tuple[int, ...] | None = field(default=None, metadata={"static": True})  # adapted species; None: all


def init_lora(
    params: dict,
    rank: int | float,
    *,
    alpha: float,
    targets: Iterable[str] = TARGETS,
    key: jax.Array | int = 0,
    rows: Iterable[int] | None = None,
) -> Adapters:
    """Low-rank adapters that change nothing yet (B = 0), in the dtypes of what they adapt.

    Args:
      params: the backbone's "params".
      rank: r of every pair of factors; a float in (0, 1) is a fraction of min(m, n), at least 1.
      alpha: the scale is alpha / r.
      targets: patterns of the paths to adapt, see `equijax.pytrees.matches`.
      key: seed, or a JAX PRNG key; a path's draw does not depend on the other targets.
      rows: species (rows of config.species) to adapt in per-species arrays; None for all.

    Raises:
      InputError: impossible rank, or a pattern that matches nothing.
    """
    if not (0 < rank < 1 or (rank >= 1 and rank == int(rank))):
        raise InputError(f"rank {rank}: expected a whole number >= 1 or a fraction between 0 and 1")
    seed = [key] if isinstance(key, int) else np.asarray(jax.random.key_data(key)).ravel().tolist()
    rows = None if rows is None else tuple(sorted({int(i) for i in rows}))
    arrays, leaves = {}, paths_of(params)
    for path, (b, m, n) in _shapes(params, targets, rows=rows).items():
        dtype = leaves[path].dtype
        r = int(rank) if rank >= 1 else max(1, round(rank * min(m, n)))
        if r * (m + n) >= m * n:
            arrays[path] = {"delta": np.zeros((b, m, n), dtype)}
        else:
            draw = np.random.default_rng([*seed, zlib.crc32(path.encode())]).normal(size=(b, m, r))
            arrays[path] = {"A": draw.astype(dtype), "B": np.zeros((b, r, n), dtype)}
    return Adapters(arrays, float(alpha), rows)


def init_delta(params: dict, targets: Iterable[str] = (".*",), *, rows: Iterable[int] | None = None) -> Adapters:
    """Full-size residuals of everything that `targets` match, zero at the start; arguments as for `init_lora`."""
    rows = None if rows is None else tuple(sorted({int(i) for i in rows}))
    shapes, leaves = _shapes(params, targets, rows=rows), paths_of(params)
    arrays = {path: {"delta": np.zeros(shape, leaves[path].dtype)} for path, shape in shapes.items()}
    return Adapters(arrays, 1.0, rows)


def residual(adapters: Adapters, path: str) -> jax.Array:
    """The change [b, m, n] of the matrices at `path`: (alpha / r) A B, or the full residual."""
    entry = adapters.arrays[path]
    if "delta" in entry:
        return entry["delta"]
    return (adapters.alpha / entry["A"].shape[-1]) * jnp.einsum("bmr,brn->bmn", entry["A"], entry["B"])


def apply(params: dict, adapters: Adapters) -> dict:
    """Parameters with the adapters added; pure and differentiable with respect to both.

    Args:
      params: the backbone's "params", any floating dtype, which the result keeps.
      adapters: see `init_lora`.

    Raises:
      InputError: adapters of another architecture, named by path.
    """
    extra = sorted(set(adapters.arrays) - set(paths_of(params)))
    if extra:
        raise InputError(f"adapters of parameters this model does not have: {listing(extra)}")

    def leaf(path: tuple, w: jax.Array) -> jax.Array:
        name = path_name(path)
        return _add(name, w, change=residual(adapters, name), rows=adapters.rows) if name in adapters.arrays else w

    return jax.tree_util.tree_map_with_path(leaf, params)


def merge(variables: dict, adapters: Adapters, *, energies: np.ndarray | None = None) -> dict:
    """Variables with adapters folded in, as numpy arrays of the backbone's dtype, computed in float64.

    Args:
      variables: {"params": ..., "constants": ...} of the backbone, left untouched.
      adapters: to fold in.
      energies: [H, Z] eV isolated-atom energies to use instead of the backbone's.
    """
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: np.asarray(x, np.float64), (variables["params"], adapters))
        merged = jax.tree.map(np.asarray, apply(*exact))
    params = jax.tree.map(lambda new, old: new.astype(np.asarray(old).dtype), merged, variables["params"])
    constants = dict(variables["constants"])
    if energies is not None:
        old = np.asarray(constants["atomic_energies"])
        if energies.shape != old.shape:
            raise InputError(f"isolated-atom energies of shape {energies.shape}: this model needs {old.shape}")
        constants["atomic_energies"] = np.asarray(energies, old.dtype)
    return {**variables, "params": params, "constants": constants}


def unmerge(variables: dict, adapters: Adapters) -> dict:
    """The backbone's variables from merged ones, to rounding: `merge` with the sign of every residual turned."""
    arrays = {p: {k: -v if k in ("B", "delta") else v for k, v in e.items()} for p, e in adapters.arrays.items()}
    return merge(variables, Adapters(arrays, adapters.alpha, adapters.rows))


class Count(NamedTuple):
    """One row of the table of trainable parameters."""

    path: str
    shape: tuple[int, ...]
    adapted: int  # numbers of the backbone that can change
    rank: int | None  # None: full residual
    trainable: int


def count(params: dict, adapters: Adapters) -> list[Count]:
    """What is adapted, by how many numbers, per array; shapes are enough for both arguments."""
    leaves = paths_of(params)
    rows = []
    for path, entry in adapters.arrays.items():
        b, m, n = (*entry["A"].shape[:2], entry["B"].shape[2]) if "A" in entry else entry["delta"].shape
        rank = entry["A"].shape[-1] if "A" in entry else None
        trainable = sum(math.prod(x.shape) for x in entry.values())
        rows.append(Count(path, tuple(leaves[path].shape), b * m * n, rank, trainable))
    return rows


def table(params: dict, adapters: Adapters) -> str:
    """`count` as text with totals: trainable, adapted, and the whole backbone."""
    rows = count(params, adapters)
    lines = [
        [r.path, "x".join(map(str, r.shape)), r.rank or "full", f"{r.trainable:,}", f"{r.adapted:,}"] for r in rows
    ]
    trainable, adapted = sum(r.trainable for r in rows), sum(r.adapted for r in rows)
    total = sum(math.prod(x.shape) for x in paths_of(params).values())
    lines.append(["sum", "", "", f"{trainable:,}", f"{adapted:,}"])
    text = tables.text(["parameter", "shape", "rank", "trainable", "of"], lines)
    return (
        f"{text}\n{trainable:,} trainable numbers: {100 * trainable / max(adapted, 1):.2f} % of the {adapted:,} they "
        f"adapt, {100 * trainable / total:.2f} % of the {total:,} of the model"
    )


def layout(path: str, ndim: int) -> Layout:
    """How the array at `path` is a stack of matrices.

    Raises:
      InputError: an array this module does not know.
    """
    for pattern, axes, result in _LAYOUTS:
        if axes == ndim and re.fullmatch(pattern, path):
            return result
    raise InputError(f"parameter {path} with {ndim} axes: no rule says how it is a stack of matrices")


def _layout_of(path: str, array: jax.Array) -> Layout:
    """`layout`; weights that all species share do not run over them."""
    axis, species = layout(path, array.ndim)
    return Layout(axis, species and axis is not None and array.shape[axis] > 1)


def _shapes(params: dict, targets: Iterable[str], *, rows: tuple[int, ...] | None) -> dict[str, tuple[int, int, int]]:
    """(b, m, n) of every target that is not empty."""
    leaves = paths_of(params)
    shapes = {}
    for path in select(leaves, targets):
        if math.prod(leaves[path].shape) == 0:
            continue  # a contraction without coupling paths
        axis, species = _layout_of(path, leaves[path])
        shape = list(leaves[path].shape)
        b = 1 if axis is None else shape.pop(axis)
        if species and rows is not None:
            _check_rows(rows, b)
            b = len(rows)
        m, n = (1,) * (2 - len(shape)) + tuple(shape)
        shapes[path] = (b, m, n)
    return shapes


def _check_rows(rows: tuple[int, ...], num_species: int) -> None:
    if not rows or rows[0] < 0 or rows[-1] >= num_species:
        raise InputError(f"species rows {rows}: expected at least one, each from 0 to {num_species - 1}")


def _add(path: str, w: jax.Array, *, change: jax.Array, rows: tuple[int, ...] | None) -> jax.Array:
    """Add a change [b, m, n] to the array at `path`, in the array's dtype."""
    w = jnp.asarray(w)
    axis, species = _layout_of(path, w)
    change = change.astype(w.dtype)
    if axis is None:
        return w + change[0].reshape(w.shape)
    expected = (w.shape[axis] if rows is None or not species else len(rows),)
    if change.shape[:1] != expected:
        raise InputError(f"adapter of {path} is a stack of {change.shape[0]} matrices; this model needs {expected[0]}")
    change = change[:, 0] if w.ndim == 2 else jnp.moveaxis(change, 0, axis)
    if species and rows is not None:
        index = (slice(None),) * axis + (np.asarray(rows),)
        return w.at[index].add(change, unique_indices=True)
    return w + change
