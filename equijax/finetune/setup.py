"""What a fine-tuning run starts from: model, labelled sets, isolated-atom energies, batches; made from the options."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ase
import jraph
import numpy as np

from equijax import checkpoint, parallel
from equijax.data import isolated, labelled, select
from equijax.data.files import LabelledFile, read_file
from equijax.data.items import Item, predictions, prepare
from equijax.data.labelled import Labelled
from equijax.data.phonopy_files import ForceConstants, force_constants, is_phonopy
from equijax.errors import InputError, needed
from equijax.finetune import prototypes, replay, retained
from equijax.finetune.loader import TrainingSet, evaluation_graphs, settle
from equijax.finetune.options import UNRESOLVED, FinetuneOptions, document
from equijax.finetune.strategies import Trainable, trainable
from equijax.forcefield import ForceField
from equijax.potential import Potential

SETS = ("train", "valid", "test", "retain")  # options that name files of them
NEW_HEAD = "finetuned"
Graphs = dict[str, list[jraph.GraphsTuple]]  # labelled evaluation batches by set


@dataclass(frozen=True)
class Setup:
    """A run ready to train."""

    options: FinetuneOptions  # resolved
    ff: Potential  # the starting model, with its new head for multihead; its head is trained
    trained: Trainable
    training: TrainingSet
    energies: np.ndarray  # [H, Z] eV, isolated atoms of the result
    e0: str  # where these come from: "model", or what they are called in tables
    items: dict[str, list[Item]]  # by set
    graphs: Graphs  # energies count from `energies`
    untouched_graphs: Graphs  # and from those of the starting model, where these are others
    numbers: tuple[int, ...]  # elements of the training data, replay apart
    messages: tuple[str, ...]
    split: dict | None

    @property
    def dataset_sha256(self) -> str:
        """Fingerprint of the training structures."""
        return labelled.sha256(i.labelled for i in self.items["train"])

    @property
    def provenance(self) -> dict:
        """What the metadata of a resulting checkpoint say of it."""
        options, sha256 = document(self.options), self.dataset_sha256
        return {"base": self.ff.metadata, "finetune": options, "dataset_sha256": sha256}

    def model(self, variables: dict) -> ForceField:
        """The starting model with other variables; shapes are shared, and so programs."""
        ff = self.ff
        return ForceField(ff.config, variables, {}, ff.head, ff.pool, ff.batch_pool)


def begin(options: FinetuneOptions) -> Setup:
    """Load the model and the data, settle E0s and validation set, list neighbours, build the evaluation batches.

    Raises:
      FileNotFoundError, InputError: see `equijax.data`, `equijax.finetune.replay` and `ForceField.head_index`.
    """
    head = None if options.strategy == "multihead" else options.head
    start = ForceField(*checkpoint.load(options.model), head=head)
    ff, old_head = _heads(options, start)
    constants = _constants(options)
    sets = _sets(options, old_head, constants=constants)
    items = {name: prepare(structures, ff.config) for name, structures in sets.structures.items()}
    e0 = _isolated_energies(options, ff, sets=sets)
    train = sets.structures["train"]
    targets = [*(s.atoms for s in train), *(c.atoms for c in constants)]
    again = _replay(options, start, head=old_head, targets=targets, change=e0.values - _model_energies(ff))
    numbers = sorted({int(z) for atoms in targets for z in atoms.numbers})
    training = TrainingSet(
        ff.config,
        e0.values,
        items["train"],
        replay=prepare(again.structures, ff.config),
        constants=constants,
        batch_size=options.batch_size,
        replay_size=max(1, round(options.replay_ratio * options.batch_size)) if again.structures else 0,
        tangents=options.tangents,
        primitive=options.hessian_cell == "primitive",
        head=ff.head_index,
        dtype=options.dtype,
        seed=options.seed,
        mesh=parallel.data_mesh(options.devices),
    )
    settle(training, needed(options.training.epochs, UNRESOLVED))
    graphs = _evaluation_graphs(training, items)
    untouched = graphs
    if e0.source != "model":
        untouched = _evaluation_graphs(dataclasses.replace(training, energies=_model_energies(ff)), items)
    return Setup(
        options,
        ff,
        trainable(options, ff.config, variables=ff.variables, numbers=numbers),
        training,
        energies=e0.values,
        e0=e0.source,
        items=items,
        graphs=graphs,
        untouched_graphs=untouched,
        numbers=tuple(numbers),
        messages=(*sets.messages, *again.messages, *e0.messages),
        split=sets.split,
    )


def _evaluation_graphs(training: TrainingSet, items: dict[str, list[Item]]) -> Graphs:
    """Batches by set; structures like those of training go in batches of one size: the same compiled program."""
    sizes = {name: None if name in retained.KINDS else training.batch_size for name in items}
    return {name: evaluation_graphs(training, some, graphs=sizes[name]) for name, some in items.items()}


def _heads(options: FinetuneOptions, start: ForceField) -> tuple[ForceField, str | None]:
    """The model to train with its head, and the head that replayed and retained structures belong to."""
    if options.strategy != "multihead":
        return start, None
    old = start.config.heads[0] if len(start.config.heads) == 1 else options.replay_head
    name = options.head or NEW_HEAD
    config, variables = replay.add_head(start.config, start.variables, name=name, like=old)
    return ForceField(config, variables, start.metadata, name), old


class Sets(NamedTuple):
    """What the files hold."""

    structures: dict[str, list[Labelled]]  # by set
    isolated: list[Labelled]  # lone atoms of the training files
    split: dict | None  # how the validation set was drawn
    messages: tuple[str, ...]  # what was read


def _sets(options: FinetuneOptions, old_head: str | None, *, constants: Sequence[ForceConstants] = ()) -> Sets:
    """The validation set is drawn from the training set where none is given; the retained set becomes two."""
    files = {name: _files(options, getattr(options, name)) for name in SETS}
    told = tuple(text for some in files.values() for file in some for text in file.messages)
    sets = {name: _structures(some) for name, some in files.items()}
    lone = [s for file in files["train"] for s in file.isolated]
    if lone and not sets["train"]:
        raise InputError("--train holds nothing but isolated atoms, which set E0 and are not trained on")
    kept = sets.pop("retain")
    if old_head is not None:
        kept = [dataclasses.replace(s, head=old_head) for s in kept]
    kinds = retained.sort(kept, [*(s.atoms for s in sets["train"]), *(c.atoms for c in constants)])
    sets |= {name: getattr(kinds, name) for name in retained.KINDS}
    told += retained.messages(kinds)
    if sets["valid"] or not sets["train"]:
        return Sets(sets, lone, None, told)
    chosen = labelled.split(len(sets["train"]), options.valid_fraction, seed=options.seed)
    split = {**chosen._asdict(), "sources": [sets["train"][i].source for i in chosen.valid]}
    sets["valid"] = [sets["train"][i] for i in chosen.valid]
    sets["train"] = [sets["train"][i] for i in chosen.train]
    return Sets(sets, lone, split, told)


def _files(options: FinetuneOptions, paths: Sequence[Path]) -> list[LabelledFile]:
    return [read_file(path, options.keys, tangents=int(_is_reference(options, path))) for path in paths]


def _structures(files: Sequence[LabelledFile]) -> list[Labelled]:
    """Without force constants, which get fresh tangents every epoch."""
    return [s for file in files for s in file.structures if s.hvp is None]


def _is_reference(options: FinetuneOptions, path: Path) -> bool:
    return options.loss.hessian_weight > 0 and is_phonopy(Path(path))


def _constants(options: FinetuneOptions) -> list[ForceConstants]:
    """Reference force constants among the training files.

    Raises:
      InputError: a weight for force constants and none there.
    """
    constants = [force_constants(path) for path in options.train if _is_reference(options, path)]
    weight = options.loss.hessian_weight
    if weight > 0 and not constants and not options.replay_hessian:
        raise InputError(f"hessian_weight = {weight} needs a phonopy file in --train, or --replay-hessian")
    return constants


class IsolatedEnergies(NamedTuple):
    """E0 of the result."""

    values: np.ndarray  # [H, Z] eV
    source: str  # "model", "refitted", "given" or "isolated-atom"
    messages: tuple[str, ...]


def _isolated_energies(options: FinetuneOptions, ff: Potential, *, sets: Sets) -> IsolatedEnergies:
    """By the options; the stresses of the training set are checked against the model's on the way."""
    structures = sets.structures["train"]
    found = predictions(ff, structures)
    labelled.check_stress(structures, [f.stress for f in found])
    predicted = [f.energy for f in found]
    model, by_hand, head = _model_energies(ff), _by_hand(options), ff.head_index
    uses_atoms = options.e0 in ("auto", "given")
    own = [s for s in sets.isolated if s.head in (None, ff.config.heads[head])]
    lone = isolated.isolated(own, by_hand) if uses_atoms else {}
    energies = isolated.Energies(model, "", False)
    if lone or by_hand:
        energies = isolated.given(ff.config, ff.variables, energies=lone | by_hand, head=head)
    if options.e0 == "refit":
        energies = isolated.refit(ff.config, ff.variables, structures=structures, predicted=predicted, head=head)
    told = [energies.message] if energies.message else []
    if sets.isolated and not uses_atoms:
        number = len(sets.isolated)
        told.append(f"{number} isolated atom(s) set apart: their energies are not used with --e0 {options.e0}")
    source = "refitted" if options.e0 == "refit" else "given" if by_hand else "isolated-atom" if lone else "model"
    start = np.array(predicted) + _shift(ff, structures, change=energies.values - model)
    return IsolatedEnergies(energies.values, source, (*told, *_reference_warning(source, structures, predicted=start)))


