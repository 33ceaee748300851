"""Options of fine-tuning and of evaluation: frozen dataclasses, some made of others, whose flags all stay flat."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from equijax.data.options import Keys
from equijax.errors import InputError

Penalty = Literal["mse", "mae", "huber", "universal"]
Strategy = Literal["zero-shot", "scratch", "naive", "freeze", "delta", "lora", "multihead"]
WEIGHTS = {"energy": "energy_weight", "forces": "forces_weight", "stress": "stress_weight", "hvp": "hessian_weight"}
UNRESOLVED = "an option is None: `equijax.finetune.defaults.resolve` fills it in with the default of the strategy"


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms and the penalty rho on every difference.

    What is None takes the strategy's default, see `equijax.finetune.defaults`.
    """

    loss: Penalty | None = None
    """Penalty on the differences."""
    energy_weight: float | None = None
    """Weight of energies per atom."""
    forces_weight: float | None = None
    """Weight of forces."""
    stress_weight: float | None = None
    """Weight of stresses."""
    hessian_weight: float = 0.0
    """Weight of force constants, from phonopy files in --train or by --replay-hessian."""
    huber_delta: float = 0.01
    """Where Huber turns linear, in the unit of each term."""

    def __post_init__(self) -> None:
        if self.loss is not None and self.loss not in get_args(Penalty):
            raise InputError(f"loss {self.loss!r}: expected one of {', '.join(get_args(Penalty))}")
        for name in (*WEIGHTS.values(), "huber_delta"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise InputError(f"{name} = {value} must not be negative")

    def weight(self, term: str) -> float:
        """Weight of one of `WEIGHTS`: on rho of eV/atom, eV/A, eV/A^3 and, for tangents in A, eV/A."""
        return getattr(self, WEIGHTS[term])


@dataclass(frozen=True)
class TrainConfig:
    """How to optimise; the learning rate is warmed up, scheduled and lowered inside the state, never at trace time.

    What is None takes the strategy's default, see `equijax.finetune.defaults`.
    """

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
    """Decay of the averaged weights; 0 evaluates the last ones."""
    epochs: int | None = None
    """Passes over the training set."""
    patience: int = 50
    """Evaluations without improvement before the run stops."""
    plateau_factor: float = 0.5
    """What the plateau schedule multiplies the learning rate by,"""
    plateau_patience: int = 10
    """after so many evaluations without improvement."""
    evaluate_every: int = 1
    """Epochs."""

    def __post_init__(self) -> None:
        for name in ("lr", "clip"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"{name} = {value} must be positive")
        for name in ("epochs", "patience", "evaluate_every", "plateau_patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} = {value} must be at least 1")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"ema = {self.ema} must be in [0, 1)")
        if self.optimizer == "schedule_free" and self.schedule not in (None, "constant"):
            raise InputError(
                f"schedule_free needs schedule='constant', not {self.schedule!r}: it replaces the schedule"
            )


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
    """Other structures: errors on them before and after measure damage, apart for compounds that share an element with
    --train (related) and for those that share none (unrelated); those of the same compounds count for neither."""
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
    replay_related: int = 0
    """Self-replay without data: so many rattled prototype crystals that share an element with --train, labelled by the
    starting model, to train on as well; they keep other compounds of the elements that lora adapts."""
    replay_hessian: bool = False
    """Label structures of self-replay with Hessian-vector products too; they count with --hessian-weight."""
    replay_number: int = 256
    """Structures of --replay and of --replay-self to use, picked by --replay-pick."""
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
    committee: int = 0
    """Also train so many adapters of other seeds and bootstraps of the training set in one program, for OUT/committee:
    how far they disagree says how sure their mean is (lora and delta)."""
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


PARTS = {"keys": Keys, "loss": LossConfig, "training": TrainConfig}  # of FinetuneOptions: dataclasses of their own


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


@dataclass(frozen=True)
class SelectConfig:
    """Choose the structures that are most worth a DFT calculation, to fine-tune on, among many candidates."""

    candidates: tuple[Path, ...]
    """Structures without labels, rattled or from dynamics: any files that ASE reads, all frames."""
    model: Path
    """Model that will be fine-tuned, or for --by uncertainty a committee."""
    out: Path = Path("chosen")
    """Folder for structures.extxyz, in the order of choice, poscars/POSCAR-001 ... and report.json."""
    count: int = 10
    """Structures to choose."""
    by: Literal["gradients", "farthest", "uncertainty", "random"] = "gradients"
    """gradients: those that tell most about an adapter's numbers (D-optimal); farthest: those that differ most in node
    features; uncertainty: those whose forces a committee disagrees on most; random."""
    labelled: tuple[Path, ...] = ()
    """Structures that have labels already: farthest and gradients choose what adds to them."""
    head: str | None = None
    """Head of a model that has several."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the model."""
    seed: int = 0
    """Of random choices and directions."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare a model with labelled structures: table, parity plot, one CSV row per structure."""

    model: Path
    """Checkpoint directory."""
    data: tuple[Path, ...]
    """Labelled files: extxyz, any ASE trajectory, phonopy files."""
    keys: Keys = Keys()
    out: Path = Path("evaluation")
    """Folder for structures.csv, parity.png and report.json."""
    adapter: Path | None = None
    """Fine-tuning adapter of this model to evaluate it with."""
    head: str | None = None
    """Head of a model that has several, for structures that name none."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the model."""
