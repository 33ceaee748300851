"""`python -m equijax.modes STRUCTURE --model DIR`: follow soft modes downhill until a stable phase is found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import ase.io
import tyro

from equijax import forcefield, graph, outputs, structures
from equijax.phonons.soft_modes import ModesConfig, label, scores, search
from equijax.plots import cell_text, draw_scans
from equijax.programs import runner


@dataclass(frozen=True)
class Options(ModesConfig):
    __doc__ = ModesConfig.__doc__

    structure: Annotated[Path, tyro.conf.Positional]
    """Any file ASE reads; its last image is used."""


@runner.program("equijax modes")
def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print its summary."""
    config = runner.options(Options, argv, "equijax modes")
    print(summary(run(config)))
    print(f"Everything is in {config.out}")
    return 0


def summary(report: dict) -> str:
    """The lines printed at the end of a run."""
    scores = ", ".join(f"{k} {v:.3g}" for k, v in report.get("scores", {}).items())
    return table(report["phases"]) + (f"\nagainst the reference: {scores}" if scores else "")


@outputs.locked
def run(config: ModesConfig) -> dict:
    """The whole search: files under `config.out`, returns what report.json holds.

    Raises:
      ValueError, FileNotFoundError: unusable input, before work starts.
    """
    ff = forcefield.load(config.model, head=config.head)
    atoms = structures.read(config.structure)
    known = structures.read_all(config.reference) if config.reference else []
    graph.check_atoms(atoms, ff.config, str(config.structure))
    if not atoms.pbc.all():
        raise ValueError(f"{config.structure}: periodic along {atoms.pbc.tolist()}, phonons need all three directions")
    if min(config.mesh) < 1 or config.threshold <= 0:
        raise ValueError(f"mesh {config.mesh} and threshold {config.threshold}: expected positive numbers")
    phases, scans = search(ff, atoms, config)
    for i, phase in enumerate(phases):
        with outputs.beside(config.out / f"phase_{i}.extxyz") as part:
            ase.io.write(part, phase["atoms"])
        with outputs.beside(config.out / f"phase_{i}.vasp") as part:
            ase.io.write(part, phase["atoms"], format="vasp", direct=True)
    draw_scans(scans, config.out / "energy_of_Q.png")
    report = {"model": str(config.model), "phases": [{k: v for k, v in p.items() if k != "atoms"} for p in phases],
              "scans": scans}  # fmt: skip
    if known:
        found = {label(p["atoms"]) for p in phases[1:] if p["stable"]}
        report["scores"] = scores(found, {label(a) for a in known})._asdict()
    outputs.write_json(config.out / "report.json", report)
    outputs.write_text(config.out / "table.txt", table(phases) + "\n")
    return report


def table(phases: list[dict]) -> str:
    """One line a phase."""
    columns = {"round": "round", "parent": "from", "from_space_group": "space group before", "q": "q",
               "frequency_THz": "mode THz", "Q_min": "Q_min", "well_meV_atom": "well meV/atom",
               "space_group": "space group after", "num_atoms": "atoms", "energy_meV_atom": "E meV/atom",
               "lowest_THz": "lowest THz", "stable": "stable"}  # fmt: skip
    rows = [["phase", *columns.values()]]
    rows += [[str(i), *(cell_text(phase[key]) for key in columns)] for i, phase in enumerate(phases)]
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
