"""Labelled structures as padded graphs with labels and masks."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jraph
import numpy as np

from equijax import graph
from equijax.config import Compute, ModelConfig
from equijax.data.labelled import Labelled
from equijax.errors import InputError
from equijax.graph import packing
from equijax.potential import Evaluated, Potential


class NodeLabels(NamedTuple):
    """Labels of atoms; None where no structure of a batch has them.

    If one structure has displacement waves, tangents and products are real and imaginary parts, [N, B, 2, 3], and
    their mask is [N, 2].
    """

    forces: np.ndarray | None  # [N, 3] eV/A
    forces_mask: np.ndarray | None  # [N]
    tangents: np.ndarray | None  # [N, B, 3] A
    hvp: np.ndarray | None  # [N, B, 3] eV/A, force constants times tangents
    hvp_mask: np.ndarray | None  # [N]


class GraphLabels(NamedTuple):
    """Labels of structures; None where no structure of a batch has them."""

    energy: np.ndarray | None  # [G] eV, the label minus E0 of its atoms, formed in float64
    energy_mask: np.ndarray | None  # [G]
    stress: np.ndarray | None  # [G, 3, 3] eV/A^3
    stress_mask: np.ndarray | None  # [G]
    weight: np.ndarray  # [G], 0 for padding
    energy_weight: np.ndarray  # [G]
    forces_weight: np.ndarray  # [G]
    stress_weight: np.ndarray  # [G]
    q: np.ndarray | None  # [G, B, 3] fractional wave vectors of tangents

    @property
    def of_each(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights of energies, forces and stresses."""
        return self.energy_weight, self.forces_weight, self.stress_weight


LABEL_SHAPES = ((), (), (3, 3), (), (), (), (), ())  # of the fields of `GraphLabels` but the last, after [G]


class Item(NamedTuple):
    """A labelled structure with its neighbour list, built once."""

    labelled: Labelled
    edges: graph.Edges


def prepare(structures: Iterable[Labelled], config: ModelConfig) -> list[Item]:
    """Check structures against the model and list their neighbours.

    Raises:
      InputError: a structure the model cannot describe or a head it does not have; file and frame are named.
    """
    items = []
    for s in structures:
        graph.check_atoms(s.atoms, config, name=s.source)
        if s.head is not None and s.head not in config.heads:
            raise InputError(
                f"{s.source}: head {s.head!r} is not one of the model's: {', '.join(config.heads)}; rename it, or "
                "read none with --head-key none"
            )
        items.append(Item(s, graph.listed(s.atoms, config, name=s.source)))
    return items


def predictions(ff: Potential, structures: Sequence[Labelled], *, dtype: str = "float32") -> list[Evaluated]:
    """`ForceField.evaluate` with the head that each structure names, or that of the model where it names none.

    Args:
      ff: a ForceField.
      structures: their sources name them in messages.
      dtype: of the computation.

    Raises:
      InputError: a structure the model cannot describe or a head it does not have, by source.
      FloatingPointError: an energy or force is not finite, by source.
    """
    prepare(structures, ff.config)
    by_head: dict[str | None, list[int]] = {}
    for i, s in enumerate(structures):
        by_head.setdefault(s.head, []).append(i)
    out: dict[int, Evaluated] = {}
    for name, members in by_head.items():
        chosen, model = [structures[i] for i in members], ff if name is None else ff.with_head(name)
        found = model.evaluate([s.atoms for s in chosen], compute=Compute(dtype), names=[s.source for s in chosen])
        out |= zip(members, found, strict=True)
    return [out[i] for i in range(len(structures))]


def size_of(items: Sequence[Item], config: ModelConfig) -> graph.Size:
    """Smallest padded shape that holds these structures in one batch."""
    return graph.size_of([(i.labelled.atoms, i.edges) for i in items], config)


