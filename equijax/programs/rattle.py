"""`python -m equijax.rattle --structure POSCAR ...`: structures worth a DFT calculation, to fine-tune on."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import ase
import ase.io

import equijax
from equijax import outputs, structures
from equijax.data.rattle import RattleConfig, make_supercell, rattled, relaxations
from equijax.data.select import descriptors, farthest
from equijax.graph.neighbours import check_atoms
from equijax.programs import runner


@runner.program("equijax rattle")
def main(argv: Sequence[str] | None = None) -> int:
    """Write the picked structures."""
    return run(runner.options(RattleConfig, argv, "equijax rattle"))


@outputs.locked
def run(options: RattleConfig) -> int:
    """Make candidates, pick from them and write what was picked to `options.out`.

    Raises:
      ValueError: a crystal that cannot be made into candidates.
    """
    check_free(options.out)
    crystal = structures.read(options.structure)
    if not crystal.pbc.all() or crystal.cell.rank < 3:
        raise ValueError(f"{options.structure} is not periodic in three directions")
    if options.model is not None:
        check_atoms(crystal, equijax.load(options.model).config, str(options.structure))
    supercell = make_supercell(crystal, options.supercell, min_length=options.min_length)
    candidates = rattled(supercell, options)
    if options.model is not None:
        candidates += relaxations(supercell, options)
    chosen = sorted(farthest(descriptors([atoms for atoms, _ in candidates]), options.number, seed=options.seed))
    picked = [candidates[i] for i in chosen]
    write(options, supercell, picked)
    print(f"{len(picked)} of {len(candidates)} structures of {supercell.get_chemical_formula()} are in {options.out}:")
    print("\n".join(f"  POSCAR-{i:03d}  {kind}" for i, (_, kind) in enumerate(picked, start=1)))
    return 0


def check_free(out: Path) -> None:
    """Refuse to mix structures of two runs in one folder, before work starts.

    Raises:
      FileExistsError: the folder has some.
    """
    left = sorted(p.name for p in (out / "poscars").glob("POSCAR-*"))
    if left:
        raise FileExistsError(f"{out / 'poscars'} holds {left[0]} and more already: choose another --out")


def write(options: RattleConfig, supercell: ase.Atoms, picked: Sequence[tuple[ase.Atoms, str]]) -> None:
    """structures.extxyz, one POSCAR each, and what made them."""
    folder = options.out / "poscars"
    folder.mkdir(parents=True, exist_ok=True)
    for i, (atoms, kind) in enumerate(picked, start=1):
        atoms.info["kind"] = kind
        with outputs.beside(folder / f"POSCAR-{i:03d}") as part:
            ase.io.write(part, atoms, format="vasp", direct=True, vasp5=True)
    with outputs.beside(options.out / "structures.extxyz") as part:
        ase.io.write(part, [atoms for atoms, _ in picked])
    report = {"options": asdict(options), "atoms": len(supercell), "kinds": [kind for _, kind in picked]}
    outputs.write_json(options.out / "report.json", report, default=str)
