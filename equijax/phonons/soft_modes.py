"""Follow soft modes downhill until a stable phase is found."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import ase.io
import numpy as np
from tqdm import tqdm

from equijax import outputs, plots, structures, tables
from equijax.config import Compute
from equijax.constraints import refuse_fixed
from equijax.errors import InputError
from equijax.phonons import crystal, order_parameters
from equijax.phonons.options import ModesConfig
from equijax.phonons.order_parameters import OrderParameter
from equijax.phonons.phases import NAMED_AT_A, Followed, Led, Phase, Scan, describe, heights, primitive, same
from equijax.potential import Potential
from equijax.relax import symmetric

SCAN_A = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0])  # largest displacement in E(Q)
SHALLOWEST_EV = 1e-6  # per atom: wells below this are noise
COLUMNS = {  # of the table: key of a phase, title
    "round": "round",
    "parent": "from",
    "from_space_group": "space group before",
    "q": "q",
    "frequency_THz": "mode THz",
    "Q_min": "Q_min",
    "well_meV_atom": "well meV/atom",
    "space_group": "space group after",
    "num_atoms": "atoms",
    "energy_meV_atom": "E meV/atom",
    "lowest_THz": "lowest THz",
    "stable": "stable",
}


class Scores(NamedTuple):
    """How well predicted phases match reference phases; 0 where undefined."""

    precision: float  # TP / (TP + FP)
    recall: float  # TP / (TP + FN)
    F1: float  # their harmonic mean


class Search(NamedTuple):
    """What a search found."""

    phases: list[Phase]  # the first one is the structure itself, relaxed
    scans: list[Followed]
    scores: Scores | None = None  # against reference phases, where there are any

    def document(self) -> dict[str, object]:
        """By name, for report.json."""
        return {
            "phases": [phase.document() for phase in self.phases],
            "scans": [scan.document() for scan in self.scans],
            **({} if self.scores is None else {"scores": self.scores._asdict()}),
        }


@outputs.locked
def run(config: ModesConfig) -> Search:
    """The whole search, with files under `config.out`.

    Raises:
      InputError, FileNotFoundError: unusable input, before work starts.
    """
    ff, atoms = crystal.prepare(config)
    known = structures.read_all(config.reference) if config.reference else []
    if not atoms.pbc.all():
        raise InputError(f"{config.structure}: periodic along {atoms.pbc.tolist()}, phonons need all three directions")
    if min(config.mesh) < 1 or config.threshold <= 0:
        raise InputError(f"mesh {config.mesh} and threshold {config.threshold}: expected positive numbers")
    found = search(ff, atoms, config=config)
    for i, phase in enumerate(found.phases):
        with outputs.beside(config.out / f"phase_{i}.extxyz") as part:
            ase.io.write(part, phase.atoms)
        with outputs.beside(config.out / f"phase_{i}.vasp") as part:
            ase.io.write(part, phase.atoms, format="vasp", direct=True)
    plots.draw_scans(config.out / "energy_of_Q.png", [scan.document() for scan in found.scans])
    if known:
        predicted = {label(phase.atoms) for phase in found.phases[1:] if phase.stable}
        found = found._replace(scores=scores(predicted, {label(a) for a in known}))
    outputs.write_json(config.out / "report.json", {"model": str(config.model), **found.document()})
    outputs.write_text(config.out / "table.txt", table(found.phases) + "\n")
    return found


def search(ff: Potential, atoms: ase.Atoms, *, config: ModesConfig) -> Search:
    """Phases reached from `atoms`, and the E(Q) scans on the way.

    Raises:
      InputError: atoms that are fixed.
    """
    refuse_fixed(
        atoms, atoms.get_chemical_formula(), why="modes are followed with all atoms free; remove the constraints"
    )
    start = primitive(atoms)
    start, report = symmetric.relax(ff, start, fmax=config.fmax, cell=not config.fixed_cell, steps=config.steps)
    extent = np.array(config.mesh) * heights(start)
    phases: list[Phase] = [describe(ff, start, report=report, led=Led(), before=None)]
    scans: list[Followed] = []
    current = [0]
    for number in range(config.rounds + 1):
        before = len(phases)
        for parent in current:
            phases[parent], orders = _spectrum(ff, phases[parent], extent=extent, config=config)
            if number < config.rounds:
                _follow(ff, phases, scans=scans, parent=parent, orders=orders[: config.max_modes], config=config)
        new = sorted(range(before, len(phases)), key=lambda i: phases[i].energy_meV_atom)
        # the lowest new phases are looked at next round; the others are left without a verdict
        current = new[: config.keep]
        if not current:
            break
    return Search(phases, scans)


def _spectrum(
    ff: Potential, phase: Phase, *, extent: np.ndarray, config: ModesConfig
) -> tuple[Phase, list[OrderParameter]]:
    """The phase with its verdict, and the order parameters of its unstable modes."""
    mesh = np.maximum(1, np.ceil(extent / heights(phase.atoms) - 0.1)).astype(int).tolist()
    _, frequencies, orders = order_parameters.order_parameters(
        ff, phase.atoms, mesh=mesh, threshold=config.threshold, symprec=symmetric.SYMPREC_A
    )
    verdict = phase._replace(mesh=mesh, lowest_THz=float(frequencies.min()), stable=not orders)
    return verdict, orders


def _follow(
    ff: Potential,
    phases: list[Phase],
    *,
    scans: list[Followed],
    parent: int,
    orders: Sequence[OrderParameter],
    config: ModesConfig,
) -> None:
    """Append the phases that the modes `orders` of a phase lead to."""
    atoms = phases[parent].atoms
    for order in orders:
        found = order_parameters.distinct(
            atoms, order, max_atoms=config.max_atoms, num_random=config.random_directions, seed=config.seed
        )
        if not found:
            q = order.qpoints[0].round(4).tolist()
            tqdm.write(
                f"phase {parent}: the mode of {order.frequency:.2f} THz at q {q} needs more than {config.max_atoms} "
                "atoms and is not followed (--max-atoms)"
            )
        for direction, cell, u, group in tqdm(found[: config.max_directions], desc="distortions", leave=False):
            scan = energy_scan(ff, cell, u=u, cells=len(cell) // len(atoms))
            q = sorted(
                {tuple(np.round(p, 4).tolist()) for p, c in zip(order.qpoints, direction, strict=True) if abs(c) > 0}
            )
            led = Led(parent, phases[parent].space_group, q, order.frequency, scan.Q_min, scan.well_meV_atom)
            scans.append(Followed(scan, led, group))
            if scan.well_meV_atom > 1e3 * SHALLOWEST_EV:
                cell.positions += scan.Q_min * u
                relaxed, report = symmetric.relax(
                    ff, cell, fmax=config.fmax, cell=not config.fixed_cell, steps=config.steps
                )
                phase = describe(ff, primitive(relaxed), report=report, led=led, before=(phases[0], phases[parent]))
                if not any(same(phase, other) for other in phases):
                    phases.append(phase)


def energy_scan(ff: Potential, cell: ase.Atoms, *, u: np.ndarray, cells: int) -> Scan:
    """E(Q) of a distortion on both sides of zero, per atom of the supercell, and its lowest minimum.

    Args:
      cell: undistorted supercell of `cells` primitive cells.
      u: [n, 3] displacements of unit amplitude, A / (A sqrt(amu)).

    Returns:
      `Scan`; its minimum is that of a parabola through the lowest three points.
    """
    half = SCAN_A / np.linalg.norm(u, axis=1).max()
    coarse = np.concatenate([-half[::-1], [0.0], half])
    energy = _energies(ff, cell, u=u, amplitudes=coarse)
    flat, lowest = energy[len(half)], int(energy.argmin())
    best, depth = 0.0, 0.0
    Q, values = coarse, energy
    if energy[lowest] < flat:
        around = np.clip([lowest - 1, lowest + 1], 0, len(coarse) - 1)
        fine = np.linspace(coarse[around[0]], coarse[around[1]], len(coarse))
        energy = _energies(ff, cell, u=u, amplitudes=fine)
        i = int(np.clip(energy.argmin(), 1, len(fine) - 2))
        a, b, c = np.polyfit(fine[i - 1 : i + 2] - fine[i], energy[i - 1 : i + 2] - flat, 2)
        best, depth = (
            (float(fine[i] - b / (2 * a)), float(b * b / (4 * a) - c)) if a > 0 else (fine[i], flat - energy[i])
        )
        Q, order = np.unique(np.concatenate([coarse, fine]), return_index=True)
        values = np.concatenate([values, energy])[order]
    return Scan(Q.tolist(), (1e3 * (values - flat)).tolist(), best, 1e3 * depth, cells)


def _energies(ff: Potential, cell: ase.Atoms, *, u: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """Energies per atom at some amplitudes, eV."""
    images = []
    for amplitude in amplitudes:
        image = cell.copy()
        image.positions += amplitude * u
        images.append(image)
    return np.array([found.energy for found in ff.evaluate(images, compute=Compute())]) / len(cell)


def label(atoms: ase.Atoms, symprec: float = NAMED_AT_A) -> tuple[str, int]:
    """What makes two structures the same phase in `scores`: reduced formula and space group number at `symprec`."""
    return atoms.symbols.formula.reduce()[0].format("hill"), structures.space_group_number(atoms, symprec)


def scores(predicted: Iterable, reference: Iterable) -> Scores:
    """How well predicted phases match reference phases.

    Args:
      predicted, reference: hashable labels of phases, such as `label`; repeated ones count once.
    """
    predicted, reference = set(predicted), set(reference)
    hits = len(predicted & reference)
    return Scores(
        hits / len(predicted) if predicted else 0.0,
        hits / len(reference) if reference else 0.0,
        2 * hits / (len(predicted) + len(reference)) if predicted or reference else 0.0,
    )


def summary(found: Search) -> str:
    """The lines printed at the end of a run."""
    against = "" if found.scores is None else ", ".join(f"{k} {v:.3g}" for k, v in found.scores._asdict().items())
    return table(found.phases) + (f"\nagainst the reference: {against}" if against else "")


def table(phases: Sequence[Phase]) -> str:
    """One line a phase."""
    rows = ([i, *(phase.document()[key] for key in COLUMNS)] for i, phase in enumerate(phases))
    return tables.text(["phase", *COLUMNS.values()], rows, left=1 + len(COLUMNS))
