"""Isolated-atom energies E0 of a fine-tuned model: kept, given, or refitted on the model's own residual."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from scipy.optimize import least_squares

from equijax.config import ModelConfig
from equijax.data.labelled import Labelled
from equijax.errors import InputError

# A universal model is 0.01 to 0.1 eV/atom off the energies of another functional: more is another reference.
REFERENCE_EV = 0.3  # eV/atom, median residual
SAME_EV = 1e-4  # isolated-atom energies of an element that differ by less are one, written with fewer digits
STRAINED_EV_A = 20.0  # atoms pushed together: the residual there is the model's error at short range, not E0's
# A structure is an outlier of the fit beyond this residual, and beyond this many standard deviations of the others.
OUTLIER_EV, OUTLIER_SIGMA = 0.1, 5.0  # eV/atom
SIGMA_OF_MEDIAN = 1.4826  # standard deviation of a normal distribution whose median absolute deviation is 1
ABSOLUTE_EV = 1e-3  # eV/atom, beyond which the robust fit counts residuals by their absolute value
RANK = 1e-6  # singular values below this part of the largest are combinations that the data do not fix
SHOWN = 5  # outliers named


class Energies(NamedTuple):
    """Isolated-atom energies and how far the data fix them."""

    values: np.ndarray  # [H, Z] eV
    message: str
    deficient: bool  # the data fix fewer combinations than there are elements


def given(config: ModelConfig, variables: dict, *, energies: Mapping[str, float], head: int = 0) -> Energies:
    """E0 of some elements set by hand, by symbol, in eV; the others stay as they are.

    Raises:
      InputError: a symbol that is no element of the model, an energy that is not finite.
    """
    values = _model(variables)
    for symbol, energy in energies.items():
        if not np.isfinite(energy):
            raise InputError(f"E0 of {symbol}: {energy} is not a finite energy in eV")
        if atomic_numbers.get(symbol) not in config.species:
            raise InputError(f"E0 of {symbol!r}: not an element of this model")
        values[head, config.species.index(atomic_numbers[symbol])] = energy
    return Energies(values, f"E0 given (eV): {', '.join(f'{k} {v:.6g}' for k, v in energies.items())}", False)


def isolated(structures: Sequence[Labelled], by_hand: Mapping[str, float] | None = None) -> dict[str, float]:
    """Energies (eV) of isolated atoms by symbol; of several of one element, the first.

    Args:
      structures: one atom each; those without an energy say nothing.
      by_hand: further energies, which these must not contradict.

    Raises:
      InputError: two energies for one element.
    """
    seen = {symbol: (energy, "--e0-values") for symbol, energy in (by_hand or {}).items()}
    out: dict[str, float] = {}
    for s in structures:
        if s.energy is None:
            continue
        symbol = chemical_symbols[int(s.atoms.numbers[0])]
        energy, source = seen.setdefault(symbol, (s.energy, s.source))
        if abs(energy - s.energy) > SAME_EV:
            raise InputError(
                f"two isolated-atom energies of {symbol}: {energy} eV by {source}, {s.energy} eV by {s.source}; "
                "expected one: leave the wrong one out"
            )
        out.setdefault(symbol, s.energy)
    return out


def off_reference(structures: Sequence[Labelled], predicted: Sequence[float] | np.ndarray) -> float | None:
    """Median size of the residual (eV/atom) of energies that have another reference than the model.

    Args:
      structures: those without an energy take no part.
      predicted: total energies of the model, eV, E0 included.

    Returns:
      None where it is at most `REFERENCE_EV`.
    """
    pairs = zip(structures, predicted, strict=True)
    sizes = [abs(s.energy - e) / len(s.atoms) for s, e in pairs if s.energy is not None]
    median = float(np.median(sizes)) if sizes else 0.0
    return median if median > REFERENCE_EV else None


def refit(
    config: ModelConfig,
    variables: dict,
    *,
    structures: Sequence[Labelled],
    predicted: Sequence[float],
    head: int = 0,
) -> Energies:
    """Shift the E0s so that they take up what they can of the model's energy residual, outliers left out.

    Least squares over structures of the residual per atom,
    sum_s w_s [ (E_s - E_model,s - sum_z n_sz d_z) / n_s ]^2, the smallest shift d where several fit equally well. Left
    out are structures whose forces exceed `STRAINED_EV_A`, where the others have all elements too, and those whose
    residual to a fit of absolute values exceeds both `OUTLIER_EV` and `OUTLIER_SIGMA` standard deviations.

    Args:
      config, variables: of the model that made `predicted`.
      structures: those without an energy, and those of other heads, take no part.
      predicted: total energies of the model, eV, E0 included.
      head: whose E0s to shift.

    Raises:
      InputError: no structure has an energy.
    """
    pairs = [
        (s, s.energy - e)
        for s, e in zip(structures, predicted, strict=True)
        if s.energy is not None and _counts(s, config, head=head)
    ]
    if not pairs:
        raise InputError("no structure has an energy: E0s cannot be refitted; keep the model's")
    numbers = np.array(sorted({int(z) for s, _ in pairs for z in s.atoms.numbers}))
    parts = np.array([[np.mean(s.atoms.numbers == z) for z in numbers] for s, _ in pairs])  # [s, z]
    residual = np.array([difference / len(s.atoms) for s, difference in pairs])
    root = np.sqrt([s.weight * s.label_weights[0] for s, _ in pairs])
    calm = np.array([not _strained(s) for s, _ in pairs])
    kept = calm if (parts[calm] > 0).any(0).all() else np.ones(len(pairs), bool)
    kept &= ~_outliers(parts, residual, root=root, kept=kept)
    shift, _, rank, _ = np.linalg.lstsq(parts[kept] * root[kept, None], residual[kept] * root[kept], rcond=RANK)
    values = _model(variables)
    values[head, [config.species.index(z) for z in numbers.tolist()]] += shift
    symbols = [chemical_symbols[z] for z in numbers.tolist()]
    changes = ", ".join(f"{symbol} {d:+.4f}" for symbol, d in zip(symbols, shift, strict=True))
    message = f"E0 shifted by (eV): {changes}"
    deficient = bool(rank < len(numbers))
    if deficient:
        message += (
            f". The {int(kept.sum())} structures have {int(rank)} independent composition(s) for {len(numbers)} "
            f"elements ({', '.join(symbols)}): only the energy of their compound(s) is fixed, the smallest shift was "
            "taken and energies of other compositions mean nothing new"
        )
    left = residual - parts @ shift
    out = [f"{pairs[i][0].source} ({left[i]:+.3g} eV/atom)" for i in np.flatnonzero(~kept)]
    if out:
        more = f" and {len(out) - SHOWN} more" if len(out) > SHOWN else ""
        message += f". {len(out)} outlier(s) left out of the fit: {', '.join(out[:SHOWN])}{more}"
    return Energies(values, message, deficient)


def _model(variables: dict) -> np.ndarray:
    return np.array(variables["constants"]["atomic_energies"], np.float64)


def _counts(s: Labelled, config: ModelConfig, *, head: int) -> bool:
    """Whether the energy of a structure takes part in the fit of the E0s of a head."""
    weighs = s.weight * s.label_weights[0] > 0
    return weighs and s.head in (None, config.heads[head])


def _strained(s: Labelled) -> bool:
    return s.forces is not None and bool(np.nanmax(np.abs(s.forces)) > STRAINED_EV_A)


def _outliers(parts: np.ndarray, residual: np.ndarray, *, root: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Structures far from a fit of the absolute residuals of those `kept`: [s] bool.

    Solved in the space of the shifts that the data fix, so that it has one solution.
    """
    rows = parts[kept] * root[kept, None]
    _, singular, basis = np.linalg.svd(rows, full_matrices=False)
    basis = basis[singular > RANK * singular[0]]
    rows, target = rows @ basis.T, residual[kept] * root[kept]
    start = np.linalg.lstsq(rows, target, rcond=None)[0]
    robust: dict[str, Any] = {
        "jac": lambda y: rows,
        "loss": "soft_l1",
        "f_scale": ABSOLUTE_EV,
        "x_scale": "jac",
        "max_nfev": 1000,
    }
    fit = least_squares(lambda y: rows @ y - target, start, **robust)
    distance = np.abs(residual - parts @ basis.T @ fit.x)
    spread = SIGMA_OF_MEDIAN * np.median(distance[kept])
    return distance > max(OUTLIER_EV, OUTLIER_SIGMA * spread)
