"""The demo: convert a MACE model, evaluate it, fine-tune it, draw phonons before and after."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ase
import jax
import numpy as np
import phonopy
from ase.stress import voigt_6_to_full_3x3_stress
from phonopy import Phonopy
from tqdm import tqdm

import equijax
from equijax import forcefield, outputs, plots, structures, tables
from equijax.config import Compute
from equijax.demonstration.options import DemoConfig
from equijax.errors import needed
from equijax.finetune import run as run_module
from equijax.finetune.defaults import resolve
from equijax.finetune.options import nested
from equijax.finetune.run import RUN
from equijax.forcefield import ForceField
from equijax.phonons import force_constants
from equijax.potential import Potential

Result = TypeVar("Result")
Row = dict[str, str | int | float]  # of a table, by the titles of its columns
ASSETS = resources.files("equijax") / "assets"
LABELLED = ("mini_valid", "Si-dia_test", "NaCl-rs_test")  # extxyz files with energies, forces and stresses
CRYSTALS = {"Si-dia": "Si (diamond)", "NaCl-rs": "NaCl (rocksalt)"}
MESH = (6, 6, 6)  # Gamma-centred, for the frequency error
TEMPERATURE_K = 300.0
TUNED = "Si-dia"  # the crystal to fine-tune on
TASKS = len(LABELLED) + len(CRYSTALS) + 3  # evaluate, phonons, fine-tune, phonons again, plot
EARLIER = replace(RUN, optional=RUN.optional | {f"{TUNED}_phonopy_params.yaml"})


class Demonstration(NamedTuple):
    """What the demo made."""

    ff: Potential  # as converted
    errors: list[Row]  # on the bundled labels
    phonons: list[Row]
    tuning: list[Row]  # force errors before and after fine-tuning
    convert_s: float
    fine_tune_s: float
    total_s: float

    def document(self) -> dict[str, object]:
        """What report.json holds."""
        return {
            "model": self.ff.metadata,
            "versions": {m.__name__: m.__version__ for m in (equijax, jax, phonopy, np)},
            "errors": self.errors,
            "phonons": self.phonons,
            "fine-tuning": self.tuning,
            "convert_s": self.convert_s,
            "fine_tune_s": self.fine_tune_s,
            "total_s": self.total_s,
        }


@outputs.locked
def run(config: DemoConfig) -> Demonstration:
    """The whole demo, in `config.out`.

    Raises:
      FileExistsError: the folder holds other models or runs.
      SystemExit: the model cannot be converted, with the status of the converter, which has said why.
    """
    out = config.out.absolute()
    outputs.check_replaceable(out / "model", outputs.MODEL)
    check_earlier(out)
    started = time.perf_counter()
    panels, rows = {}, []
    conversion_s, ff = timed(convert, config.model, out / "model", config.head)
    with tqdm(total=TASKS, desc="demo", unit="step") as progress:
        errors = [step(progress, f"evaluate {name}", evaluate, ff, name)[1] for name in LABELLED]
        for name, title in CRYSTALS.items():
            _, (reference, before, row) = step(progress, f"phonons of {title}", phonons_of, ff, name, out)
            panels[title] = {"reference": reference, "converted": before}
            rows.append(row)
        tuning_s, (tuned, tuning) = step(progress, "fine-tune", fine_tune, out, config)
        _, (_, after, row) = step(
            progress, "phonons again", phonons_of, tuned, TUNED, out / "finetuned", ", fine-tuned"
        )
        panels[CRYSTALS[TUNED]]["fine-tuned"] = after
        rows.append(row)
        step(progress, "draw", plots.compare_bands, out / "bands.png", panels)
    found = Demonstration(
        ff,
        errors,
        phonons=rows,
        tuning=tuning,
        convert_s=conversion_s,
        fine_tune_s=tuning_s,
        total_s=time.perf_counter() - started,
    )
    outputs.write_json(out / "report.json", found.document())
    return found


def summary(found: Demonstration, out: Path) -> str:
    """The text printed at the end."""
    ff = found.ff
    model = f"{len(ff.config.species)} elements, {ff.config.hidden_irreps}, r_max {ff.config.r_max:g} A"
    return f"""
Converted in {found.convert_s:.1f} s to {out / "model"}: {model}

Errors against labels (mean absolute, float32)
{table(found.errors)}

Fine-tuned on ten structures of {CRYSTALS[TUNED]} in {found.fine_tune_s:.0f} s, by low-rank adapters
{table(found.tuning)}

Phonons from exact second derivatives (float64), against the reference
{table(found.phonons)}

