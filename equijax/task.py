"""What a fine-tuning run starts from: model, labelled sets, isolated-atom energies, batches; made from the options."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np

from equijax import checkpoint, data, feed, parallel, recipe, replay
from equijax.config import ModelConfig
from equijax.data import Labelled
from equijax.data.phonopy_files import YAML_NAMES, is_phonopy
from equijax.forcefield import ForceField
from equijax.recipe import FinetuneConfig

SETS = ("train", "valid", "test", "retain")
FILES = ("train", "valid", "test", "retain", "replay", "replay_self", "phonons")  # options that name files
PHONOPY_NAMES = (*YAML_NAMES, "FORCE_SETS", "FORCE_CONSTANTS", "force_constants.hdf5")
NEW_HEAD = "finetuned"


@dataclass(frozen=True)
class Task:
    """A run ready to train."""

    options: FinetuneConfig  # resolved
    config: ModelConfig
    variables: dict  # of the starting model, with its new head for multihead
    metadata: dict
    energies: np.ndarray  # [H, Z] eV, isolated atoms of the result
    messages: tuple[str, ...]
    items: dict[str, list[data.Item]]  # by set
    graphs: dict[str, list]  # labelled evaluation batches, by set
    feed: feed.Feed
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
        for path in (p for given in getattr(options, name) for p in _read_together(Path(given))):
            with open(path, "rb") as file:
                found[f"--{name.replace('_', '-')} {path}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _read_together(path: Path) -> list[Path]:
    """A file, and those beside it that phonopy keeps the rest in."""
    beside = PHONOPY_NAMES if is_phonopy(path) else ()
    return [path, *(p for name in beside if (p := path.with_name(name)).is_file() and p != path)]


def prepare(options: FinetuneConfig) -> Task:
    """Load the model and the data, settle E0s and validation set, list neighbours, build the evaluation batches.

    Raises:
      FileNotFoundError, ValueError: see `equijax.data`, `equijax.replay` and `ForceField.head_index`.
    """
    start = ForceField(*checkpoint.load(options.model))
    ff, head, old_head = _heads(options, start)
    sets, split = _sets(options, old_head)
    constants = _constants(options)
    found = ff.evaluate([s.atoms for s in sets["train"]], head=ff.config.heads[head])
    data.check_stress(sets["train"], [f["stress"] for f in found])
    energies, messages = _energies(options, ff, sets["train"], found, head)
    items = {name: data.prepare(structures, ff.config) for name, structures in sets.items()}
    again = _replay(options, start, old_head)
    numbers = sorted({*data.elements(sets["train"]), *(int(z) for c in constants for z in c.atoms.numbers)})
    eats = feed.Feed(
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
    feed.settle(eats, options.epochs)
    # structures like those of training go in batches of one size: the same compiled program
    graphs = {
        name: feed.evaluation_graphs(eats, chosen, None if name == "retain" else options.batch_size)
        for name, chosen in items.items()
    }
    return Task(
        options, ff.config, ff.variables, start.metadata, energies, messages, items, graphs, eats, tuple(numbers), split
    )


def _heads(options, start: ForceField) -> tuple[ForceField, int, str | None]:
    """The model to train, the head to train, and the head that replayed and retained structures belong to."""
    if options.strategy != "multihead":
        return start, start.head_index(options.head), None
    old = start.config.heads[0] if len(start.config.heads) == 1 else options.replay_head
    config, variables = replay.add_head(start.config, start.variables, options.head or NEW_HEAD, old)
    return ForceField(config, variables, start.metadata), len(config.heads) - 1, old


def _sets(options, old_head) -> tuple[dict[str, list[Labelled]], dict | None]:
    """Structures by set; the validation set is drawn from the training set where none is given."""
    sets = {name: _read(options, getattr(options, name)) for name in SETS}
    if old_head is not None:
        sets["retain"] = [dataclasses.replace(s, head=old_head) for s in sets["retain"]]
    if sets["valid"] or not sets["train"]:
        return sets, None
    chosen = data.split(len(sets["train"]), options.valid_fraction, options.seed)
    split = {**chosen._asdict(), "sources": [sets["train"][i].source for i in chosen.valid]}
    sets["valid"] = [sets["train"][i] for i in chosen.valid]
    sets["train"] = [sets["train"][i] for i in chosen.train]
    return sets, split


def _read(options, paths) -> list[Labelled]:
    """Structures of some files; force constants are not among them, they get fresh tangents every epoch."""
    keys = data.Keys(energy=options.energy_key, forces=options.forces_key, stress=options.stress_key)
    found = [s for path in paths for s in data.load(path, keys, tangents=int(_is_reference(options, path)))]
    return [s for s in found if s.hvp is None]


def _is_reference(options, path: Path) -> bool:
    return options.hessian_weight > 0 and is_phonopy(Path(path))


def _constants(options) -> list[data.ForceConstants]:
    """Reference force constants among the training files.

    Raises:
      ValueError: a weight for force constants and none there.
    """
    constants = [data.force_constants(path) for path in options.train if _is_reference(options, path)]
    if options.hessian_weight > 0 and not constants and not options.replay_hessian:
        raise ValueError(
            f"hessian_weight = {options.hessian_weight} needs a phonopy file in --train, or --replay-hessian"
        )
    return constants


def _energies(options, ff, structures, found, head) -> tuple[np.ndarray, tuple[str, ...]]:
    """Isolated-atom energies of the result [H, Z], and what to tell about them."""
    if options.e0 == "given":
        pairs = [text.split("=") for text in options.e0_values]
        if not pairs or any(len(p) != 2 for p in pairs):
            raise ValueError(f"e0_values {options.e0_values}: expected symbols and eV, like Si=-0.82 O=-1.5")
        given = data.given(ff.config, ff.variables, {symbol: float(value) for symbol, value in pairs}, head)
        return given.values, (given.message,)
    if options.e0 == "refit":
        refit = data.refit(ff.config, ff.variables, structures, [f["energy"] for f in found], head)
        return refit.values, (refit.message,)
    return np.asarray(ff.variables["constants"]["atomic_energies"], np.float64), ()


def _replay(options, start: ForceField, old_head) -> list[Labelled]:
    """The chosen replay structures, weighted, with their own labels or the starting model's."""
    chosen = []
    for paths, by_model in ((options.replay, False), (options.replay_self, True)):
        if not paths:
            continue
        found = _read(options, paths)
        known = [s for s in found if _known(s.atoms, start.config)]
        picked = replay.pick(known, min(options.replay_number, len(known)), options.replay_pick, options.seed)
        some = [dataclasses.replace(known[i], weight=options.replay_weight * known[i].weight) for i in picked]
        tangents = options.tangents if options.replay_hessian else 0
        chosen += replay.pseudo_label(start, some, head=old_head, tangents=tangents) if by_model else some
    return chosen if old_head is None else [dataclasses.replace(s, head=old_head) for s in chosen]


def _known(atoms: ase.Atoms, config: ModelConfig) -> bool:
    return set(atoms.numbers.tolist()) <= set(config.species)


def provenance(task: Task, best_epoch: int) -> dict:
    """Metadata of the resulting checkpoint."""
    return {"base": task.metadata, "finetune": recipe.document(task.options), "best_epoch": best_epoch,
            "dataset_sha256": task.dataset_sha256}  # fmt: skip
