"""Makers for jobflow (extra `flows`): jobs that relax, compute phonons, thermal expansion and conductivity, fine-tune.

    from jobflow import Flow, run_locally
    from equijax.flows import PhononMaker, RelaxMaker

    relax = RelaxMaker(model="model/", fmax=1e-5).make(structure)  # pymatgen's Structure, or ase.Atoms
    phonon = PhononMaker(model="model/", supercell=(3, 3, 3)).make(relax.output["structure"])
    responses = run_locally(Flow([relax, phonon]), create_folders=True)
    responses[phonon.uuid][1].output["lowest_THz"]

A job makes a folder of its own where it is started, `dir_name` in its output, with the files of the program of the same
name. Outputs are plain JSON; structures in them are pymatgen's `as_dict`, which jobflow's references turn into a
Structure (masses set by hand and constraints are lost there). `model` is a folder that the machine of the job can read.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import ase
import ase.io
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import jsonio

from equijax import compiled, data, forcefield, outputs, structures
from equijax.data import labelled
from equijax.errors import InputError, MissingExtra, needed
from equijax.finetune import defaults, report
from equijax.finetune import run as finetune_run
from equijax.finetune.options import nested, option_names
from equijax.phonons import conductivity, expansion
from equijax.phonons import run as phonons_run
from equijax.phonons.options import ExpansionConfig, KappaConfig, PhononsConfig
from equijax.relax import symmetric

try:
    from jobflow import Job, Maker, job
    from pymatgen.io.ase import AseAtomsAdaptor
except ImportError as error:
    raise MissingExtra(
        "equijax.flows needs jobflow and pymatgen: pip install 'equijax[flows]'", name="jobflow"
    ) from error

INPUT = "crystal.json"  # in the folder of a job


@dataclass
class _CrystalMaker(Maker):
    """What makers of jobs on one crystal have in common."""

    model: str = field(kw_only=True)
    head: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.model = str(Path(self.model).absolute())  # jobs run in other folders

    def make(self, structure: Any, model: str | None = None) -> Job:
        """A job.

        Args:
          structure: pymatgen's Structure, ase.Atoms, or a reference to a structure in the output of another job.
          model: instead of that of the maker, such as the output of a fine-tuning job.
        """
        return self.compute(portable(structure), model)

    @job
    def compute(self, structure: Any, model: str | None = None) -> dict[str, Any]:
        """What the job does."""
        compiled.use_cache()
        folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=".")).absolute()
        return self._output(to_atoms(structure), model or self.model, folder) | {"dir_name": str(folder)}

    def _output(self, atoms: ase.Atoms, model: str, folder: Path) -> dict[str, Any]:
        raise NotImplementedError


@dataclass
class RelaxMaker(_CrystalMaker):
    """Relaxation of cell and ions, or of the ions alone, that keeps the space group; see `equijax.relax.symmetric`.

    Output: structure, energy (eV), forces (eV/A), stress (eV/A^3, Voigt, where there is a cell), `converged`, steps,
    largest force, change of volume, space group before and after.
    """

    name: str = "relax"
    fmax: float = field(default=1e-4, kw_only=True)
    cell: bool = field(default=True, kw_only=True)
    steps: int = field(default=500, kw_only=True)

    def _output(self, atoms: ase.Atoms, model: str, folder: Path) -> dict[str, Any]:
        ff = forcefield.load(model, head=self.head)
        relaxed, found = symmetric.relax(ff, atoms, fmax=self.fmax, cell=self.cell, steps=self.steps)
        with outputs.beside(folder / "structure.extxyz") as part:
            ase.io.write(part, relaxed)
        document = found.document() | {"structure": from_atoms(relaxed)}
        relaxed.calc = ff.calculator(dtype="float64")
        document |= {"energy": relaxed.get_potential_energy(), "forces": relaxed.get_forces(apply_constraint=False)}
        return plain(document | ({"stress": relaxed.get_stress()} if relaxed.pbc.all() else {}))


@dataclass
class _RunMaker(_CrystalMaker):
    """What makers have in common whose jobs are the runs of a program: its options, its report as output."""

    supercell: tuple[int, ...] = field(kw_only=True)
    options: dict[str, Any] = field(default_factory=dict, kw_only=True)
    kind: ClassVar[type]
    run: ClassVar[Callable[[Any], Any]]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._config(Path(INPUT), self.model, Path())  # a wrong option is told before anything is submitted

    def _config(self, structure: Path, model: str, out: Path) -> Any:
        given = {"structure": structure, "model": Path(model), "head": self.head, "out": out}
        others = {f.name for f in dataclasses.fields(self.kind)} - {*given, "supercell"}
        if unknown := sorted(set(self.options) - others):
            raise InputError(f"options {unknown} of {type(self).__name__}: expected some of {sorted(others)}")
        chosen = {"supercell": self.supercell} | self.options
        # JSON has no tuples
        return self.kind(**given, **{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()})

    def _output(self, atoms: ase.Atoms, model: str, folder: Path) -> dict[str, Any]:
        with outputs.beside(folder / INPUT) as part:
            ase.io.write(part, atoms)
        document = plain(type(self).run(self._config(folder / INPUT, model, folder)).document())
        relaxed = folder / "structure.extxyz"
        return document | ({"structure": from_atoms(structures.read(relaxed))} if relaxed.is_file() else {})


@dataclass
class PhononMaker(_RunMaker):
    """Exact force constants, bands, density of states and thermal properties of a crystal.

    `options` are those of `equijax.phonons.options.PhononsConfig`, such as {"relax": True}. Output: what report.json
    holds, and the structure; force constants are in phonopy_params.yaml in `dir_name`.
    """

    name: str = "phonon"
    kind: ClassVar[type] = PhononsConfig
    run: ClassVar[Callable] = staticmethod(phonons_run.run)


@dataclass
class QhaMaker(_RunMaker):
    """Quasi-harmonic thermal expansion and mode Grueneisen parameters of a crystal, which is relaxed first.

    `options` are those of `equijax.phonons.options.ExpansionConfig`. Output: what report.json holds.
    """

    name: str = "qha"
    kind: ClassVar[type] = ExpansionConfig
    run: ClassVar[Callable] = staticmethod(expansion.run)


@dataclass
class KappaMaker(_RunMaker):
    """Lattice thermal conductivity of a crystal (extra `kappa`).

    `options` are those of `equijax.phonons.options.KappaConfig`. Output: what report.json holds.
    """

    name: str = "kappa"
    kind: ClassVar[type] = KappaConfig
    run: ClassVar[Callable] = staticmethod(conductivity.run)


@dataclass
class FinetuneMaker(Maker):
    """Fine-tune a model to labelled structures.

    `options` are those of `python -m equijax.finetune`, by the names that its --config has. Output: what report.json
    holds, and `model`, the folder of the new model, which `make` of the other makers takes.
    """

    name: str = "finetune"
    model: str = field(kw_only=True)
    options: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        self.model = str(Path(self.model).absolute())
        if unknown := sorted(set(self.options) - (option_names() - {"model", "train", "out", "config"})):
            raise InputError(f"options {unknown} of FinetuneMaker: `python -m equijax.finetune --help` lists them")

    def make(self, train: Sequence[Any]) -> Job:
        """A job.

        Args:
          train: paths of files with labels, ase.Atoms whose calculator holds labels, or mappings with "structure" and
            any of "energy" (eV), "forces" (eV/A) and "stress" (eV/A^3, ASE's sign), each of which may be a reference to
            the output of another job.
        """
        return self.compute([to_labels(entry) for entry in train])

    @job
    def compute(self, train: Sequence[Any]) -> dict[str, Any]:
        """What the job does."""
        compiled.use_cache()
        folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=".")).absolute()
        files = [Path(entry) for entry in train if isinstance(entry, str)]
        given = [from_labels(entry, i) for i, entry in enumerate(train) if not isinstance(entry, str)]
        if given:
            files.append(folder / "train.extxyz")
            with outputs.beside(files[-1]) as part:
                ase.io.write(part, [data.to_atoms(structure) for structure in given])
        places = {"model": Path(self.model), "train": tuple(files), "out": folder / "run"}
        found = finetune_run.run(defaults.resolve(nested(self.options | places)))
        document = report.document(needed(found, f"fine-tuning in {folder} was stopped by a signal: run the job again"))
        return plain(document) | {"dir_name": str(folder), "model": str(folder / "run" / "best")}


def portable(structure: Any) -> Any:
    """A structure as jobflow can store it: ase.Atoms as text, all else as it is."""
    return jsonio.encode(structure.copy()) if isinstance(structure, ase.Atoms) else structure


def to_atoms(structure: Any) -> ase.Atoms:
    """What a job is given as ase.Atoms: the text of `portable`, or pymatgen's Structure or Molecule.

    Raises:
      InputError: something else.
    """
    found = jsonio.decode(structure) if isinstance(structure, str) else structure
    if isinstance(found, ase.Atoms):
        return found
    if not hasattr(found, "species"):
        raise InputError(f"a structure of type {type(found).__name__}: expected pymatgen's Structure or ase.Atoms")
    adaptor: Any = AseAtomsAdaptor  # its annotations know no ase.Atoms where it lacks ASE
    return adaptor.get_atoms(found, msonable=False)


def from_atoms(atoms: ase.Atoms) -> dict[str, Any]:
    """pymatgen's dictionary of a structure with a cell, or of a molecule."""
    clean = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    adaptor: Any = AseAtomsAdaptor
    return plain((adaptor.get_structure(clean) if atoms.cell.rank == 3 else adaptor.get_molecule(clean)).as_dict())


def to_labels(entry: Any) -> Any:
    """An entry of the training set as jobflow can store it."""
    if isinstance(entry, ase.Atoms):
        found = {"structure": portable(entry)}
        for name in labelled.LABELS:
            try:
                found[name] = entry.calc.get_property(name, entry, allow_calculation=False) if entry.calc else None
            except PropertyNotImplementedError:  # how ASE says that it is not there
                found[name] = None
        return plain(found)
    return str(entry) if isinstance(entry, Path) else entry


def from_labels(entry: Mapping[str, Any], i: int) -> labelled.Labelled:
    """The labelled structure of `to_labels`; `i` is where it stands."""
    labels = {name: entry.get(name) for name in labelled.LABELS}
    return labelled.from_values(to_atoms(entry["structure"]), f"training structure {i}", **labels)


def plain(document: Any) -> Any:
    """JSON of the report of a run: dictionaries, lists, numbers, text."""
    return json.loads(json.dumps(document, default=outputs.plain))
