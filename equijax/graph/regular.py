"""ase.Atoms -> regular, padded jraph.GraphsTuple. Host-side numpy."""

import ase
import ase.data
import jraph
import numpy as np
from ase.geometry import complete_cell

from equijax.config import EMBEDDED, ModelConfig
from equijax.graph.fields import Globals, Nodes, Slots
from equijax.graph.neighbours import Edges, check_atoms, embedded_numbers, listed, near_first
from equijax.graph.shapes import Size, SizePool, size_of
from equijax.graph.skin import SkinList


def build(
    structures: list[tuple[ase.Atoms, Edges]],
    config: ModelConfig,
    *,
    size: Size | None = None,
    heads: list[int] | None = None,
) -> jraph.GraphsTuple:
    """One padded batch.

    Args:
      structures: pairs of atoms and neighbour list.
      config: gives the species order.
      size: padded shape, default the smallest.
      heads: [len(structures)] head of each structure, default 0.

    Raises:
      ValueError: `size` does not hold the structures.
    """
    needed = size_of(structures, config)
    size = needed if size is None else size
    if not size.holds(needed):
        raise ValueError(f"{needed} does not fit into {size}")
    n, k, s, g, near = size
    row = {z: i for i, z in enumerate(config.species)}
    present = sorted({row[int(z)] for atoms, _ in structures for z in atoms.numbers})
    table = np.array(present + [present[0]] * (s - len(present)), np.int32)
    slot_of = {r: i for i, r in enumerate(present)}

    positions, slot = np.zeros((n, 3)), np.zeros(n, np.int32)
    shifts, vectors, mask = np.zeros((n * k, 3)), np.zeros((n * k, 3)), np.zeros(n * k, bool)
    senders, reverse = np.repeat(np.arange(n), k), np.arange(n * k)
    cell, head, n_node = np.zeros((g, 3, 3)), np.zeros(g, np.int32), np.zeros(g, np.int32)
    first = 0
    for b, (atoms, edges) in enumerate(structures):
        count = len(atoms)
        positions[first : first + count] = atoms.positions
        slot[first : first + count] = [slot_of[row[int(z)]] for z in atoms.numbers]
        cell[b], n_node[b] = complete_cell(atoms.cell.array), count
        where = _slots(edges.receivers, count, k=k) + first * k
        shifts[where], mask[where] = edges.shifts, True
        between = atoms.positions[edges.receivers] - atoms.positions[edges.senders]
        vectors[where] = between - edges.shifts @ cell[b]
        senders[where], reverse[where] = edges.senders + first, where[edges.reverse]
        first += count
    n_node[-1] = n - first
    if heads is not None:
        head[: len(heads)] = heads
    return jraph.GraphsTuple(
        nodes=Nodes(positions, slot),
        edges=Slots(vectors, shifts, mask, reverse.astype(np.int32)),
        senders=senders.astype(np.int32),
        receivers=np.repeat(np.arange(n, dtype=np.int32), k),
        n_node=n_node,
        n_edge=n_node * k,
        globals=Globals(
            cell,
            head,
            table,
            embedded=_embedded([atoms for atoms, _ in structures], config, num_graphs=g),
            near=np.arange(near, dtype=np.int32) if near else None,
        ),
    )


def from_atoms(
    images: ase.Atoms | list[ase.Atoms],
    config: ModelConfig,
    *,
    pool: SizePool | None = None,
    heads: list[int] | None = None,
    lists: list[SkinList] | None = None,
) -> jraph.GraphsTuple:
    """Check structures, list their neighbours and batch them.

    Args:
      images: one structure or several.
      config: gives the species and the cutoff.
      pool: bounds the number of distinct shapes.
      heads: see `build`.
      lists: one for each structure, where the same ones come again and again; default none.

    Raises:
      InputError: see `check_atoms` and `neighbour_list`.
    """
    images = [images] if isinstance(images, ase.Atoms) else list(images)
    structures = []
    for i, atoms in enumerate(images):
        name = f"structure {i} ({atoms.get_chemical_formula()})"
        check_atoms(atoms, config, name=name)
        kept = None if lists is None else lists[i].edges(atoms, name=name)
        edges = listed(atoms, config, name=name) if kept is None else near_first(kept, atoms, config=config)
        structures.append((atoms, edges))
    size = size_of(structures, config)
    return build(structures, config, size=size if pool is None else pool.fit(size), heads=heads)


def _embedded(images: list[ase.Atoms], config: ModelConfig, *, num_graphs: int) -> np.ndarray | None:
    """[G, F] numbers of each structure that the model embeds, defaults for padding; None of a model without."""
    specs = getattr(config, "embeddings", ())
    if not specs:
        return None
    out = np.array([[EMBEDDED[spec.name][1] for spec in specs]] * num_graphs)
    for row, atoms in zip(out, images, strict=False):
        row[:] = embedded_numbers(atoms.info, config)
    return out


def _slots(receivers: np.ndarray, num_nodes: int, *, k: int) -> np.ndarray:
    """Slot of every edge: receiver * K + its rank among the receiver's edges (receivers ascending)."""
    counts = np.bincount(receivers, minlength=num_nodes)
    start = np.cumsum(counts) - counts
    return receivers * k + np.arange(len(receivers)) - start[receivers]
