"""How long from a relaxed structure to force constants, against finite differences and Hessians of mace-torch?

    python bench/phonons.py [--crystals Si NaCl] [--model DIR] [--no-torch]
    python bench/phonons.py --memory Si [--fast]  one supercell of about 1,000 atoms in a process of its own

Published shape, random weights (the cost does not depend on them), float64 on both sides: finite differences in single
precision lose the soft modes; their float32 time is given too. One force call of mace-torch is timed and multiplied by
the number of displaced supercells that phonopy asks for. mace-torch's `get_hessian` differentiates the forces once for
each of the 3N coordinates: `HESSIAN_ROWS` of them are timed and the time is multiplied up to 3N; its batched variant
does not fit into memory at this size.
`fast` is the model specialised for the elements of the crystal, with its own error in the Hessian beside it.
Rows are merged by crystal into the result file, so that crystals may be run one at a time.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import _common as common
import jax
import numpy as np
import peers
import tyro
from ase.build import bulk
from ase.spacegroup import crystal

from equijax import executables, forcefield, hessian, testing
from equijax.phonons import force_constants

HESSIAN_ROWS = 6  # of mace-torch's Hessian that are timed


def perovskite():
    return crystal(
        ("Sr", "Ti", "O"), [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221, cellpar=[3.9] * 3 + [90] * 3
    )


def low_symmetry():
    """Orthorhombic CaTiO3, 20 atoms, rattled so that nothing is left to symmetry: all 60 rows."""
    cell = crystal(
        ("Ca", "Ti", "O", "O"),
        [(0.0359, 0.25, 0.9935), (0, 0, 0.5), (0.4838, 0.25, 0.0711), (0.2888, 0.0371, 0.7103)],
        spacegroup=62,
        cellpar=[5.44, 7.64, 5.38, 90, 90, 90],
    )
    cell.rattle(0.02, seed=0)
    return cell


# primitive or unit cell, supercell
CASES = {
    "Si": (lambda: bulk("Si", "diamond", a=5.43, cubic=True), 2),
    "NaCl": (lambda: bulk("NaCl", "rocksalt", a=5.64, cubic=True), 2),
    "SrTiO3": (perovskite, 2),
    "CaTiO3, P1": (low_symmetry, 1),
}
LARGE = {"Si": (CASES["Si"][0], 5), "SrTiO3": (perovskite, 6)}


@dataclass(frozen=True)
class Options:
    """Time from a relaxed structure to force constants."""

    crystals: tuple[str, ...] = tuple(CASES)
    model: Path | None = None
    """A converted model instead of the published shape with random weights."""
    torch: bool = True
    """Time mace-torch, where it is installed."""
    memory: str | None = None
    """Force constants of one large supercell, peak memory of this process."""
    fast: bool = False
    """That of the specialised model."""


def main(options: Options) -> None:
    """Measure, print a table, write JSON."""
    ff = forcefield.load(options.model) if options.model else testing.random_forcefield(common.published_config())
    if options.memory:
        print(json.dumps(memory_row(ff, options.memory, options.fast)))
        return
    rows = []
    for name in options.crystals:
        rows.append(row(ff, name, options.torch))
        common.print_table(rows[-1:])
    memory = [peak(name, fast) for name in LARGE if name in options.crystals for fast in (False, True)]
    common.write(
        "phonons",
        merged("rows", "crystal", rows),
        dtype="float64",
        hessian_rows_timed=HESSIAN_ROWS,
        memory=merged("memory", "crystal", memory),
    )


def merged(table: str, key: str, rows: list[dict]) -> list[dict]:
    """Rows of the result file, those of the same key replaced."""
    path = common.RESULTS / f"phonons-{jax.default_backend()}.json"
    old = json.loads(path.read_text()).get(table, []) if path.exists() else []
    names = {r[key] for r in rows}
    return [r for r in old if r[key] not in names] + rows


def row(ff, name: str, with_torch: bool) -> dict:
    """One crystal: cold and warm time, time per row and atom, and mace-torch's times where it is installed."""
    make, repeat = CASES[name]
    phonon = force_constants.make_phonon(make(), (repeat,) * 3)
    cold = seconds(lambda: force_constants.force_constants(ff, phonon))
    warm = best(lambda: force_constants.force_constants(ff, phonon))
    temporary = max(needed for _, needed in executables.programs.values()) / 1e9
    fast = ff.specialise(phonon.supercell.numbers)
    force_constants.force_constants(fast, phonon)
    fast_warm = best(lambda: force_constants.force_constants(fast, phonon))
    displacements, atoms = len(force_constants.irreducible_displacements(phonon)), len(phonon.supercell)
    tangents = np.random.default_rng(0).normal(size=(32, atoms, 3))
    many = best(lambda: hessian.hvp(ff, force_constants.to_ase(phonon.supercell), tangents=tangents), 2)
    out = {
        "crystal": name,
        "atoms": atoms,
        "rows": displacements,
        "cold_s": cold,
        "warm_s": warm,
        "us_per_atom_hvp": 1e6 * many / len(tangents) / atoms,
        "temporary_GB": temporary,
        "fast_warm_s": fast_warm,
        "fast_hvp_error_eV_A2": fast.metadata["specialised"]["hvp"],
    }
    return out | (torch_row(ff, phonon, warm, fast_warm) if with_torch else {})


