"""Every option of a fine-tuning run: one frozen dataclass of its own and of those that a module defines for itself."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from equijax.data import Keys
from equijax.errors import InputError
from equijax.finetune.loss import LossConfig
from equijax.finetune.optimizer import TrainConfig

Strategy = Literal["zero-shot", "scratch", "naive", "freeze", "delta", "lora", "multihead"]


@dataclass(frozen=True)
class FinetuneOptions:
    """Fine-tune a MACE model on a few labelled structures; options left out take the strategy's tuned defaults."""

    model: Path
    """Directory of the starting model, made by `python -m convert`."""
    train: tuple[Path, ...]
    """Labelled structures: extxyz, any ASE trajectory, phonopy files."""
    out: Path
    """Folder for everything the run makes."""
    config: Path | None = None
    """JSON or YAML file with options of the same names; flags win."""
    strategy: Strategy = "lora"
    """zero-shot, scratch, naive, freeze, delta, lora or multihead."""
    keys: Keys = Keys()
    valid: tuple[Path, ...] = ()
    """Validation structures; a seeded part of --train where none are given."""
    valid_fraction: float = 0.2
    """Part of --train to validate on."""
    test: tuple[Path, ...] = ()
    """Structures for the final numbers only."""
    retain: tuple[Path, ...] = ()
    """What the starting model knew: errors on it before and after measure forgetting."""
    phonons: tuple[Path, ...] = ()
    """Reference phonons (phonopy files), compared before and after."""
    watch: tuple[Literal["train", "test", "retain", "phonons"], ...] = ()
    """Also measure these at each evaluation; --valid alone decides."""
    head: str | None = None
    """Head to train, of a model with several; for multihead, the name of the new one."""
    e0: Literal["auto", "model", "refit", "given"] = "auto"
    """Isolated-atom energies E0. auto: of frames marked config_type=IsolatedAtom in --train, of other elements the
    model's; given: --e0-values, then like auto; model: the model's; refit: the model's, shifted by a robust fit to its
    residual over the training set."""
    e0_values: tuple[str, ...] = ()
    """Isolated-atom energies by hand in eV, like Si=-0.82 O=-1.5; other elements keep the model's."""

    rank: float = 8
    """LoRA rank, or a fraction of each matrix's smaller side."""
    alpha: float | None = None
    """LoRA scale is alpha / rank; the rank by default."""
    targets: tuple[str, ...] | None = None
    """Patterns of the parameters that lora and delta adapt; all layers: '.*'. By default lora adapts the weights that
    belong to the elements in the training data, so that compounds without them stay as they are to the last bit."""
    all_species: bool = False
    """Adapt per-species weights of all elements, not only of those in the training data."""
    freeze: tuple[str, ...] = ("node_embedding", "interactions_0", "products_0", "readouts_0")
    """Patterns of the parameters that freeze keeps."""
    l2sp: float = 1e-3
    """Pull of delta towards the starting weights."""

    replay: tuple[Path, ...] = ()
    """Structures with their own labels to train on as well, against forgetting."""
    replay_self: tuple[Path, ...] = ()
    """Structures to train on as well, labelled by the starting model."""
    replay_hessian: bool = False
    """Label --replay-self structures with Hessian-vector products too; they count with --hessian-weight."""
    replay_number: int = 256
    """Replay structures to use, picked by --replay-pick."""
    replay_pick: Literal["farthest", "random"] = "random"
    """How to pick them."""
    replay_ratio: float = 4.0
    """Replay structures beside each training structure."""
    replay_head: str | None = None
    """Head that multihead copies and replays, of a model with several."""
    replay_weight: float = 1.0
    """Weight of a replay structure; a training structure has 1."""

    loss: LossConfig = LossConfig()
    hessian_cell: Literal["supercell", "primitive"] = "supercell"
    """Displace atoms of the supercell at random, or the primitive cell by random waves at commensurate q."""
    tangents: int = 4
    """Random displacement directions per structure, step and force-constant set."""
    training: TrainConfig = TrainConfig()
    batch_size: int = 1
    """Structures in a step and on a device."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of training and of the metrics; phonons are float64 always."""
    seed: int = 0
    """Of adapters, split, data order and tangents."""
    devices: int = 1
    """Devices to spread each step over; with --distributed, all devices of all processes."""
    distributed: bool = False
    """Be one of several processes, all started with these options; the environment (SLURM, Open MPI, Kubernetes, TPU
    pods) or the next three options say which."""
    coordinator: str | None = None
    """HOST:PORT of process 0; JAX_COORDINATOR_ADDRESS by default."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which of them this is, from 0."""
    resume: bool = False
    """Continue the run in --out, bit for bit."""


