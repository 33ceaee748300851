"""Every option of a fine-tuning run in one frozen dataclass."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from equijax.data import Keys
from equijax.errors import InputError
from equijax.finetune.loss import LossConfig
from equijax.finetune.optimizer import TrainConfig

Strategy = Literal["zero-shot", "scratch", "naive", "freeze", "delta", "lora", "multihead"]


@dataclass(frozen=True)
class FinetuneConfig(Keys):
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

    loss: Literal["mse", "mae", "huber", "universal"] | None = None
    """Penalty on the differences."""
    energy_weight: float | None = None
    """Weight of energies per atom."""
    forces_weight: float | None = None
    """Weight of forces."""
    stress_weight: float | None = None
    """Weight of stresses."""
    hessian_weight: float = 0.0
    """Weight of force constants, from phonopy files in --train or by --replay-hessian."""
    hessian_cell: Literal["supercell", "primitive"] = "supercell"
    """Displace atoms of the supercell at random, or the primitive cell by random waves at commensurate q."""
    tangents: int = 4
    """Random displacement directions per structure, step and force-constant set."""
    huber_delta: float = 0.01
    """Where Huber turns linear."""

    optimizer: Literal["adamw", "amsgrad", "sgd", "schedule_free"] | None = None
    """Update rule."""
    lr: float | None = None
    """Learning rate."""
    weight_decay: float | None = None
    """Decoupled; of what is trained only."""
    schedule: Literal["constant", "cosine", "plateau"] | None = None
    """Learning rate after warm-up."""
    warmup: int = 10
    """Steps of warm-up."""
    clip: float | None = None
    """Global gradient norm."""
    ema: float | None = None
    """Decay of the averaged weights."""
    epochs: int | None = None
    """Passes over the training set."""
    batch_size: int = 1
    """Structures in a step and on a device."""
    patience: int = 50
    """Evaluations without improvement before the run stops."""
    evaluate_every: int = 1
    """Epochs."""
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


class Defaults(NamedTuple):
    """What a strategy trains best with: see bench/tuning.py."""

    lr: float
    ema: float = 0.99
    clip: float = 10.0
    weight_decay: float = 0.0
    optimizer: str = "amsgrad"
    schedule: str = "cosine"
    loss: str = "huber"
    energy_weight: float = 1.0
    forces_weight: float = 10.0
    stress_weight: float = 100.0
    epochs: int = 12


DEFAULTS = {
    "zero-shot": Defaults(lr=1.0),
    "scratch": Defaults(lr=1e-2, epochs=120),  # 12 teach it little, and it has nothing to forget
    "naive": Defaults(lr=1e-3, ema=0.999, clip=1.0),
    "freeze": Defaults(lr=1e-3, ema=0.999, clip=1.0),
    "delta": Defaults(lr=1e-3),
    "lora": Defaults(lr=2e-2),
    "multihead": Defaults(lr=3e-4, ema=0.999, loss="universal"),
}


def resolve(options: FinetuneConfig) -> FinetuneConfig:
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
    if options.replay_hessian and not (options.replay_self and options.hessian_weight > 0):
        raise InputError("replay_hessian needs --replay-self and a --hessian-weight")
    if options.batch_size < 1 or options.devices < 1:
        raise InputError(f"batch_size {options.batch_size} and devices {options.devices} must be at least 1")
    defaults = DEFAULTS[options.strategy]._asdict()
    filled = {k: v for k, v in defaults.items() if getattr(options, k) is None}
    if options.optimizer == "schedule_free" and options.schedule is None:
        filled["schedule"] = "constant"
    return dataclasses.replace(options, **filled)


def losses(options: FinetuneConfig) -> LossConfig:
    """The loss of resolved options."""
    return LossConfig(
        kind=options.loss,
        energy=options.energy_weight,
        forces=options.forces_weight,
        stress=options.stress_weight,
        hvp=options.hessian_weight,
        delta=options.huber_delta,
    )


def training(options: FinetuneConfig) -> TrainConfig:
    """The trainer's part of resolved options."""
    names = {f.name for f in dataclasses.fields(TrainConfig)} & {f.name for f in dataclasses.fields(FinetuneConfig)}
    return TrainConfig(**{name: getattr(options, name) for name in names})


def document(options: FinetuneConfig) -> dict:
    """JSON-serialisable options, as `--config` reads them."""
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))