def torch_row(ff, phonon, warm: float, fast_warm: float) -> dict:
    """mace-torch: phonopy's number of force calls in either precision, and rows of its Hessian times 3N."""
    finite = phonon.replicate()
    finite.generate_displacements(distance=0.01)
    number, atoms = len(finite.displacements), force_constants.to_ase(phonon.supercell)
    out: dict = {"fd_calls": number}
    try:
        calls = {dtype: peers.mace_torch(ff.config, atoms, dtype) for dtype in ("float32", "float64")}
    except ImportError as error:
        print(f"mace-torch is not timed: {error}")
        return {}
    for dtype, call in calls.items():
        for _ in range(3):  # TorchScript optimises what it has seen run
            call()
        out[f"torch_fd_{dtype}_s"] = best(call) * number
    few, many = (best(peers.mace_torch(ff.config, atoms, "float64", rows), 2) for rows in (1, 1 + HESSIAN_ROWS))
    out["torch_hessian_s"] = few + (many - few) / HESSIAN_ROWS * 3 * len(atoms)
    return out | {
        "fd_ratio_float32": out["torch_fd_float32_s"] / warm,
        "fd_ratio": out["torch_fd_float64_s"] / warm,
        "fast_fd_ratio": out["torch_fd_float64_s"] / fast_warm,
        "hessian_ratio": out["torch_hessian_s"] / warm,
    }


def peak(name: str, fast: bool) -> dict:
    """`memory_row` in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, *(["--fast"] if fast else [])]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def memory_row(ff, name: str, fast: bool) -> dict:
    """All irreducible rows of a supercell of about 1,000 atoms."""
    make, repeat = LARGE[name]
    ff = ff.specialise(set(make().numbers)) if fast else ff
    phonon = force_constants.make_phonon(make(), (repeat,) * 3)
    took = seconds(lambda: force_constants.force_constants(ff, phonon))
    (needed,) = {needed for _, needed in executables.programs.values()}
    return {
        "crystal": f"{name}, fast" if fast else name,
        "atoms": len(phonon.supercell),
        "rows": len(force_constants.irreducible_displacements(phonon)),
        "seconds_with_compilation": took,
        "temporary_GB": needed / 1e9,
        "process_peak_GB": common.peak_memory_gb(),
    }


def best(call, times: int = 3) -> float:
    return min(seconds(call) for _ in range(times))


def seconds(call) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Options))
