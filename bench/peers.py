"""Peers on the same model shape: each maps a ModelConfig to a function of a structure that returns a call to time.

A peer that is not installed says so once and is left out. All of them get random weights of the published shape and
compute energy and forces in float32; none has to search neighbours in the timed call.

    pip install -c constraints.txt ".[parity]"     # mace-torch
    pip install --no-deps symmetrix-xl==0.1.1      # Symmetrix-XL; its kernels are compiled on first use, for minutes
"""

import copy
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from ase import Atoms

from equijax.config import ModelConfig

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn 0.4.4 loads its constants with torch.load
SKIN_A = 0.01  # of Symmetrix's neighbour list: next to no pairs beyond the cutoff, yet the list is kept


@cache
def torch_model(config: ModelConfig):
    """mace-torch's own float32 model of this shape with random weights."""
    import torch
    from e3nn import o3
    from mace import modules

    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    return modules.ScaleShiftMACE(
        r_max=config.r_max,
        num_bessel=config.num_radial,
        num_polynomial_cutoff=config.cutoff_power,
        max_ell=config.max_ell,
        interaction_cls=modules.interaction_classes[config.interaction],
        interaction_cls_first=modules.interaction_classes[config.interaction_first],
        num_interactions=2,
        num_elements=len(config.species),
        hidden_irreps=o3.Irreps(config.hidden_irreps),
        MLP_irreps=o3.Irreps(f"{config.readout_mlp}x0e"),
        atomic_energies=np.zeros(len(config.species)),
        avg_num_neighbors=config.avg_num_neighbors,
        atomic_numbers=list(config.species),
        correlation=3,
        gate=torch.nn.functional.silu,
        pair_repulsion=True,
        distance_transform="Agnesi",
        use_reduced_cg=False,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def mace_torch(config: ModelConfig, atoms: Atoms, dtype: str = "float32", hessian_rows: int = 0) -> Callable:
    """Energy and forces by mace-torch, eager e3nn; then rows of its Hessian, one backward pass each as it does it."""
    import torch
    from mace import data, tools
    from mace.tools import torch_geometric

    torch.set_default_dtype(getattr(torch, dtype))
    model = copy.deepcopy(torch_model(config)).to(getattr(torch, dtype))
    torch.set_default_dtype(getattr(torch, dtype))  # `torch_model` sets its own
    item = data.AtomicData.from_config(
        data.config_from_atoms(atoms), z_table=tools.AtomicNumberTable(list(config.species)), cutoff=config.r_max
    )
    loader = torch_geometric.dataloader.DataLoader(dataset=[item], batch_size=1, shuffle=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, model = next(iter(loader)).to(device).to_dict(), model.to(device)

    def call():
        torch.set_default_dtype(getattr(torch, dtype))
        forces = model(batch, compute_stress=False, training=hessian_rows > 0)["forces"]
        for force in forces.view(-1)[:hessian_rows]:
            torch.autograd.grad(-force, batch["positions"], retain_graph=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


@cache
def symmetrix_file(config: ModelConfig) -> Path:
    """The same random model exported to Symmetrix-XL's JSON."""
    import torch
    from symmetrix.cli.extract_mace import main as extract

    folder = Path(tempfile.mkdtemp())
    torch.save(torch_model(config), folder / "random.model")
    extract(["--model", str(folder / "random.model"), "--output", str(folder / "random.json")])
    return folder / "random.json"


def symmetrix_xl(config: ModelConfig, atoms: Atoms) -> Callable[[], object]:
    """Energy and forces by Symmetrix-XL's ASE calculator with its compiled, edge-streaming kernels."""
    from symmetrix import Symmetrix

    calculator = Symmetrix(
        str(symmetrix_file(config)),
        dtype="float32",
        streamed_edges="direct",
        execution_profile="speed",
        neighbor_skin=SKIN_A,
    )
    atoms = atoms.copy()
    return lambda: calculator.calculate(atoms, ["energy", "forces"])


PEERS: dict[str, Callable[[ModelConfig, Atoms], Callable[[], object]]] = {
    "mace-torch": mace_torch,
    "symmetrix-xl": symmetrix_xl,
}


def calls(config: ModelConfig, atoms: Atoms, names=tuple(PEERS)) -> dict[str, Callable[[], object]]:
    """Calls of the peers that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = PEERS[name](config, atoms)
        except ImportError as error:
            print(f"{name} is not timed: {error}")
    return found