def _reference_warning(source: str, structures: Sequence[Labelled], *, predicted: np.ndarray) -> list[str]:
    off = isolated.off_reference(structures, predicted)
    if off is None:
        return []
    offer = "" if source == "refitted" else "; --e0 refit shifts its isolated-atom energies to them"
    return [
        f"WARNING: the energies of --train are {off:.4g} eV/atom off those of the model with {source} E0s (median; "
        f"more than {isolated.REFERENCE_EV} is another reference of energies, not an error of the model){offer}"
    ]


def _by_hand(options: FinetuneOptions) -> dict[str, float]:
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


def _model_energies(ff: Potential) -> np.ndarray:
    return np.array(ff.variables["constants"]["atomic_energies"], np.float64)


def _shift(ff: Potential, structures: Sequence[Labelled], *, change: np.ndarray) -> np.ndarray:
    """What a change of E0 [H, Z] adds to the energies of structures, eV."""
    row = {z: i for i, z in enumerate(ff.config.species)}
    heads = [ff.head_index if s.head is None else ff.config.heads.index(s.head) for s in structures]
    species = [[row[z] for z in s.atoms.numbers.tolist()] for s in structures]
    return np.array([change[h, rows].sum() for h, rows in zip(heads, species, strict=True)])


class Replayed(NamedTuple):
    """Structures to train on as well."""

    structures: list[Labelled]  # weighted
    messages: tuple[str, ...]  # what was read


