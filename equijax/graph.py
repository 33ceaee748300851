"""ase.Atoms -> regular, padded jraph.GraphsTuple: neighbour lists, checks, size buckets, batches. Host-side numpy.

Every receiver owns K edge slots, sorted by receiver, so an edge array [N*K, ...] is also [N, K, ...]. Unused slots are
masked. Fields of the graphs made here (the last graph is padding and may be empty):

  nodes    positions [N, 3] A; slot [N] row of `table`
  edges    vectors [N*K, 3] A, receiver minus sender at `positions`, formed in float64 so that float32 keeps its digits
           far from the origin too; shifts [N*K, 3] cell translations (integers, stored as floats); mask [N*K]; reverse
           [N*K] the slot of the same pair seen from the sender
  senders, receivers [N*K];  n_node, n_edge [G]
  globals  cell [G, 3, 3] A, rows are vectors; head [G]; table [S] rows of config.species present in the batch
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import ase
import ase.data
import jraph
import numpy as np
from ase.geometry import complete_cell

from equijax.config import ModelConfig

MIN_DISTANCE_A = 0.05  # closer pairs are broken input, not chemistry: ZBL is ~1 MeV here
MAX_WASTE = 2.0  # a known size is reused while it costs less than this factor in edge slots
MAX_CELLS = 1e5  # vesin makes its cells larger above this number, and divides by zero where one direction has most
MAX_IMAGES = 1e8  # lattice translations times cells looked at: seconds of work
MAX_SIZES = 14  # beyond this many sizes, waste no longer asks for a new one


class Edges(NamedTuple):
    """Symmetric neighbour list of one structure sorted by receiver; `reverse` is the index of the opposite edge."""

    receivers: np.ndarray  # [E]
    senders: np.ndarray  # [E]
    shifts: np.ndarray  # [E, 3] integers: the sender sits in the cell translated by shifts @ cell
    reverse: np.ndarray  # [E]


class Size(NamedTuple):
    """Padded shape of a batch: one compiled program each."""

    nodes: int  # N
    slots: int  # K
    species: int  # S
    graphs: int  # G, padding graph included

    @property
    def cost(self) -> int:
        return self.nodes * self.slots

    def holds(self, other: "Size") -> bool:
        return all(a >= b for a, b in zip(self, other, strict=True))


def check_atoms(atoms: ase.Atoms, config: ModelConfig, name: str = "structure") -> None:
    """Refuse input the model cannot describe.

    Raises:
      ValueError: no atoms, an element unknown to the model, non-finite positions or cell, a periodic cell of zero
        volume; the message names the atoms.
    """
    if len(atoms) == 0:
        raise ValueError(f"{name}: it has no atoms")
    unknown = [i for i, z in enumerate(atoms.numbers) if z not in config.species]
    if unknown:
        symbols = sorted({str(atoms.symbols[i]) for i in unknown})
        raise ValueError(
            f"{name}: {_some(unknown)} of element {', '.join(symbols)}, which this model does not know; "
            f"it knows {len(config.species)} elements: {_symbols(config.species)}"
        )
    check_geometry(atoms, name)


def check_geometry(atoms: ase.Atoms, name: str = "structure") -> None:
    """Refuse positions and cells that have no neighbour list.

    Raises:
      ValueError: non-finite positions or cell, a periodic cell of zero volume.
    """
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(1))
    if bad.size:
        raise ValueError(f"{name}: {_some(bad)} at non-finite position {atoms.positions[bad[0]]}")
    if not np.isfinite(atoms.cell.array).all():
        raise ValueError(f"{name}: the cell is not finite: {atoms.cell.array.tolist()}")
    periodic = atoms.cell.array[atoms.pbc]
    if len(periodic) and _volume(periodic) < 1e-6:  # A^dim
        raise ValueError(
            f"{name}: periodic along {atoms.pbc.tolist()} but those cell vectors span no volume: "
            f"{atoms.cell.array.tolist()}"
        )


def has_stress(atoms: ase.Atoms) -> bool:
    """Whether the cell vectors span a volume for dE/dstrain to be divided by, vacuum included, periodic or not."""
    return bool(atoms.cell.volume > 0)


def neighbour_list(atoms: ase.Atoms, cutoff: float, name: str = "structure") -> Edges:
    """All ordered pairs within `cutoff` (A) with periodic images, self-images included.

    Raises:
      ValueError: two atoms closer than 0.05 A, named; see also `check_geometry` and `compact`.
    """
    import vesin  # not at the top: it imports torch where that is installed

    check_geometry(atoms, name)
    frame = compact(atoms, cutoff, name)
    calculator = vesin.NeighborList(cutoff=float(cutoff), full_list=True)
    i, j, shifts, d = calculator.compute(frame.positions, frame.cell, frame.pbc, "ijSd")
    shifts = shifts.astype(np.int64) + frame.cells[i] - frame.cells[j]
    if d.size and d.min() < MIN_DISTANCE_A:
        e = int(d.argmin())
        raise ValueError(
            f"{name}: atoms {i[e]} and {j[e]} ({atoms.symbols[int(i[e])]}, {atoms.symbols[int(j[e])]}) are "
            f"{d[e]:.3g} A apart; expected at least {MIN_DISTANCE_A} A: remove the duplicate"
        )
    i, j = i.astype(np.int64), j.astype(np.int64)
    order = np.lexsort((*shifts.T, j, i))
    i, j, shifts = i[order], j[order], shifts[order]
    opposite = np.lexsort((*-shifts.T, i, j))
    if not (
        np.array_equal(i[opposite], j) and np.array_equal(j[opposite], i) and np.array_equal(-shifts[opposite], shifts)
    ):
        raise RuntimeError(f"{name}: the neighbour list is not symmetric; this is a bug in the list, please report it")
    return Edges(i, j, shifts, opposite)


class Frame(NamedTuple):
    """A structure with the same neighbours as another, without its wide vacuum."""

    positions: np.ndarray  # [N, 3] A
    cell: np.ndarray  # [3, 3] A, rows are vectors
    pbc: tuple[bool, ...]
    cells: np.ndarray  # [N, 3] integers: lattice translations taken off the positions


def compact(atoms: ase.Atoms, cutoff: float, name: str = "structure") -> Frame:
    """A frame where a cell list needs memory and time by the number of atoms, however large and empty the cell is.

    Atoms are wrapped into the cell; a direction with a gap wider than two cutoffs no longer repeats; along directions
    that do not repeat, wider gaps shrink to that. No pair within the cutoff reaches across such a gap.

    Raises:
      ValueError: a cell so thin or so elongated that the list would still be too large.
    """
    pbc, gap = atoms.pbc.copy(), 2.0 * cutoff
    cell = complete_cell(atoms.cell.array)
    inverse = np.linalg.inv(cell)
    s, heights = atoms.positions @ inverse, 1.0 / np.linalg.norm(inverse, axis=0)
    cells = np.zeros((len(atoms), 3), np.int64)
    for d in np.flatnonzero(pbc):
        x = np.sort(s[:, d] - np.floor(s[:, d]))
        gaps = np.diff(x, append=x[0] + 1.0)
        widest = int(gaps.argmax())
        pbc[d] = gaps[widest] * heights[d] <= gap
        start = 0.0 if pbc[d] else x[widest] + 0.5 * gaps[widest]
        cells[:, d] = np.floor(s[:, d] - start)
    positions = atoms.positions - cells @ cell
    axes = np.linalg.svd(cell[pbc])[2][pbc.sum() :]  # orthonormal, perpendicular to what repeats
    along = positions @ axes.T
    order = np.argsort(along, axis=0)
    steps = np.diff(np.take_along_axis(along, order, 0), axis=0, prepend=np.nan)
    squeezed = np.empty_like(along)
    np.put_along_axis(squeezed, order, np.cumsum(np.fmin(np.nan_to_num(steps), gap), axis=0), 0)
    positions = positions + (squeezed - along) @ axes
    cell = np.vstack([cell[pbc], (squeezed.max(0) + cutoff)[:, None] * axes])
    repeats = np.arange(3) < pbc.sum()
    _check_cells(cell, repeats, cutoff, name)
    back = np.argsort([*np.flatnonzero(pbc), *np.flatnonzero(~pbc)])  # vectors in their own order
    return Frame(positions, cell[back], tuple(pbc.tolist()), cells)


def _check_cells(cell, repeats, cutoff, name):
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    bins = np.maximum(1, heights // cutoff)
    images = np.where(repeats, 2 * np.ceil(cutoff * bins / heights) + 1, 3)
    shape = f"{heights.round(3).tolist()} A between opposite faces"
    if images.prod() * bins.prod() > MAX_IMAGES:
        raise ValueError(f"{name}: the cell, {shape}, is too thin for a cutoff of {cutoff} A: check its units, repeat "
                         "it, or reduce it (ase.build.niggli_reduce)")  # fmt: skip
    total = bins.prod()
    if total > MAX_CELLS and bins.min() * (MAX_CELLS / total) ** (1 / 3) < 2:
        raise ValueError(f"{name}: atoms spread over {shape}, too elongated for a neighbour list with a cutoff of "
                         f"{cutoff} A: split the structure")  # fmt: skip


def size_of(structures: list[tuple[ase.Atoms, Edges]], config: ModelConfig | None = None) -> Size:
    """Smallest padded shape that holds these structures in one batch."""
    nodes = sum(len(atoms) for atoms, _ in structures)
    slots = max(int(np.bincount(e.receivers, minlength=1).max(initial=0)) for _, e in structures)
    species = len({int(z) for atoms, _ in structures for z in atoms.numbers})
    return Size(nodes, max(slots, 1), species, len(structures) + 1)


@dataclass
class SizePool:
    """The padded shapes in use, so that a thousand different structures compile a handful of programs.

    A shape is reused while it wastes less than `MAX_WASTE` in edge slots; after `MAX_SIZES` shapes any that is large
    enough is, and new ones are powers of two, so their number stays bounded.
    """

    sizes: list[Size] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.sizes) >= MAX_SIZES

    def offer(self, size: Size) -> bool:
        """Whether `size` itself is in use, or free to be from now on."""
        if size not in self.sizes and not self.full:
            self.sizes.append(size)
        return size in self.sizes

    def fit(self, needed: Size) -> Size:
        """The known size to pad `needed` to, or a new one."""
        full = self.full
        fits = [s for s in self.sizes if s.holds(needed) and (full or s.cost <= MAX_WASTE * needed.cost)]
        if fits:
            return min(fits, key=lambda s: s.cost)
        size = round_up(needed)
        if full:
            size = Size(*map(_power_of_two, size[:3]), max(size.graphs, *(s.graphs for s in self.sizes)))
        self.sizes.append(size)
        return size


def round_up(size: Size) -> Size:
    """Round up to a ladder of nodes and slots, `LADDERS`, and to powers of two in species and graphs.

    Small structures take less time to compute than a program takes to compile: different ones share a few.
    """
    ladder = next(ladder for ladder in LADDERS if size.cost <= ladder.cost)
    return Size(
        ladder.round(size.nodes, 1),
        ladder.round(size.slots, ladder.slots),
        max(ladder.species, _power_of_two(size.species)),
        1 + _power_of_two(size.graphs - 1),
    )


class Ladder(NamedTuple):
    """Rungs of padded shapes up to `cost` edge slots: `parts` in each factor of two, from these least numbers on."""

    cost: float
    parts: int
    slots: int
    species: int

    def round(self, n: int, least: int) -> int:
        step = max(1, _power_of_two(n) // (2 * self.parts))
        return max(least, -(-n // step) * step)


LADDERS = (Ladder(1024, 1, 64, 4), Ladder(4096, 2, 16, 4), Ladder(np.inf, 8, 1, 1))


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def build(
    structures: list[tuple[ase.Atoms, Edges]],
    config: ModelConfig,
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
    n, k, s, g = size
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
        where = _slots(edges.receivers, count, k) + first * k
        shifts[where], mask[where] = edges.shifts, True
        between = atoms.positions[edges.receivers] - atoms.positions[edges.senders]
        vectors[where] = between - edges.shifts @ cell[b]
        senders[where], reverse[where] = edges.senders + first, where[edges.reverse]
        first += count
    n_node[-1] = n - first
    if heads is not None:
        head[: len(heads)] = heads
    return jraph.GraphsTuple(
        nodes={"positions": positions, "slot": slot},
        edges={"vectors": vectors, "shifts": shifts, "mask": mask, "reverse": reverse.astype(np.int32)},
        senders=senders.astype(np.int32),
        receivers=np.repeat(np.arange(n, dtype=np.int32), k),
        n_node=n_node,
        n_edge=n_node * k,
        globals={"cell": cell, "head": head, "table": table},
    )


def from_atoms(
    images: ase.Atoms | list[ase.Atoms],
    config: ModelConfig,
    *,
    pool: SizePool | None = None,
    heads: list[int] | None = None,
) -> jraph.GraphsTuple:
    """Check structures, list their neighbours and batch them; `pool` bounds the number of distinct shapes.

    Raises:
      ValueError: see `check_atoms` and `neighbour_list`.
    """
    images = [images] if isinstance(images, ase.Atoms) else list(images)
    structures = []
    for i, atoms in enumerate(images):
        name = f"structure {i} ({atoms.get_chemical_formula()})"
        check_atoms(atoms, config, name)
        structures.append((atoms, neighbour_list(atoms, config.r_max, name)))
    size = size_of(structures, config)
    return build(structures, config, size if pool is None else pool.fit(size), heads)


def _slots(receivers, num_nodes, k):
    """Slot of every edge: receiver * K + its rank among the receiver's edges (receivers ascending)."""
    counts = np.bincount(receivers, minlength=num_nodes)
    start = np.cumsum(counts) - counts
    return receivers * k + np.arange(len(receivers)) - start[receivers]


def _volume(vectors):
    return float(np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0)))


def _some(indices):
    shown = ", ".join(str(int(i)) for i in indices[:5])
    return f"atom{'s' if len(indices) > 1 else ''} {shown}" + (
        f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    )


def _symbols(numbers):
    return " ".join(ase.data.chemical_symbols[z] for z in numbers)
