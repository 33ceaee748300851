"""Errors of a model on labelled structures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

<<<<<<< HEAD
from equijax import data, outputs
from equijax.data import Labelled
from equijax.data.isolated import REFERENCE_EV
=======
from equijax import data, tables
from equijax.data import Labelled, isolated
from equijax.errors import InputError, NotFinite
>>>>>>> programsroom
from equijax.potential import Evaluated

# (name, unit, factor from eV and A)
QUANTITIES = (("energy", "meV/atom", 1e3), ("forces", "meV/A", 1e3), ("stress", "meV/A^3", 1e3))
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


def structure_errors(s: Labelled, found: Evaluated) -> dict[str, np.ndarray]:
    """Prediction minus label: energy [1] eV/atom, forces [components] eV/A, stress [9] eV/A^3; empty if unlabelled."""
    empty = np.zeros(0)
    out = {"energy": empty, "forces": empty, "stress": empty}
    if s.energy is not None:
        out["energy"] = np.array([(found.energy - s.energy) / len(s.atoms)])
    if s.forces is not None:
        d = found.forces - s.forces
        out["forces"] = d[np.isfinite(s.forces)]
    if s.stress is not None:
        out["stress"] = (found.stress - s.stress).ravel()
    return out


def summarise(errors: Sequence[dict]) -> dict:
    """MAE and RMSE over all components of several structures; None where nothing is labelled."""
    out: dict = {"structures": len(errors)}
    for name, unit, factor in QUANTITIES:
        d = factor * np.concatenate([e[name] for e in errors])
        out[f"{name} MAE ({unit})"] = float(np.abs(d).mean()) if d.size else None
        out[f"{name} RMSE ({unit})"] = float(np.sqrt((d**2).mean())) if d.size else None
    return out


def write_csv(path: Path, structures: Sequence[Labelled], found: Sequence[Evaluated], errors: Sequence[dict]) -> None:
    """One row a structure: source, formula, energies (eV), errors in the units of the column names."""
    rows = []
    for s, f, e in zip(structures, found, errors, strict=True):
        force, stress = 1e3 * np.abs(e["forces"]), 1e3 * np.abs(e["stress"])
        numbers = [
            1e3 * e["energy"][0] if e["energy"].size else "",
            *([force.mean(), np.sqrt((force**2).mean()), force.max()] if force.size else ["", "", ""]),
            stress.mean() if stress.size else "",
        ]
        label = "" if s.energy is None else repr(s.energy)
        row = [s.source, s.atoms.get_chemical_formula(), len(s.atoms), s.head or "", label, repr(f.energy)]
        rows.append(row + [x if x == "" else f"{x:.6g}" for x in numbers])
    tables.write_csv(path, COLUMNS, rows)


def label_warnings(structures: Sequence[Labelled], found: Sequence[Evaluated]) -> list[str]:
    """What the model's own results say against the labels: unit and sign of stresses, reference of energies."""
    out = []
    try:
        data.check_stress(structures, [f.stress for f in found])
    except (InputError, NotFinite) as error:
        out.append(str(error))
    off = data.off_reference(structures, [f.energy for f in found])
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
        title: tuple(np.concatenate([np.ravel(x) for x in side]) for side in zip(*values, strict=True))
        for title, values in chosen.items()
        if values
    }
