"""Isolated-atom energies E0 of a fine-tuned model: kept, given, or refitted on the model's own residual."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from equijax.config import ModelConfig
from equijax.data.labelled import Labelled


class Energies(NamedTuple):
    """Isolated-atom energies and how far the data fix them."""

    values: np.ndarray  # [H, Z] eV
    message: str
    deficient: bool  # the data fix fewer combinations than there are elements


def given(config: ModelConfig, variables: dict, energies: Mapping[str, float], head: int = 0) -> Energies:
    """E0 of some elements set by hand, by symbol, in eV; the others stay as they are.

    Raises:
      ValueError: a symbol that is no element of the model.
    """
    values = np.array(variables["constants"]["atomic_energies"], np.float64)
    for symbol, energy in energies.items():
        if atomic_numbers.get(symbol) not in config.species:
            raise ValueError(f"E0 of {symbol!r}: not an element of this model")
        values[head, config.species.index(atomic_numbers[symbol])] = energy
    return Energies(values, f"E0 given for {', '.join(energies)}", False)


def refit(
    config: ModelConfig, variables: dict, structures: Sequence[Labelled], predicted: Sequence[float], head: int = 0
) -> Energies:
    """Shift the E0s so that they take up what they can of the model's energy residual.

    Least squares over structures of the residual per atom,
    sum_s w_s [ (E_s - E_model,s - sum_z n_sz d_z) / n_s ]^2, the smallest shift d where several fit equally well.

    Args:
      config, variables: of the model that made `predicted`.
      structures: those without an energy take no part.
      predicted: total energies of the model, eV, E0 included.
      head: whose E0s to shift.

    Raises:
      ValueError: no structure has an energy.
    """
    pairs = [(s, s.energy - e) for s, e in zip(structures, predicted, strict=True) if s.energy is not None]
    if not pairs:
        raise ValueError("no structure has an energy: E0s cannot be refitted; keep the model's")
    numbers = np.array(sorted({int(z) for s, _ in pairs for z in s.atoms.numbers}))
    counts = np.array([[(s.atoms.numbers == z).sum() for z in numbers] for s, _ in pairs], float)  # [s, z]
    scale = np.sqrt([s.weight for s, _ in pairs]) / counts.sum(1)
    residual = np.array([difference for _, difference in pairs])
    shift, _, rank, _ = np.linalg.lstsq(counts * scale[:, None], residual * scale, rcond=1e-6)
    values = np.array(variables["constants"]["atomic_energies"], np.float64)
    values[head, [config.species.index(z) for z in numbers.tolist()]] += shift
    symbols = [chemical_symbols[z] for z in numbers.tolist()]
    changes = ", ".join(f"{symbol} {d:+.4f}" for symbol, d in zip(symbols, shift, strict=True))
    message = f"E0 shifted by (eV): {changes}"
    deficient = bool(rank < len(numbers))
    if deficient:
        message += (
            f". The {len(pairs)} structures have {int(rank)} independent composition(s) for {len(numbers)} elements "
            f"({', '.join(symbols)}): only the energy of their compound(s) is fixed, the smallest shift was taken and "
            "energies of other compositions mean nothing new"
        )
    return Energies(values, message, deficient)
