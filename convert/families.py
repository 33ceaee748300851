"""Files that are no plain MACE model but well known: one table of what they are and which file to convert instead."""

from collections.abc import Sequence

OTHER = "convert a MACE or ScaleShiftMACE .model file instead, such as those of --list"
SOURCE = "convert the .model file that it was made from"
WHOLE = "convert the .model file of the whole model"

_MODELS = "mace.modules.models"

# (what the file is, what to do, the classes, modules or packages that it names). The first row that fits counts.
# A name with a space is not Python's: it stands for a file without such a name, recognised by its form.
FAMILIES = (
    (
        "a MACE-LES model: it needs learnt charges and their Ewald sum, which equijax does not have",
        OTHER,
        "mace.modules.extensions.MACELES",
        "les",
    ),
    (
        "a MACE-POLAR model: it needs self-consistent charge densities and their long-range electrostatics, which "
        "equijax does not have",
        OTHER,
        "mace.modules.extensions.PolarMACE",
        "mace.modules.field_blocks",
        "graph_longrange",
    ),
    (
        "a dipole model of MACE, which has no energy: it needs readouts of vectors, which equijax does not have",
        OTHER,
        f"{_MODELS}.AtomicDipolesMACE",
    ),
    (
        "a dipole and polarisability model of MACE, which has no energy: it needs readouts of vectors and tensors, "
        "which equijax does not have",
        OTHER,
        f"{_MODELS}.AtomicDielectricMACE",
    ),
    (
        "a MACE model of energies and dipoles in one: it needs readouts of vectors, which equijax does not have",
        OTHER,
        f"{_MODELS}.EnergyDipolesMACE",
    ),
    ("a BOTNet model, the predecessor of MACE", OTHER, f"{_MODELS}.BOTNet", f"{_MODELS}.ScaleShiftBOTNet"),
    ("a MACE model made for LAMMPS ML-IAP (*-mliap_lammps.pt)", SOURCE, "mace.calculators.lammps_mliap_mace"),
    ("a MACE model made for LAMMPS (*-lammps.pt)", SOURCE, "mace.calculators.lammps_mace", "lammps script"),
    (
        "a pickled calculator",
        "write its model with torch.save(calculator.models[0], FILE) and convert that",
        "mace.calculators",
    ),
    (
        "a MACE model in the layout of cuEquivariance",
        "turn it back with mace_cueq_to_e3nn and convert that",
        "cuequivariance",
        "cuequivariance_torch",
    ),
    (
        "a MACE model in the layout of OpenEquivariance",
        "turn it back with python -m mace.cli.convert_oeq_e3nn and convert that",
        "openequivariance",
    ),
    (
        "a model or the weights of a model with equitrain's adapters",
        "equitrain-export folds them in and writes the .model file to convert",
        "equitrain",
    ),
    (
        "a model inside a wrapper of torch's parallel training",
        "write the model in it with torch.save(model.module, FILE) and convert that",
        "torch.nn.parallel",
    ),
    (
        "a model wrapped by torch.compile",
        "write the model in it with torch.save(model._orig_mod, FILE) and convert that",
        "torch._dynamo",
    ),
    (
        "a TorchScript archive (*_compiled.model), compiled code without its hyper-parameters",
        "convert the .model file that mace-torch wrote beside it",
        "compiled script",
    ),
    ("a TorchScript archive of another program, not of MACE", OTHER, "foreign script"),
    ("a program exported by torch.export or AOTInductor, compiled code only", SOURCE, "exported program"),
    (
        "a training checkpoint, which does not say which model it is",
        "convert the .model file that the training writes at its end (mace_run_train --restart_latest completes one)",
        "training checkpoint",
    ),
    ("a Lightning checkpoint, which does not say which model it is", WHOLE, "pytorch_lightning", "lightning"),
    ("a state_dict: tensors that do not say which model they are of", WHOLE, "state dict"),
    ("a safetensors file: tensors that do not say which model they are of", WHOLE, "safetensors file"),
    (
        "several models in one file",
        "write each with torch.save(model, FILE) and convert that",
        "several models",
        "torch.nn.modules.container",
    ),
    ("a NequIP or Allegro model, not MACE", OTHER, "nequip", "allegro"),
    ("a SevenNet model, not MACE", OTHER, "sevenn"),
    ("an Orb model, not MACE", OTHER, "orb_models"),
    ("a MatGL model (M3GNet, CHGNet, TensorNet), not MACE", OTHER, "matgl"),
    ("a CHGNet model, not MACE", OTHER, "chgnet"),
    ("a MatterSim model, not MACE", OTHER, "mattersim"),
    ("a FAIR-Chem model, not MACE", OTHER, "fairchem", "ocpmodels"),
    ("a SchNetPack model, not MACE", OTHER, "schnetpack"),
    ("a TorchANI model, not MACE", OTHER, "torchani"),
    ("a DeePMD-kit model, not MACE", OTHER, "deepmd"),
    ("a metatomic or metatensor model, not the MACE model in it", SOURCE, "metatomic", "metatensor"),
)


def of_mace() -> list[str]:
    """What models of mace-torch are not converted, and what they need."""
    return [what for what, _, *names in FAMILIES if names[0].startswith("mace.modules.")]


def family(name: str) -> str | None:
    """What a file is and what to convert instead, by a dotted name in it or a form of `FAMILIES`; None if unknown."""
    for what, advice, *names in FAMILIES:
        if any(name == known or name.startswith(f"{known}.") for known in names):
            return f"{what}; {advice}"
    return None


def form_of_dict(keys: Sequence[str], *, tensors: bool) -> str | None:
    """The form, for `family`, of a file that holds a dict with these keys, whose values are `tensors` or not."""
    if any("_lora_a_params." in key or "_delta_params." in key for key in keys):
        return "equitrain"
    if any("lightning" in key for key in keys):
        return "lightning"
    if {"model", "optimizer", "state_dict", "model_state_dict"} & set(keys):
        return "training checkpoint"
    return "state dict" if tensors else None
