"""Structures packed into full padded batches of like coordination as they arrive."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import ase
import jax
import jraph

from equijax.config import ModelConfig
from equijax.graph import neighbours, regular, shapes
from equijax.graph.shapes import MAX_DENSE_SPECIES

Kind = TypeVar("Kind")
# Edge slots N*K in one batch, by backend: two cores are full at 16 k already; a slot of the MACE-MP-0b3 shape takes
# about 40 kB, so an accelerator gets 10 GB of work at once.
BATCH_SLOTS = {"cpu": 16384}
ACCELERATOR_SLOTS = 262144


class Structure(NamedTuple):
    """One structure with its neighbours and its place in the input."""

    index: int
    atoms: ase.Atoms
    edges: neighbours.Edges
    slots: int  # largest number of neighbours of an atom


class Batch(NamedTuple):
    """Structures that are evaluated together, and the padded shape for them."""

    members: list[Structure]
    size: shapes.Size

    def build(self, config: ModelConfig, head: int) -> jraph.GraphsTuple:
        """The padded graph."""
        pairs = [(s.atoms, s.edges) for s in self.members]
        return regular.build(pairs, config, size=self.size, heads=[head] * len(pairs))


def batch_slots() -> int:
    """Edge slots of a full batch on the default device."""
    return BATCH_SLOTS.get(jax.default_backend(), ACCELERATOR_SLOTS)


def batches(structures: Iterable[Structure], pool: shapes.SizePool, *, known: int, budget: int) -> Iterator[Batch]:
    """Batches of like coordination, each yielded as soon as it is full; what is left at the end is packed together.

    All full batches of one class of K have the same shape, so a long stream compiles one program a class.

    Args:
      structures: any number; only unfinished batches are held.
      pool: the shapes in use; new ones are added to it, a bounded number.
      known: elements of the model.
      budget: edge slots N*K a batch; a structure that needs more makes a batch of its own.
    """
    bins: dict[int, list[Structure]] = {}
    for s in structures:
        k = slot_class(s.slots)
        if (nodes(bins.get(k, [])) + len(s.atoms)) * k > budget and k in bins:
            yield from shaped(bins.pop(k), pool, known=known, budget=budget)
        bins.setdefault(k, []).append(s)
    left = sorted((s for waiting in bins.values() for s in waiting), key=lambda s: (s.slots, -len(s.atoms)))
    for members in packed(left, lambda group: nodes(group) * slot_class(group[-1].slots) <= budget):
        yield from shaped(members, pool, known=known, budget=budget)


def packed(ordered: Iterable[Kind], fits: Callable[[list[Kind]], bool]) -> list[list[Kind]]:
    """Groups of what follows one another: each takes the next as long as it then `fits`, and holds one at least."""
    groups: list[list[Kind]] = []
    for item in ordered:
        if groups and fits([*groups[-1], item]):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def shaped(members: list[Structure], pool: shapes.SizePool, *, known: int, budget: int) -> Iterator[Batch]:
    """The batch with its shape: the full one of its class where it fills that, otherwise one from the pool.

    Where the pool is full and holds no shape large enough, the batch is halved until it fits.
    """
    needed = shapes.size_of([(s.atoms, s.edges) for s in members])
    k = slot_class(needed.slots)
    full = shapes.Size(budget // k, k, species_class(needed.species, known), budget // k + 1)
    fills = full.holds(needed) and full.nodes <= 1.25 * needed.nodes
    if fills and pool.offer(full):
        yield Batch(members, full)
    elif len(members) > 1 and pool.full and not any(size.holds(needed) for size in pool.sizes):
        half = len(members) // 2
        yield from shaped(members[:half], pool, known=known, budget=budget)
        yield from shaped(members[half:], pool, known=known, budget=budget)
    else:
        yield Batch(members, pool.fit(needed))


def slot_class(k: int) -> int:
    """K rounded up to one of eight per octave: 16, 18, 20, ..., 32, 36, 40, ..."""
    return shapes.round_up(shapes.Size(1, k, 1, 2)).slots


def species_class(s: int, known: int) -> int:
    """S rounded up to a power of two, or to all: above `MAX_DENSE_SPECIES` the cost no longer grows with S."""
    return 1 << (s - 1).bit_length() if s <= MAX_DENSE_SPECIES else known


def structure(index: int, atoms: ase.Atoms, *, edges: neighbours.Edges) -> Structure:
    """A structure with its neighbours counted."""
    return Structure(index, atoms, edges, shapes.size_of([(atoms, edges)]).slots)


def nodes(structures: list[Structure]) -> int:
    """Atoms in all of them."""
    return sum(len(s.atoms) for s in structures)
