"""Padded shapes of batches: a small set of sizes, so that a thousand structures compile a handful of programs."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import ase
import ase.data
import numpy as np

from equijax.config import ModelConfig
from equijax.graph.neighbours import Edges

PROGRAM_SLOTS = 1 << 19  # edge slots that are computed in about the time that a program takes to compile
MAX_SIZES = 14  # beyond this many sizes, waste no longer asks for a new one
LITTLE = 1.3  # times the work of a shape's own, and no other is worth a program


class Size(NamedTuple):
    """Padded shape of a batch: one compiled program each."""

    nodes: int  # N
    slots: int  # K
    species: int  # S
    graphs: int  # G, padding graph included
    near: int = 0  # K', the first slots of a receiver that hold all within r_max; 0: all do

    @property
    def cost(self) -> int:
        return self.nodes * self.slots

    def holds(self, other: "Size") -> bool:
        return all(a >= b for a, b in zip(self, other, strict=True))


def size_of(structures: list[tuple[ase.Atoms, Edges]], config: ModelConfig | None = None) -> Size:
    """Smallest padded shape that holds these structures in one batch."""
    nodes = sum(len(atoms) for atoms, _ in structures)
    slots = max(int(np.bincount(e.receivers, minlength=1).max(initial=0)) for _, e in structures)
    species = len({int(z) for atoms, _ in structures for z in atoms.numbers})
    near = [int(np.bincount(e.receivers[e.near], minlength=1).max()) for _, e in structures if e.near is not None]
    return Size(nodes, max(slots, 1), species, len(structures) + 1, max([*near, 1]) if near else 0)


class Ladder(NamedTuple):
    """Rungs of padded shapes up to `work`, the product of edge slots and of what is computed for each."""

    work: float
    parts: int  # of each factor of two that are rungs; 0: the least numbers times powers of two
    nodes: int  # the least of each
    slots: int
    species: int

    def round(self, n: int, least: int) -> int:
        """The next rung."""
        if not self.parts:
            return least * _power_of_two(-(-n // least))
        step = max(1, _power_of_two(n) // (2 * self.parts))
        return max(least, -(-n // step) * step)


FINE = (Ladder(np.inf, 8, 1, 1, 1),)  # at most 1/8 waste in nodes and in slots
# Single small structures take less time to compute than a program takes to compile: most share a few. 96 slots hold the
# neighbours within 5 A of all but the densest crystals, within 6 A of most.
SHARED = (Ladder(16384, 0, 2, 96, 4), *FINE)


@dataclass
class SizePool:
    """The padded shapes in use, so that a thousand different structures compile a handful of programs.

    Any shape that is large enough is reused, until what was wasted in it would have paid for a better one; after
    `MAX_SIZES` shapes any is for good, and new ones are powers of two, so their number stays bounded.
    """

    sizes: list[Size] = field(default_factory=list)
    ladders: tuple[Ladder, ...] = FINE
    wasted: Counter = field(default_factory=Counter)  # edge slots, by shape in use and better shape

    @property
    def full(self) -> bool:
        return len(self.sizes) >= MAX_SIZES

    def offer(self, size: Size) -> bool:
        """Whether `size` itself is in use, or free to be from now on."""
        if size not in self.sizes and not self.full:
            self.sizes.append(size)
        return size in self.sizes

    def fit(self, needed: Size, *, work: int = 1) -> Size:
        """The known size to pad `needed` to, or a new one.

        Args:
          needed: the smallest.
          work: times that each edge slot is computed in one call.
        """
        full, new = self.full, round_up(needed, self.ladders, work=work)
        if holding := [s for s in self.sizes if s.holds(needed)]:
            size = min(holding, key=lambda s: s.cost)
            if full:
                return size
            new = round_up(needed) if size == new else new
            self.wasted[size, new] += work * (size.cost - new.cost)
            if size.cost <= LITTLE * new.cost or self.wasted[size, new] < PROGRAM_SLOTS:
                return size
        if full:
            nodes, slots, species, near = map(_power_of_two, (*new[:3], new.near))
            new = Size(nodes, slots, species, max(new.graphs, *(s.graphs for s in self.sizes)), near if new.near else 0)
        self.sizes.append(new)
        return new


def round_up(size: Size, ladders: tuple[Ladder, ...] = FINE, *, work: int = 1) -> Size:
    """Round nodes and slots up on the first ladder that goes so far, species and graphs to powers of two."""
    ladder = next(ladder for ladder in ladders if size.cost * work <= ladder.work)
    return Size(
        ladder.round(size.nodes, ladder.nodes),
        ladder.round(size.slots, ladder.slots),
        max(ladder.species, _power_of_two(size.species)),
        1 + _power_of_two(size.graphs - 1),
        ladder.round(size.near, ladder.slots) if size.near else 0,
    )


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


# Above this many species in a batch, per-species dense products cost more than gathering each atom's weights.
MAX_DENSE_SPECIES = 8
