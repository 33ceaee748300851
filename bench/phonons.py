"""How long from a relaxed structure to force constants, against finite differences with mace-torch?

    python bench/phonons.py [--crystals Si NaCl] [--repeat 2] [--model DIR]

Published shape, float64, random weights (the cost does not depend on them). mace-torch, where it is installed, runs
phonopy's symmetry-reduced finite differences on the same supercell in float32, which favours it.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import _common as common
import peers
import tyro
from ase.build import bulk
from ase.spacegroup import crystal

from equijax import forcefield, hessian, phonons, testing

CRYSTALS = {
    "Si": lambda: bulk("Si", "diamond", a=5.43),
    "NaCl": lambda: bulk("NaCl", "rocksalt", a=5.64),
    "SrTiO3": lambda: crystal(
        ("Sr", "Ti", "O"), [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221, cellpar=[3.9] * 3 + [90] * 3
    ),
}


@dataclass(frozen=True)
class Options:
    """Time from a relaxed structure to force constants."""

    crystals: tuple[str, ...] = tuple(CRYSTALS)
    repeat: int = 2
    """Primitive cells along each axis of the supercell."""
    model: Path | None = None
    """A converted model instead of the published shape with random weights."""


def main(options: Options) -> None:
    """Measure, print a table, write JSON."""
    ff = forcefield.load(options.model) if options.model else testing.random_forcefield(common.published_config())
    rows = [row(ff, name, options.repeat) for name in options.crystals]
    common.print_table(rows)
    common.write("phonons", rows, repeat=options.repeat, dtype="float64")


def row(ff, name: str, repeat: int) -> dict:
    """One crystal: cold and warm time, time per row and atom, and mace-torch's time where it is installed."""
    phonon = phonons.make_phonon(CRYSTALS[name](), (repeat,) * 3)
    cold = seconds(lambda: phonons.force_constants(ff, phonon))
    warm = min(seconds(lambda: phonons.force_constants(ff, phonon)) for _ in range(2))
    displacements, atoms = len(phonons.irreducible_displacements(phonon)), len(phonon.supercell)
    program = next(reversed(hessian._programs.values()))
    out = {
        "crystal": name,
        "atoms": atoms,
        "rows": displacements,
        "cold_s": cold,
        "warm_s": warm,
        "us_per_atom_row": 1e6 * warm / displacements / atoms,
        "temp_GB": program.memory_analysis().temp_size_in_bytes / 1e9,
    }
    return out | torch_row(ff, phonon, warm)


def torch_row(ff, phonon, warm: float) -> dict:
    """Finite differences with mace-torch: one float32 energy and force call a displaced supercell, phonopy's number."""
    call = peers.calls(ff.config, phonons.to_ase(phonon.supercell), ["mace-torch"]).get("mace-torch")
    if call is None:
        return {}
    finite = phonon.replicate()
    finite.generate_displacements(distance=0.01)
    call()
    one = min(seconds(call) for _ in range(2))
    total = one * len(finite.displacements)
    return {"fd_calls": len(finite.displacements), "mace_torch_float32_fd_s": total, "ratio": total / warm}


def seconds(call) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Options))