def _replay(
    options: FinetuneOptions, start: ForceField, *, head: str | None, targets: Sequence[ase.Atoms], change: np.ndarray
) -> Replayed:
    """Replay structures with their own labels, or the starting model's after its E0s have moved by `change` [H, Z]."""
    teacher = start if head is None else start.with_head(head)
    chosen, by_model, told = [], [], []
    for paths, some in ((options.replay, chosen), (options.replay_self, by_model)):
        if not paths:
            continue
        files = _files(options, paths)
        told += [text for file in files for text in file.messages]
        known = [s for s in _structures(files) if set(s.atoms.numbers.tolist()) <= set(start.config.species)]
        number = min(options.replay_number, len(known))
        some += [known[i] for i in select.pick(known, number, how=options.replay_pick, seed=options.seed)]
    if number := options.replay_related:
        by_model += (drawn := prototypes.related(start.config.species, targets, number=number, seed=options.seed))
        told.append(prototypes.message(drawn))
    if by_model:
        found = replay.pseudo_label(teacher, by_model, tangents=options.tangents if options.replay_hessian else 0)
        moved = np.array([s.energy for s in found]) + _shift(teacher, found, change=change)
        chosen += [dataclasses.replace(s, energy=float(e)) for s, e in zip(found, moved, strict=True)]
    chosen = [dataclasses.replace(s, weight=options.replay_weight * s.weight) for s in chosen]
    return Replayed(chosen if head is None else [dataclasses.replace(s, head=head) for s in chosen], tuple(told))
