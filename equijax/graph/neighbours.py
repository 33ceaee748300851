"""Neighbour lists of structures, and what is refused before one is made. Host-side numpy."""

import importlib
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import ase
import ase.data
import numpy as np
from ase.geometry import complete_cell

from equijax.config import EMBEDDED, ModelConfig
from equijax.errors import InputError

MIN_DISTANCE_A = 0.05  # closer pairs are broken input, not chemistry: ZBL is ~1 MeV here
MAX_CELLS = 1e5  # vesin makes its cells larger above this number, and divides by zero where one direction has most
MAX_IMAGES = 1e8  # lattice translations times cells looked at: seconds of work


class Edges(NamedTuple):
    """Symmetric neighbour list of one structure sorted by receiver; `reverse` is the index of the opposite edge."""

    receivers: np.ndarray  # [E]
    senders: np.ndarray  # [E]
    shifts: np.ndarray  # [E, 3] integers: the sender sits in the cell translated by shifts @ cell
    reverse: np.ndarray  # [E]
    near: np.ndarray | None = None  # [E] whether within r_max, of a model that reads farther ones too; these come last


def check_atoms(atoms: ase.Atoms, config: ModelConfig, *, name: str = "structure") -> None:
    """Refuse input the model cannot describe.

    Raises:
      InputError: no atoms, an element unknown to the model, non-finite positions or cell, a periodic cell of zero
        volume; the message names the atoms.
    """
    if len(atoms) == 0:
        raise InputError(f"{name}: it has no atoms")
    if not set(atoms.numbers.tolist()) <= set(config.species):
        unknown = [i for i, z in enumerate(atoms.numbers) if z not in config.species]
        symbols = sorted({str(atoms.symbols[i]) for i in unknown})
        raise InputError(
            f"{name}: {_some(unknown)} of element {', '.join(symbols)}, which this model does not know; "
            f"it knows {len(config.species)} elements: {_symbols(config.species)}"
        )
    check_geometry(atoms, name)
    embedded_numbers(atoms.info, config, name=name)


def embedded_numbers(info: Mapping[str, Any], config: ModelConfig, *, name: str = "structure") -> list[float]:
    """What the model embeds of a structure, from `Atoms.info`.

    They are "charge", the total charge in e (0 where it is missing), and "spin", the multiplicity 2 S + 1 (1).

    Raises:
      InputError: no finite number, or one that the model's table does not have.
    """
    out = []
    for spec in getattr(config, "embeddings", ()):
        key, default = EMBEDDED[spec.name]
        given = info.get(key, default)
        value = float(given) if isinstance(given, int | float | np.number) else np.nan
        low, high = (-spec.offset, spec.classes - spec.offset - 1) if spec.classes else (-np.inf, np.inf)
        if not np.isfinite(value) or not low <= value <= high or (spec.classes and value != int(value)):
            known = f"a whole number from {low} to {high}" if spec.classes else "a finite number"
            raise InputError(f"{name}: info[{key!r}] = {given!r}; this model needs {known} ({spec.name})")
        out.append(value)
    return out


def check_geometry(atoms: ase.Atoms, name: str = "structure") -> None:
    """Refuse positions and cells that have no neighbour list.

    Raises:
      InputError: non-finite positions or cell, a periodic cell of zero volume.
    """
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(1))
    if bad.size:
        raise InputError(f"{name}: {_some(bad)} at non-finite position {atoms.positions[bad[0]]}")
    if not np.isfinite(atoms.cell.array).all():
        raise InputError(f"{name}: the cell is not finite: {atoms.cell.array.tolist()}")
    periodic = atoms.cell.array[atoms.pbc]
    if len(periodic) and _volume(periodic) < 1e-6:  # A^dim
        raise InputError(
            f"{name}: periodic along {atoms.pbc.tolist()} but those cell vectors span no volume: "
            f"{atoms.cell.array.tolist()}"
        )


def has_stress(atoms: ase.Atoms) -> bool:
    """Whether the cell vectors span a volume for dE/dstrain to be divided by, vacuum included, periodic or not."""
    return bool(atoms.cell.volume > 0)


