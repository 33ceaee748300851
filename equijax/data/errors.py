"""Errors of a model on labelled structures."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from equijax import tables
from equijax.data.isolated import REFERENCE_EV, off_reference
from equijax.data.labelled import Labelled, check_stress
from equijax.errors import InputError
from equijax.potential import Evaluated


class Quantity(NamedTuple):
    """What errors are told of, and in which unit."""

    name: str
    unit: str
    factor: float  # from eV and A


QUANTITIES = (
    Quantity("energy", "meV/atom", 1e3),
    Quantity("forces", "meV/A", 1e3),
    Quantity("stress", "meV/A^3", 1e3),
)
COLUMNS = (
    "source",
    "formula",
    "atoms",
    "head",
    "energy_label_eV",
    "energy_eV",
    "energy_error_meV_per_atom",
    "forces_mae_meV_per_A",
    "forces_rmse_meV_per_A",
    "forces_max_meV_per_A",
    "stress_mae_meV_per_A3",
)


class StructureErrors(NamedTuple):
    """Prediction minus label of one structure; empty where there is no label."""

    energy: np.ndarray  # [1] eV/atom
    forces: np.ndarray  # [labelled components] eV/A
    stress: np.ndarray  # [9] eV/A^3


def structure_errors(s: Labelled, found: Evaluated) -> StructureErrors:
    """Prediction minus label."""
    none = np.zeros(0)
    return StructureErrors(
        none if s.energy is None else np.array([(found.energy - s.energy) / len(s.atoms)]),
        none if s.forces is None else (found.forces - s.forces)[np.isfinite(s.forces)],
        none if s.stress is None else (found.stress - s.stress).ravel(),
    )


class Deviation(NamedTuple):
    """Over all labelled components, in the unit of the quantity; None where nothing is labelled."""

    mae: float | None
    rmse: float | None


class Summary(NamedTuple):
    """Errors over several structures."""

    structures: int
    energy: Deviation  # meV/atom
    forces: Deviation  # meV/A
    stress: Deviation  # meV/A^3

    def document(self) -> dict[str, int | float | None]:
        """A row of report.json."""
        out: dict[str, int | float | None] = {"structures": self.structures}
        for name, unit, _ in QUANTITIES:
            found = getattr(self, name)
            out |= {f"{name} MAE ({unit})": found.mae, f"{name} RMSE ({unit})": found.rmse}
        return out


def summarise(errors: Sequence[StructureErrors]) -> Summary:
    """MAE and RMSE over all components of several structures."""
    return Summary(len(errors), *(_deviation(errors, quantity) for quantity in QUANTITIES))


def _deviation(errors: Sequence[StructureErrors], quantity: Quantity) -> Deviation:
    d = quantity.factor * np.concatenate([getattr(e, quantity.name) for e in errors])
    return Deviation(float(np.abs(d).mean()), float(np.sqrt((d**2).mean()))) if d.size else Deviation(None, None)


def write_csv(
    path: Path, structures: Sequence[Labelled], *, found: Sequence[Evaluated], errors: Sequence[StructureErrors]
) -> None:
    """One row a structure: source, formula, energies (eV), errors in the units of the column names."""
    rows = []
    for s, f, e in zip(structures, found, errors, strict=True):
        force, stress = 1e3 * np.abs(e.forces), 1e3 * np.abs(e.stress)
        numbers = [
            1e3 * e.energy[0] if e.energy.size else "",
            *([force.mean(), np.sqrt((force**2).mean()), force.max()] if force.size else ["", "", ""]),
            stress.mean() if stress.size else "",
        ]
        label = "" if s.energy is None else repr(s.energy)
        row = [s.source, s.atoms.get_chemical_formula(), len(s.atoms), s.head or "", label, repr(f.energy)]
        rows.append(row + [x if x == "" else f"{x:.6g}" for x in numbers])
    tables.write_csv(path, COLUMNS, rows=rows)


def label_warnings(structures: Sequence[Labelled], found: Sequence[Evaluated]) -> list[str]:
    """What the model's own results say against the labels: unit and sign of stresses, reference of energies."""
    out = []
    try:
        check_stress(structures, [f.stress for f in found])
    except InputError as error:
        out.append(str(error))
    off = off_reference(structures, [f.energy for f in found])
    if off is not None:
        out.append(
            f"energy labels are {off:.4g} eV/atom off the model's (median; more than {REFERENCE_EV} is "
            "another reference of energies, not an error of the model): fine-tune with --e0 refit"
        )
    return out


def parity(structures: Sequence[Labelled], found: Sequence[Evaluated]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels and predictions of each labelled quantity, flat, by its title: what a parity plot shows."""
    pairs = list(zip(structures, found, strict=True))
    chosen = {
        "energy (eV/atom)": [
            (s.energy / len(s.atoms), f.energy / len(s.atoms)) for s, f in pairs if s.energy is not None
        ],
        "force (eV/A)": [(s.forces, f.forces) for s, f in pairs if s.forces is not None],
        "stress (eV/A$^3$)": [(s.stress, f.stress) for s, f in pairs if s.stress is not None],
    }
    return {
        title: (_flat(label for label, _ in values), _flat(prediction for _, prediction in values))
        for title, values in chosen.items()
        if values
    }


def _flat(arrays: Iterable[npt.ArrayLike]) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in arrays])