{found.total_s:.0f} s in all. Band structures: {out / "bands.png"}"""


def table(rows: list[Row]) -> str:
    """Rows with the same keys."""
    return tables.text(list(rows[0]), (list(row.values()) for row in rows))


def fine_tune(out: Path, config: DemoConfig) -> tuple[ForceField, list[Row]]:
    """What `python -m equijax.finetune` does, on the bundled structures of one crystal, into `out`/finetuned.

    Returns:
      the fine-tuned model, and force errors of each set before and after.
    """
    shutil.rmtree(out / "finetuned", ignore_errors=True)  # of an earlier demo
    with resources.as_file(ASSETS) as folder:
        sets = {"train": f"{TUNED}_train", "valid": f"{TUNED}_valid", "test": f"{TUNED}_test", "retain": "mini_valid"}
        files = {option: (folder / f"{name}.extxyz",) for option, name in sets.items()}
        given = {"model": out / "model", "out": out / "finetuned", "head": config.head, "epochs": config.epochs}
        result = run_module.run(resolve(nested(given | files)))
    assert result is not None  # None is an interrupted run, which a demo does not survive
    before, after = result.before.errors, result.after.errors
    rows = [
        {
            "set": name,
            "structures": number,
            "force MAE before (meV/A)": 1e3 * needed(before[name].forces_mae, f"{name} has no forces"),
            "after (meV/A)": 1e3 * needed(after[name].forces_mae, f"{name} has no forces"),
        }
        for name, number in result.structures.items()
    ]
    return forcefield.load(out / "finetuned" / "best", head=config.head), rows


def check_earlier(out: Path) -> None:
    """Refuse a folder for the fine-tuning that holds anything but that of an earlier demo, which is replaced.

    Raises:
      FileExistsError: it does.
    """
    path = out / "finetuned"
    outputs.check_replaceable(path, EARLIER)
    document = EARLIER.read(path) if path.is_dir() and any(path.iterdir()) else None
    if document is not None and document["model"] != str(out / "model"):
        raise FileExistsError(f"refusing to replace {path}: it fine-tuned {document['model']}; choose another --out")


def step(progress: tqdm, title: str, function: Callable[..., Result], *args: Any) -> tuple[float, Result]:
    """(seconds, result) of one step of the demo, named in the progress bar while it runs."""
    progress.set_postfix_str(title)
    seconds, result = timed(function, *args)
    progress.update()
    return seconds, result


def convert(source: str | None, out: Path, head: str | None) -> ForceField:
    """Run `python -m convert` as a user would, and load what it wrote."""
    with resources.as_file(ASSETS / "mini.model") as bundled:
        done = subprocess.run([sys.executable, "-m", "convert", source or str(bundled), str(out)], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)  # the converter has said why
    return forcefield.load(out, head=head)


def read_labels(atoms: ase.Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces [n, 3] (eV/A) and stress [3, 3] (eV/A^3) under REF_ keys or ASE's own.

    Raises:
      KeyError, PropertyNotImplementedError: a label is missing.
    """
    if "REF_energy" in atoms.info:
        energy, stress = atoms.info["REF_energy"], atoms.info["REF_stress"]
        return float(energy), atoms.arrays["REF_forces"], voigt_6_to_full_3x3_stress(stress)
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)


def evaluate(ff: Potential, name: str) -> Row:
    """Mean absolute errors of a bundled file of labelled structures, and the time of the first and a second call."""
    with resources.as_file(ASSETS / f"{name}.extxyz") as path:
        images = structures.read_all(path)
    first_s, _ = timed(ff.evaluate, images)
    second_s, results = timed(ff.evaluate, images)
    labels = [read_labels(atoms) for atoms in images]
    pairs = list(zip(results, labels, images, strict=True))
    atoms = sum(len(a) for a in images)
    return {
        "file": name,
        "structures": len(images),
        "atoms": atoms,
        "energy (meV/atom)": 1e3 * float(np.mean([abs(r.energy - e) / len(a) for r, (e, _, _), a in pairs])),
        "forces (meV/A)": 1e3 * mean_difference([(r.forces, f) for r, (_, f, _), _ in pairs]),
        "stress (meV/A^3)": 1e3 * mean_difference([(r.stress, s) for r, (_, _, s), _ in pairs]),
        "first call (s)": first_s,
        "again (s)": second_s,
        "us/atom": 1e6 * second_s / atoms,
    }


def phonons_of(ff: Potential, name: str, out: Path, note: str = "") -> tuple[Phonopy, Phonopy, Row]:
    """Force constants of a bundled crystal on the supercell of its reference phonons.

    Returns:
      (reference, phonon, row): two Phonopy objects with force constants, and a row for the summary table.
    """
    with resources.as_file(ASSETS / f"{name}_phonopy.yaml") as path:
        reference = phonopy.load(path, log_level=0)
    phonon = Phonopy(reference.unitcell, reference.supercell_matrix, reference.primitive_matrix)
    first_s, _ = timed(force_constants.force_constants, ff, phonon, compute=Compute(progress=True))
    second_s, _ = timed(force_constants.force_constants, ff, phonon)
    with outputs.beside(out / f"{name}_phonopy_params.yaml") as part:
        phonon.save(part, settings={"force_constants": True})
    found, wanted = spectrum(phonon), spectrum(reference)
    row = {
        "crystal": CRYSTALS[name] + note,
        "atoms in supercell": len(phonon.supercell),
        "frequency MAE (THz)": float(np.abs(found.frequencies - wanted.frequencies).mean()),
        "highest (THz)": found.highest,
        "reference (THz)": wanted.highest,
        "C_V 300 K (J/K/mol)": found.heat_capacity,
        "reference (J/K/mol)": wanted.heat_capacity,
        "first call (s)": first_s,
        "again (s)": second_s,
    }
    return reference, phonon, row


class Spectrum(NamedTuple):
    """Phonons on the mesh."""

    frequencies: np.ndarray  # [q, modes] THz
    highest: float  # THz
    heat_capacity: float  # J/K per mole of primitive cells


def spectrum(phonon: Phonopy) -> Spectrum:
    """Frequencies on the mesh, the highest of them, and C_V."""
    frequencies = phonon.run_mesh(MESH, is_mesh_symmetry=False, is_gamma_center=True).frequencies
    thermal = phonon.run_thermal_properties(temperatures=[TEMPERATURE_K], exclude_gamma_acoustic=True)
    heat_capacity = thermal.heat_capacity
    assert heat_capacity is not None  # None only before the run
    return Spectrum(frequencies, float(frequencies.max()), float(heat_capacity[0]))


def mean_difference(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean absolute difference over all components of all pairs of arrays."""
    return float(np.mean(np.concatenate([np.abs(a - b).ravel() for a, b in pairs])))


def timed(function: Callable[..., Result], *args: Any, **kwargs: Any) -> tuple[float, Result]:
    """(seconds, result) of one call."""
    started = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - started, result
