"""What a fine-tuning run starts from: model, labelled sets, isolated-atom energies, batches; made from the options."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np

from equijax import checkpoint, data, parallel
from equijax.config import ModelConfig
from equijax.data import Labelled, select
from equijax.data.isolated import REFERENCE_EV
from equijax.data.phonopy_files import is_phonopy
from equijax.errors import InputError
from equijax.finetune import loader, replay
from equijax.finetune.options import FinetuneConfig, document
from equijax.forcefield import ForceField
from equijax.phonons import reference

SETS = ("train", "valid", "test", "retain")
FILES = ("train", "valid", "test", "retain", "replay", "replay_self", "phonons")  # options that name files
NEW_HEAD = "finetuned"


@dataclass(frozen=True)
class Task:
    """A run ready to train."""

    options: FinetuneConfig  # resolved
    config: ModelConfig
    variables: dict  # of the starting model, with its new head for multihead
    metadata: dict
    energies: np.ndarray  # [H, Z] eV, isolated atoms of the result
    e0: str  # where these come from: "model", or what they are called in tables
    messages: tuple[str, ...]
    items: dict[str, list[data.Item]]  # by set
    graphs: dict[str, list]  # labelled evaluation batches by set; energies count from `energies`
    untouched_graphs: dict[str, list]  # and from those of the starting model, where these are others
    feed: loader.Feed
    numbers: tuple[int, ...]  # elements of the training data, replay apart
    split: dict | None

    @property
    def head(self) -> str | None:
        """Head that is trained, None where there is only one."""
        return self.config.heads[self.feed.head] if len(self.config.heads) > 1 else None

    @property
    def dataset_sha256(self) -> str:
        """Fingerprint of the training structures."""
        return data.sha256(i.labelled for i in self.items["train"])


def inputs(options: FinetuneConfig) -> dict[str, str]:
    """sha256 of what a run begins with, by option and path: the model, and every file that holds structures.

    Raises:
      FileNotFoundError: no such model or file.
    """
    config, variables, _ = checkpoint.load(options.model)
    found = {f"--model {options.model}": checkpoint.fingerprint(config, variables)}
    for name in FILES:
        for path in (p for given in getattr(options, name) for p in reference.files_of(Path(given))):
            with open(path, "rb") as file:
                found[f"--{name.replace('_', '-')} {path}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def prepare(options: FinetuneConfig) -> Task:
    """Load the model and the data, settle E0s and validation set, list neighbours, build the evaluation batches.

    Raises:
      FileNotFoundError, InputError: see `equijax.data`, `equijax.finetune.replay` and `ForceField.head_index`.
    """
    start = ForceField(*checkpoint.load(options.model), head=None if options.strategy == "multihead" else options.head)
    ff, head, old_head = _heads(options, start)
    sets, isolated, split, told = _sets(options, old_head)
    constants = _constants(options)
    items = {name: data.prepare(structures, ff.config) for name, structures in sets.items()}
    found = data.predictions(ff, sets["train"])
    data.check_stress(sets["train"], [f.stress for f in found])
    energies, e0, more = _energies(options, ff, sets["train"], isolated, [f.energy for f in found], head)
    again, replayed = _replay(options, start, old_head)
    numbers = sorted({*data.elements(sets["train"]), *(int(z) for c in constants for z in c.atoms.numbers)})
    eats = loader.Feed(
        ff.config,
        energies,
        items["train"],
        replay=data.prepare(again, ff.config),
        constants=constants,
        batch_size=options.batch_size,
        replay_size=max(1, round(options.replay_ratio * options.batch_size)) if again else 0,
        tangents=options.tangents,
        primitive=options.hessian_cell == "primitive",
        head=head,
        dtype=options.dtype,
        seed=options.seed,
        mesh=parallel.data_mesh(options.devices),
    )
    loader.settle(eats, options.epochs)
    graphs = _evaluation_graphs(eats, items)
    model = dataclasses.replace(eats, energies=_model_energies(ff))
    untouched = graphs if e0 == "model" else _evaluation_graphs(model, items)
    messages = (*told, *replayed, *more)
    return Task(
        options, ff.config, ff.variables, start.metadata, energies, e0, messages, items, graphs, untouched, eats,
        tuple(numbers), split,
    )  # fmt: skip


def _evaluation_graphs(eats: loader.Feed, items: dict) -> dict[str, list]:
    """Batches by set; structures like those of training go in batches of one size: the same compiled program."""
    size = eats.batch_size
    return {name: loader.evaluation_graphs(eats, x, None if name == "retain" else size) for name, x in items.items()}


def _heads(options, start: ForceField) -> tuple[ForceField, int, str | None]:
    """The model to train, the head to train, and the head that replayed and retained structures belong to."""
    if options.strategy != "multihead":
        return start, start.head_index, None
    old = start.config.heads[0] if len(start.config.heads) == 1 else options.replay_head
    name = options.head or NEW_HEAD
    config, variables = replay.add_head(start.config, start.variables, name, old)
    return ForceField(config, variables, start.metadata, name), len(config.heads) - 1, old


def _sets(options, old_head) -> tuple[dict[str, list[Labelled]], list[Labelled], dict | None, tuple[str, ...]]:
    """Structures by set, isolated atoms of the training files, the split, and what was read.

    The validation set is drawn from the training set where none is given.
    """
    read = {name: _read(options, getattr(options, name)) for name in SETS}
    told = tuple(text for files in read.values() for file in files for text in file.messages)
    sets = {name: _structures(files) for name, files in read.items()}
    isolated = [s for file in read["train"] for s in file.isolated]
    if isolated and not sets["train"]:
        raise InputError("--train holds nothing but isolated atoms, which set E0 and are not trained on")
    if old_head is not None:
        sets["retain"] = [dataclasses.replace(s, head=old_head) for s in sets["retain"]]
    if sets["valid"] or not sets["train"]:
        return sets, isolated, None, told
    chosen = data.split(len(sets["train"]), options.valid_fraction, options.seed)
    split = {**chosen._asdict(), "sources": [sets["train"][i].source for i in chosen.valid]}
    sets["valid"] = [sets["train"][i] for i in chosen.valid]
    sets["train"] = [sets["train"][i] for i in chosen.train]
    return sets, isolated, split, told


def _read(options, paths) -> list[data.Read]:
    return [data.read(path, options, tangents=int(_is_reference(options, path))) for path in paths]


def _structures(files: list[data.Read]) -> list[Labelled]:
    """Without force constants, which get fresh tangents every epoch."""
    return [s for file in files for s in file.structures if s.hvp is None]


def _is_reference(options, path: Path) -> bool:
    return options.hessian_weight > 0 and is_phonopy(Path(path))


def _constants(options) -> list[data.ForceConstants]:
    """Reference force constants among the training files.

    Raises:
      InputError: a weight for force constants and none there.
    """
    constants = [data.force_constants(path) for path in options.train if _is_reference(options, path)]
    if options.hessian_weight > 0 and not constants and not options.replay_hessian:
        raise InputError(
            f"hessian_weight = {options.hessian_weight} needs a phonopy file in --train, or --replay-hessian"
        )
    return constants


def _energies(options, ff, structures, isolated, predicted, head) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """Isolated-atom energies of the result [H, Z], where they come from, and what to tell about them."""
    model, by_hand = _model_energies(ff), _by_hand(options)
    uses_atoms = options.e0 in ("auto", "given")
    lone = data.isolated(_of_head(isolated, ff, head), by_hand) if uses_atoms else {}
    found = data.Energies(model, "", False)
    if lone or by_hand:
        found = data.given(ff.config, ff.variables, lone | by_hand, head)
    if options.e0 == "refit":
        found = data.refit(ff.config, ff.variables, structures, predicted, head)
    told = [found.message] if found.message else []
    if isolated and not uses_atoms:
        told.append(f"{len(isolated)} isolated atom(s) set apart: their energies are not used with --e0 {options.e0}")
    e0 = "refitted" if options.e0 == "refit" else "given" if by_hand else "isolated-atom" if lone else "model"
    start = np.array(predicted) + _shift(ff, structures, found.values - model, head)
    return found.values, e0, (*told, *_reference_warning(e0, structures, start))


def _reference_warning(e0, structures, predicted) -> list[str]:
    off = data.off_reference(structures, predicted)
    if off is None:
        return []
    offer = "" if e0 == "refitted" else "; --e0 refit shifts its isolated-atom energies to them"
    return [
        f"WARNING: the energies of --train are {off:.4g} eV/atom off those of the model with {e0} E0s (median; more "
        f"than {REFERENCE_EV} is another reference of energies, not an error of the model){offer}"
    ]


def _by_hand(options) -> dict[str, float]:
    """E0s on the command line, by symbol."""
    if options.e0 != "given":
        return {}
    pairs = [text.split("=") for text in options.e0_values]
    try:
        found = {symbol: float(value) for symbol, value in pairs}
    except ValueError:
        found = {}
    if not found:
        raise InputError(f"e0_values {options.e0_values}: expected symbols and eV, like Si=-0.82 O=-1.5")
    return found


def _of_head(structures, ff, head) -> list[Labelled]:
    return [s for s in structures if s.head in (None, ff.config.heads[head])]


def _model_energies(ff) -> np.ndarray:
    return np.array(ff.variables["constants"]["atomic_energies"], np.float64)


def _shift(ff, structures, change: np.ndarray, head: int) -> np.ndarray:
    """What a change of E0 [H, Z] adds to the energies of structures, eV."""
    row = {z: i for i, z in enumerate(ff.config.species)}
    heads = [head if s.head is None else ff.config.heads.index(s.head) for s in structures]
    species = [[row[z] for z in s.atoms.numbers.tolist()] for s in structures]
    return np.array([change[h, rows].sum() for h, rows in zip(heads, species, strict=True)])


def _replay(options, start: ForceField, old_head) -> tuple[list[Labelled], tuple[str, ...]]:
    """The chosen replay structures, weighted, with their own labels or the starting model's, and what was read."""
    chosen, told = [], []
    teacher = start if old_head is None else start.with_head(old_head)
    for paths, by_model in ((options.replay, False), (options.replay_self, True)):
        if not paths:
            continue
        files = _read(options, paths)
        told += [text for file in files for text in file.messages]
        known = [s for s in _structures(files) if _known(s.atoms, start.config)]
        picked = select.pick(known, min(options.replay_number, len(known)), options.replay_pick, options.seed)
        some = [dataclasses.replace(known[i], weight=options.replay_weight * known[i].weight) for i in picked]
        tangents = options.tangents if options.replay_hessian else 0
        chosen += replay.pseudo_label(teacher, some, tangents=tangents) if by_model else some
    return chosen if old_head is None else [dataclasses.replace(s, head=old_head) for s in chosen], tuple(told)


def _known(atoms: ase.Atoms, config: ModelConfig) -> bool:
    return set(atoms.numbers.tolist()) <= set(config.species)


def provenance(task: Task, best_epoch: int) -> dict:
    """Metadata of the resulting checkpoint."""
    return {"base": task.metadata, "finetune": document(task.options), "best_epoch": best_epoch,
            "dataset_sha256": task.dataset_sha256}  # fmt: skip
