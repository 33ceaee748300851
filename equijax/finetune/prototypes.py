"""Structures that a model can rehearse without any data: simple crystals of its own elements, rattled and strained."""

from collections.abc import Sequence
from typing import NamedTuple

import ase
import numpy as np
from ase.data import covalent_radii

from equijax.data.labelled import Labelled
from equijax.data.rattle import strained
from equijax.finetune.retained import compound
from equijax.graph.neighbours import neighbour_list

Sites = tuple[tuple[float, float, float], ...]
Z = (0.0, 0.0, 0.0)
FACES: Sites = ((0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0))
FCC: Sites = (Z, *FACES)
CUBIC = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def _hexagonal(ratio: float) -> tuple[tuple[float, ...], ...]:
    return ((1.0, 0.0, 0.0), (-0.5, 3**0.5 / 2, 0.0), (0.0, 0.0, ratio))


def _shifted(sites: Sites, by: float) -> Sites:
    return tuple((x + by, y + by, z + by) for x, y, z in sites)


class Prototype(NamedTuple):
    """A crystal of up to three elements whose shape is fixed by symmetry, or nearly so."""

    cell: tuple[tuple[float, ...], ...]  # rows, in units of the first
    sites: tuple[Sites, ...]  # fractional, by element


HALF = (0.5, 0.5, 0.5)
HCP_LIKE: Sites = ((1 / 3, 2 / 3, 0.0), (2 / 3, 1 / 3, 0.5))
U = 0.305  # of oxygen in rutile
RUTILE: Sites = ((U, U, 0.0), (-U, -U, 0.0), (0.5 + U, 0.5 - U, 0.5), (0.5 - U, 0.5 + U, 0.5))
PROTOTYPES = {
    "fcc": Prototype(CUBIC, (FCC,)),
    "bcc": Prototype(CUBIC, ((Z, HALF),)),
    "diamond": Prototype(CUBIC, ((*FCC, *_shifted(FCC, 0.25)),)),
    "rocksalt": Prototype(CUBIC, (FCC, _shifted(FCC, 0.5))),
    "zincblende": Prototype(CUBIC, (FCC, _shifted(FCC, 0.25))),
    "caesium chloride": Prototype(CUBIC, ((Z,), (HALF,))),
    "wurtzite": Prototype(_hexagonal(1.633), (HCP_LIKE, tuple((x, y, z + 0.375) for x, y, z in HCP_LIKE))),
    "nickel arsenide": Prototype(
        _hexagonal(1.5), ((Z, (0.0, 0.0, 0.5)), tuple((x, y, z + 0.25) for x, y, z in HCP_LIKE))
    ),
    "fluorite": Prototype(CUBIC, (FCC, (*_shifted(FCC, 0.25), *_shifted(FCC, 0.75)))),
    "rutile": Prototype(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.65)), ((Z, HALF), RUTILE)),
    "L1_2": Prototype(CUBIC, ((Z,), FACES)),
    "D0_3": Prototype(CUBIC, (FCC, (*_shifted(FCC, 0.25), *_shifted(FCC, 0.5), *_shifted(FCC, 0.75)))),
    "perovskite": Prototype(CUBIC, ((Z,), (HALF,), FACES)),
    "half-Heusler": Prototype(CUBIC, (FCC, _shifted(FCC, 0.5), _shifted(FCC, 0.25))),
}
DISTANCES = (0.95, 1.2)  # shortest, of sums of covalent radii
MAX_DENSITY = 0.12  # atoms/A^3, that of all but the densest crystals: neighbours cost time
RATTLE_A, STRAIN = (0.03, 0.15), 0.04  # range of the displacements' rms component; largest of a strain
DRAWS = 20  # candidates a structure that is asked for, before fewer are returned


def related(species: Sequence[int], targets: Sequence[ase.Atoms], *, number: int, seed: int = 0) -> list[Labelled]:
    """Rattled and strained prototypes that share an element with the targets, without labels.

    Elements are drawn at random, at least one of them from the targets; so is the volume, about that of touching
    covalent radii. Compounds of the targets are left out.

    Args:
      species: atomic numbers to draw from.
      targets: what is trained on.
      number: of structures; fewer where nothing else can be drawn from so few elements.
      seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    own = sorted({z for atoms in targets for z in atoms.numbers.tolist()})
    compounds = {compound(atoms) for atoms in targets}
    out: list[Labelled] = []
    for _ in range(DRAWS * number):
        if len(out) == number:
            break
        atoms = _drawn(rng, species, own=own)
        if atoms is not None and compound(atoms) not in compounds and len(atoms) <= MAX_DENSITY * atoms.get_volume():
            out.append(Labelled(atoms, source=f"prototype {len(out)} ({atoms.get_chemical_formula()})"))
    return out


def message(drawn: Sequence[Labelled]) -> str:
    """A line about what `related` drew."""
    if not drawn:
        return "self-replay: no other compound of the elements of --train can be drawn from those of the model"
    number = len({compound(s.atoms) for s in drawn})
    return (
        f"self-replay: {len(drawn)} prototypes of {number} compounds related to --train, labelled by the starting model"
    )


def _drawn(rng: np.random.Generator, species: Sequence[int], *, own: Sequence[int]) -> ase.Atoms | None:
    """One prototype, of at least one element of `own`; None where it has more elements than there are."""
    prototype = PROTOTYPES[rng.choice(list(PROTOTYPES))]
    if len(prototype.sites) > len(species):
        return None
    elements = rng.permutation(species)[: len(prototype.sites)]
    if not set(elements.tolist()) & set(own):
        elements[rng.integers(len(elements))] = rng.choice(own)
    atoms = strained(
        _built(prototype, elements.tolist(), distance=rng.uniform(*DISTANCES)), rng.uniform(-STRAIN, STRAIN, 6)
    )
    shift = rng.normal(0.0, rng.uniform(*RATTLE_A), (len(atoms), 3))
    atoms.positions += shift - shift.mean(0)
    return atoms


def _built(prototype: Prototype, elements: Sequence[int], *, distance: float) -> ase.Atoms:
    """Of these elements, the closest pair at `distance` sums of its covalent radii."""
    numbers = [z for z, sites in zip(elements, prototype.sites, strict=True) for _ in sites]
    sites = [site for some in prototype.sites for site in some]
    start = 10.0  # A: any length will do, that reaches a neighbour
    atoms = ase.Atoms(numbers, scaled_positions=sites, cell=start * np.array(prototype.cell), pbc=True)
    edges = neighbour_list(atoms, start)
    r = atoms.positions[edges.senders] + edges.shifts @ atoms.cell.array - atoms.positions[edges.receivers]
    radii = covalent_radii[atoms.numbers]
    closest = (np.linalg.norm(r, axis=1) / (radii[edges.senders] + radii[edges.receivers])).min()
    atoms.set_cell(distance / closest * atoms.cell.array, scale_atoms=True)
    return atoms
