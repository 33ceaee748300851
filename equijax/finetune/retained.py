"""Retained structures told apart: fine-tuning can damage those that share an element with the training set most."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import ase

from equijax.data.labelled import Labelled

KINDS = ("related", "unrelated")  # sets of a run that --retain becomes


class Retained(NamedTuple):
    """A retained set, sorted by what it has in common with the training structures."""

    related: list[Labelled]  # other compounds that share an element with them
    unrelated: list[Labelled]  # no element in common
    same: list[Labelled]  # the same compound, whatever its phase: it should change, so it counts for neither


def sort(structures: Iterable[Labelled], targets: Sequence[ase.Atoms]) -> Retained:
    """Sort retained structures by their elements and reduced formulas.

    Args:
      structures: retained, of any compounds.
      targets: what is trained on.
    """
    elements = {z for atoms in targets for z in atoms.numbers.tolist()}
    compounds = {compound(atoms) for atoms in targets}
    found = Retained([], [], [])
    for s in structures:
        if compound(s.atoms) in compounds:
            found.same.append(s)
        elif elements & set(s.atoms.numbers.tolist()):
            found.related.append(s)
        else:
            found.unrelated.append(s)
    return found


def compound(atoms: ase.Atoms) -> str:
    """Reduced formula, metals first: Ga4As4 is GaAs."""
    return atoms.symbols.formula.reduce()[0].format("metal")


def messages(found: Retained) -> tuple[str, ...]:
    """What was sorted, in a line, or nothing where nothing is retained."""
    if not any(found):
        return ()
    line = (
        f"retained structures: {len(found.related)} related (they share an element with --train), "
        f"{len(found.unrelated)} unrelated"
    )
    names = ", ".join(sorted({compound(s.atoms) for s in found.same}))
    return (line + (f", {len(found.same)} of {names} itself, which count for neither" if found.same else ""),)