# Weights that belong to one element: changing only these leaves compounds of other elements exactly as they were, which
# gives up some accuracy on the target and keeps nearly all of the rest (bench/strategies.py).
LORA_TARGETS = ("node_embedding", r"interactions_\d+/skip_tp", r"products_\d+/contraction_l\d+")


PARTS = {"keys": Keys, "loss": LossConfig, "training": TrainConfig}  # of FinetuneOptions: dataclasses of their own
Part = TypeVar("Part", TrainConfig, LossConfig)
# What a strategy trains best with: see bench/tuning.py.
TRAINING = TrainConfig(
    optimizer="amsgrad", lr=1e-3, weight_decay=0.0, schedule="cosine", clip=10.0, ema=0.99, epochs=12
)
LOSS = LossConfig(loss="huber", energy_weight=1.0, forces_weight=10.0, stress_weight=100.0)
GENTLE = dataclasses.replace(TRAINING, ema=0.999, clip=1.0)
DEFAULTS: dict[Strategy, tuple[TrainConfig, LossConfig]] = {
    "zero-shot": (TRAINING, LOSS),
    # 12 passes teach it little, and it has nothing to forget
    "scratch": (dataclasses.replace(TRAINING, lr=1e-2, epochs=120), LOSS),
    "naive": (GENTLE, LOSS),
    "freeze": (GENTLE, LOSS),
    "delta": (TRAINING, LOSS),
    "lora": (dataclasses.replace(TRAINING, lr=2e-2), LOSS),
    "multihead": (
        dataclasses.replace(TRAINING, lr=3e-4, ema=0.999),
        dataclasses.replace(LOSS, loss="universal"),
    ),
}


def resolve(options: FinetuneOptions) -> FinetuneOptions:
    """Fill what was left out with the strategy's defaults, and refuse what cannot work.

    Raises:
      InputError: options that contradict each other.
    """
    if not options.train and options.strategy != "zero-shot":
        raise InputError("--train names no files")
    if not 0 < options.valid_fraction < 1:
        raise InputError(f"valid_fraction = {options.valid_fraction} must be between 0 and 1")
    if options.strategy == "multihead" and not (options.replay or options.replay_self):
        raise InputError("multihead keeps the old head by replay: give --replay or --replay-self")
    if options.replay_hessian and not (options.replay_self and options.loss.hessian_weight > 0):
        raise InputError("replay_hessian needs --replay-self and a --hessian-weight")
    if options.batch_size < 1 or options.devices < 1:
        raise InputError(f"batch_size {options.batch_size} and devices {options.devices} must be at least 1")
    training, loss = DEFAULTS[options.strategy]
    if options.training.optimizer == "schedule_free":
        training = dataclasses.replace(training, schedule="constant")
    return dataclasses.replace(options, training=_filled(options.training, training), loss=_filled(options.loss, loss))


def _filled(given: Part, defaults: Part) -> Part:
    """What is None in `given`, taken from `defaults`."""
    missing = [f.name for f in dataclasses.fields(given) if getattr(given, f.name) is None]
    return dataclasses.replace(given, **{name: getattr(defaults, name) for name in missing})


def flat(options: FinetuneOptions) -> dict[str, object]:
    """Every option by its own name, that of its flag: parts are spread out."""
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    parts = [dataclasses.asdict(values.pop(name)) for name in PARTS]
    return {**values, **{name: value for part in parts for name, value in part.items()}}


def option_names() -> set[str]:
    """The names in `flat`."""
    own = {f.name for f in dataclasses.fields(FinetuneOptions)} - set(PARTS)
    return own | {f.name for part in PARTS.values() for f in dataclasses.fields(part)}


def nested(values: Mapping[str, Any]) -> FinetuneOptions:
    """Options from names and values as `flat` gives them; what is left out keeps its default.

    Raises:
      TypeError: an unknown name, or one of the options that must be given is missing.
    """
    rest = dict(values)
    parts = {}
    for name, part in PARTS.items():
        names = [f.name for f in dataclasses.fields(part) if f.name in rest]
        parts[name] = part(**{n: rest.pop(n) for n in names})
    return FinetuneOptions(**rest, **parts)


def document(options: FinetuneOptions) -> dict:
    """JSON-serialisable options, as `--config` reads them."""
    return json.loads(json.dumps(flat(options), default=str))
