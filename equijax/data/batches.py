"""Labelled structures as padded graphs with labels and masks."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jraph
import numpy as np

from equijax import graph
from equijax.config import ModelConfig
from equijax.data.labelled import LABELS, Labelled


class Item(NamedTuple):
    """A labelled structure with its neighbour list, built once."""

    labelled: Labelled
    edges: graph.Edges


def prepare(structures: Iterable[Labelled], config: ModelConfig) -> list[Item]:
    """Check structures against the model and list their neighbours.

    Raises:
      ValueError: a structure the model cannot describe or a head it does not have; file and frame are named.
    """
    items = []
    for s in structures:
        graph.check_atoms(s.atoms, config, s.source)
        if s.head is not None and s.head not in config.heads:
            raise ValueError(
                f"{s.source}: head {s.head!r} is not one of the model's: {', '.join(config.heads)}; rename it, or "
                "read none with --head-key none"
            )
        items.append(Item(s, graph.neighbour_list(s.atoms, config.r_max, s.source)))
    return items


def predictions(ff, structures: Sequence[Labelled], *, dtype: str = "float32", head: str | None = None) -> list[dict]:
    """`ForceField.evaluate` with the head that each structure names.

    Args:
      ff: a ForceField.
      structures: their sources name them in messages.
      dtype: of the computation.
      head: of structures that name none.

    Raises:
      ValueError: a structure the model cannot describe or a head it does not have, by source.
      FloatingPointError: an energy or force is not finite, by source.
    """
    prepare(structures, ff.config)
    by_head: dict[str | None, list[int]] = {}
    for i, s in enumerate(structures):
        by_head.setdefault(s.head or head, []).append(i)
    out: list[dict] = [{} for _ in structures]
    for name, members in by_head.items():
        chosen = [structures[i] for i in members]
        found = ff.evaluate([s.atoms for s in chosen], dtype, name, names=[s.source for s in chosen])
        for i, f in zip(members, found, strict=True):
            out[i] = f
    return out


def size_of(items: Sequence[Item], config: ModelConfig) -> graph.Size:
    """Smallest padded shape that holds these structures in one batch."""
    return graph.size_of([(i.labelled.atoms, i.edges) for i in items], config)


def plan(
    items: Sequence[Item], graphs: int, slots: int, rng: np.random.Generator | None = None, order=None
) -> list[list[int]]:
    """Group structures into batches of at most `graphs` structures and `slots` edge slots N*K (one structure at least).

    Args:
      items: all structures.
      graphs: structures a batch.
      slots: edge slots a batch.
      rng: shuffles; None keeps the order.
      order: indices to take, all by default.

    Returns:
      indices of each batch.
    """
    order = np.arange(len(items)) if order is None else np.asarray(order)
    order = order if rng is None else rng.permutation(order)
    nodes = [len(i.labelled.atoms) for i in items]
    width = [int(np.bincount(i.edges.receivers, minlength=1).max(initial=0)) for i in items]
    batches: list[list[int]] = []
    for i in order.tolist():
        joined = [*batches[-1], i] if batches else [i]
        cost = sum(nodes[j] for j in joined) * max(width[j] for j in joined)
        if batches and len(joined) <= graphs and cost <= slots:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def batch(
    items: Sequence[Item],
    config: ModelConfig,
    energies: np.ndarray,
    size: graph.Size | None = None,
    head: int = 0,
) -> jraph.GraphsTuple:
    """One padded graph with labels; a missing label has mask 0 (and value 0, which nothing may read).

    Besides the fields of `equijax.graph`:

      globals  energy [G] eV, the label minus E0 of its atoms, formed in float64; energy_mask [G]; stress [G, 3, 3]
               eV/A^3; stress_mask [G]; weight [G], 0 for padding; energy_weight, forces_weight, stress_weight [G]
      nodes    forces [N, 3] eV/A; forces_mask [N]; where a structure has them: tangents [N, B, 3] A, hvp [N, B, 3]
               eV/A, hvp_mask [N]; if one of them has displacement waves, real and imaginary parts of all:
               tangents and hvp [N, B, 2, 3], hvp_mask [N, 2], and globals q [G, B, 3]

    Args:
      items: from `prepare`.
      config: hyper-parameters.
      energies: [H, Z] eV isolated-atom energies.
      size: padded shape, the smallest by default.
      head: of structures that name none.

    Raises:
      ValueError: structures with different numbers of tangents.
    """
    size = size_of(items, config) if size is None else size
    heads = [head if i.labelled.head is None else config.heads.index(i.labelled.head) for i in items]
    g = graph.build([(i.labelled.atoms, i.edges) for i in items], config, size, heads)
    n, G = g.nodes["positions"].shape[0], len(g.n_node)
    labels = _empty_globals(G)
    nodes = {"forces": np.zeros((n, 3)), "forces_mask": np.zeros(n)} | _products(items, n)
    labels |= _wave_vectors(items, G)
    first = 0
    for b, (item, h) in enumerate(zip(items, heads, strict=True)):
        s, rows = item.labelled, slice(first, first + len(item.labelled.atoms))
        first = rows.stop
        labels["weight"][b] = s.weight
        for name, weight in zip(LABELS, s.label_weights, strict=True):
            labels[f"{name}_weight"][b] = s.weight * weight
        if s.energy is not None:
            labels["energy"][b], labels["energy_mask"][b] = s.energy - _isolated(s, config, energies[h]), 1.0
        if s.stress is not None:
            labels["stress"][b], labels["stress_mask"][b] = s.stress, 1.0
        if s.forces is not None:
            known = np.isfinite(s.forces).all(axis=1)
            nodes["forces"][rows], nodes["forces_mask"][rows] = np.nan_to_num(s.forces), known
    return g._replace(nodes={**g.nodes, **nodes}, globals={**g.globals, **labels})


def _empty_globals(G):
    return {
        "energy": np.zeros(G),
        "energy_mask": np.zeros(G),
        "stress": np.zeros((G, 3, 3)),
        "stress_mask": np.zeros(G),
        "weight": np.zeros(G),
        **{f"{name}_weight": np.zeros(G) for name in LABELS},
    }


def _products(items, n):
    """Tangents and force-constant products of the structures that have them, zero and masked for the others."""
    numbers = {i.labelled.tangents.shape[1] for i in items if i.labelled.tangents is not None}
    if not numbers:
        return {}
    if len(numbers) > 1:
        raise ValueError(f"structures of one batch have different numbers of tangents: {sorted(numbers)}")
    number, waves = numbers.pop(), any(i.labelled.q is not None for i in items)
    kind = complex if waves else float
    tangents, hvp = np.zeros((n, number, 3), kind), np.zeros((n, number, 3), kind)
    mask = np.zeros((n, 2))  # of real and imaginary parts
    first = 0
    for s in (i.labelled for i in items):
        rows = slice(first, first + len(s.atoms))
        first = rows.stop
        if s.hvp is not None:
            tangents[rows], hvp[rows], mask[rows] = s.tangents, s.hvp, (1.0, s.q is not None)
    if not waves:
        return {"tangents": tangents, "hvp": hvp, "hvp_mask": mask[:, 0]}
    parts = {k: np.stack([x.real, x.imag], axis=2) for k, x in (("tangents", tangents), ("hvp", hvp))}
    return {**parts, "hvp_mask": mask}


def _wave_vectors(items, G):
    """q of every structure, zero where tangents are ordinary displacements; nothing if all are."""
    found = {b: i.labelled.q for b, i in enumerate(items) if i.labelled.q is not None}
    if not found:
        return {}
    q = np.zeros((G, len(next(iter(found.values()))), 3))
    for b, values in found.items():
        q[b] = values
    return {"q": q}


def _isolated(s, config, energies):
    row = {z: i for i, z in enumerate(config.species)}
    return float(sum(energies[row[int(z)]] for z in s.atoms.numbers))