def plan(
    items: Sequence[Item],
    graphs: int,
    *,
    slots: int,
    rng: np.random.Generator | None = None,
    order: Sequence[int] | None = None,
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
    taken = np.arange(len(items)) if order is None else np.asarray(order, int)
    taken = taken if rng is None else rng.permutation(taken)
    nodes = [len(i.labelled.atoms) for i in items]
    width = [int(np.bincount(i.edges.receivers, minlength=1).max(initial=0)) for i in items]

    def fits(group: list[int]) -> bool:
        return len(group) <= graphs and sum(nodes[i] for i in group) * max(width[i] for i in group) <= slots

    return packing.packed(taken.tolist(), fits)


def batch(
    items: Sequence[Item],
    config: ModelConfig,
    *,
    energies: np.ndarray,
    size: graph.Size | None = None,
    head: int = 0,
) -> jraph.GraphsTuple:
    """One padded graph with labels; a missing label has mask 0 (and value 0, which nothing may read).

    They are `labels` of its nodes and globals: `NodeLabels` and `GraphLabels`.

    Args:
      items: from `prepare`.
      config: hyper-parameters.
      energies: [H, Z] eV isolated-atom energies.
      size: padded shape, the smallest by default.
      head: of structures that name none.

    Raises:
      InputError: structures with different numbers of tangents.
    """
    size = size_of(items, config) if size is None else size
    heads = [head if i.labelled.head is None else config.heads.index(i.labelled.head) for i in items]
    g = graph.build([(i.labelled.atoms, i.edges) for i in items], config, size=size, heads=heads)
    tangents, hvp, hvp_mask = _products(items, size.nodes)
    forces, forces_mask = np.zeros((size.nodes, 3)), np.zeros(size.nodes)
    nodes = NodeLabels(forces, forces_mask, tangents, hvp, hvp_mask)
    zeros = [np.zeros((size.graphs, *shape)) for shape in LABEL_SHAPES]
    energy, energy_mask, stress, stress_mask, *_ = zeros
    labels = GraphLabels(*zeros, q=_wave_vectors(items, size.graphs))
    first = 0
    for b, (item, h) in enumerate(zip(items, heads, strict=True)):
        s, rows = item.labelled, slice(first, first + len(item.labelled.atoms))
        first = rows.stop
        labels.weight[b] = s.weight
        for weights, weight in zip(labels.of_each, s.label_weights, strict=True):
            weights[b] = s.weight * weight
        if s.energy is not None:
            energy[b], energy_mask[b] = s.energy - _isolated(s, config, energies=energies[h]), 1.0
        if s.stress is not None:
            stress[b], stress_mask[b] = s.stress, 1.0
        if s.forces is not None:
            known = np.isfinite(s.forces).all(axis=1)
            forces[rows], forces_mask[rows] = np.nan_to_num(s.forces), known
    return g._replace(nodes=g.nodes._replace(labels=nodes), globals=g.globals._replace(labels=labels))


def without_first_order(g: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """The same batch without energies, forces and stresses: for structures that have force constants alone."""
    nodes = g.nodes.labels._replace(forces=None, forces_mask=None)
    labels = g.globals.labels._replace(energy=None, energy_mask=None, stress=None, stress_mask=None)
    return g._replace(nodes=g.nodes._replace(labels=nodes), globals=g.globals._replace(labels=labels))


def _products(items: Sequence[Item], n: int) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Tangents, force-constant products and their mask, zero and masked for the structures that have none."""
    numbers = {i.labelled.tangents.shape[1] for i in items if i.labelled.tangents is not None}
    if not numbers:
        return None, None, None
    if len(numbers) > 1:
        raise InputError(f"structures of one batch have different numbers of tangents: {sorted(numbers)}")
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
        return tangents, hvp, mask[:, 0]
    return np.stack([tangents.real, tangents.imag], axis=2), np.stack([hvp.real, hvp.imag], axis=2), mask


def _wave_vectors(items: Sequence[Item], num_graphs: int) -> np.ndarray | None:
    """q of every structure, zero where tangents are ordinary displacements; None if all are."""
    found = {b: i.labelled.q for b, i in enumerate(items) if i.labelled.q is not None}
    if not found:
        return None
    q = np.zeros((num_graphs, len(next(iter(found.values()))), 3))
    for b, values in found.items():
        q[b] = values
    return q


def _isolated(s: Labelled, config: ModelConfig, *, energies: np.ndarray) -> float:
    """Sum of E0 [Z] over the atoms, eV."""
    row = {z: i for i, z in enumerate(config.species)}
    return float(sum(energies[row[int(z)]] for z in s.atoms.numbers))