class _WithoutTorch:
    """A finder of modules to which torch is not installed, for one thread."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(self, name: str, *_: object) -> None:
        """None, so that the next finder is asked.

        Raises:
          ModuleNotFoundError: torch is asked for.
        """
        if name == "torch" and threading.get_ident() == self.thread:
            raise ModuleNotFoundError("vesin is imported without torch")


@cache
def _vesin() -> ModuleType:
    """vesin, which imports torch where that is installed: seconds, for tensors that nothing here has.

    Where the user has not imported either, it is a module of our own; the user's own vesin still knows torch.
    """
    if {"torch", "vesin"} & set(sys.modules):
        return importlib.import_module("vesin")
    finder = _WithoutTorch()
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        found = importlib.import_module("vesin")
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in [n for n in sys.modules if n.partition(".")[0] == "vesin"]:
            del sys.modules[name]
    return found


def neighbour_list(atoms: ase.Atoms, cutoff: float, *, name: str = "structure") -> Edges:
    """All ordered pairs within `cutoff` (A) with periodic images, self-images included.

    Raises:
      InputError: two atoms closer than 0.05 A, named; see also `check_geometry` and `compact`.
    """
    check_geometry(atoms, name)
    frame = compact(atoms, cutoff, name=name)
    calculator = _vesin().NeighborList(cutoff=float(cutoff), full_list=True)
    i, j, shifts, d = calculator.compute(frame.positions, frame.cell, frame.pbc, "ijSd")
    shifts = shifts.astype(np.int64) + frame.cells[i] - frame.cells[j]
    check_distances(atoms, (i, j), distances=d, name=name)
    i, j = i.astype(np.int64), j.astype(np.int64)
    order = np.lexsort((*shifts.T, j, i))
    i, j, shifts = i[order], j[order], shifts[order]
    opposite = np.lexsort((*-shifts.T, i, j))
    if not (
        np.array_equal(i[opposite], j) and np.array_equal(j[opposite], i) and np.array_equal(-shifts[opposite], shifts)
    ):
        raise RuntimeError(f"{name}: the neighbour list is not symmetric; this is a bug in the list, please report it")
    return Edges(i, j, shifts, opposite)


def check_distances(
    atoms: ase.Atoms, pairs: tuple[np.ndarray, np.ndarray], *, distances: np.ndarray, name: str = "structure"
) -> None:
    """Refuse pairs (receivers [E], senders [E]) at `distances` [E] A that are one atom twice.

    Raises:
      InputError: two atoms closer than 0.05 A, named.
    """
    if distances.size and distances.min() < MIN_DISTANCE_A:
        e = int(distances.argmin())
        i, j = (int(atom[e]) for atom in pairs)
        raise InputError(
            f"{name}: atoms {i} and {j} ({atoms.symbols[i]}, {atoms.symbols[j]}) are {distances[e]:.3g} A apart; "
            f"expected at least {MIN_DISTANCE_A} A: remove the duplicate"
        )


def longest_cutoff(config: ModelConfig) -> float:
    """How far a model reads, A: r_max, or the cutoff of its dispersion."""
    dispersion = getattr(config, "dispersion", None)
    return config.r_max if dispersion is None else dispersion.cutoff


def listed(atoms: ase.Atoms, config: ModelConfig, *, name: str = "structure") -> Edges:
    """All neighbours that a model reads, those within r_max first.

    Raises:
      InputError: see `neighbour_list`.
    """
    return near_first(neighbour_list(atoms, longest_cutoff(config), name=name), atoms, config=config)


def near_first(edges: Edges, atoms: ase.Atoms, *, config: ModelConfig) -> Edges:
    """Neighbours of each atom within r_max before those of its dispersion alone; of a model without, as they are."""
    if getattr(config, "dispersion", None) is None:
        return edges
    between = atoms.positions[edges.receivers] - atoms.positions[edges.senders]
    near = np.linalg.norm(between - edges.shifts @ complete_cell(atoms.cell.array), axis=1) < config.r_max
    near |= near[edges.reverse]  # both ends round alike
    order = np.lexsort((~near, edges.receivers))  # else as before
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    receivers, senders, shifts = edges.receivers[order], edges.senders[order], edges.shifts[order]
    return Edges(receivers, senders, shifts, place[edges.reverse[order]], near[order])


class Frame(NamedTuple):
    """A structure with the same neighbours as another, without its wide vacuum."""

    positions: np.ndarray  # [N, 3] A
    cell: np.ndarray  # [3, 3] A, rows are vectors
    pbc: tuple[bool, ...]
    cells: np.ndarray  # [N, 3] integers: lattice translations taken off the positions


def compact(atoms: ase.Atoms, cutoff: float, *, name: str = "structure") -> Frame:
    """A frame where a cell list needs memory and time by the number of atoms, however large and empty the cell is.

    Atoms are wrapped into the cell; a direction with a gap wider than two cutoffs no longer repeats; along directions
    that do not repeat, wider gaps shrink to that. No pair within the cutoff reaches across such a gap.

    Raises:
      InputError: a cell so thin or so elongated that the list would still be too large.
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
    _check_cells(cell, repeats, cutoff=cutoff, name=name)
    back = np.argsort([*np.flatnonzero(pbc), *np.flatnonzero(~pbc)])  # vectors in their own order
    return Frame(positions, cell[back], tuple(pbc.tolist()), cells)


def _check_cells(cell: np.ndarray, repeats: np.ndarray, *, cutoff: float, name: str) -> None:
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    bins = np.maximum(1, heights // cutoff)
    images = np.where(repeats, 2 * np.ceil(cutoff * bins / heights) + 1, 3)
    shape = f"{heights.round(3).tolist()} A between opposite faces"
    if images.prod() * bins.prod() > MAX_IMAGES:
        raise InputError(
            f"{name}: the cell, {shape}, is too thin for a cutoff of {cutoff} A: check its units, repeat "
            "it, or reduce it (ase.build.niggli_reduce)"
        )
    total = bins.prod()
    if total > MAX_CELLS and bins.min() * (MAX_CELLS / total) ** (1 / 3) < 2:
        raise InputError(
            f"{name}: atoms spread over {shape}, too elongated for a neighbour list with a cutoff of "
            f"{cutoff} A: split the structure"
        )


def _volume(vectors: np.ndarray) -> float:
    return float(np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0)))


def _some(indices: Sequence[int] | np.ndarray) -> str:
    shown = ", ".join(str(int(i)) for i in indices[:5])
    return f"atom{'s' if len(indices) > 1 else ''} {shown}" + (
        f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    )


def _symbols(numbers: Iterable[int]) -> str:
    return " ".join(ase.data.chemical_symbols[z] for z in numbers)
