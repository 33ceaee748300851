"""How long do energy and forces take on the shape of MACE-MH-1, and how many times faster is that than mace-torch?

Real widths (512x0e+512x1o, convolutions of 128 channels, two non-linear interactions, six heads, 89 elements, 6 A),
random weights, the same in both: the torch model is made by `convert.to_torch` (extra `parity`).

    python bench/newer_shapes.py [--repeats 3] [--sides 2] [--skip-specialised]
"""

import os
from dataclasses import dataclass

import jax
import numpy as np
import tyro
from _common import crystal, print_table, timed, write
from energy_forces import compiled

from equijax import testing
from equijax.config import ModelConfig

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn 0.4.4 loads its constants with torch.load
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
HEADS = ("matpes_r2scan", "mp_pbe_refit_add", "spice_wB97M", "oc20_usemppbe", "omol", "omat_pbe")


@dataclass(frozen=True)
class Options:
    """Energy and forces on the MACE-MH-1 shape."""

    repeats: int = 3  # timed calls of each program
    sides: tuple[int, ...] = (2,)  # conventional silicon cells of 8 atoms per side
    dtype: str = "float32"
    skip_specialised: bool = False


def mh1_config() -> ModelConfig:
    """The shape of MACE-MH-1, with full couplings."""
    return testing.random_config(
        channels=512,
        r_max=6.0,
        species=tuple(range(1, 90)),
        num_radial=10,
        interaction_first=NONLINEAR,
        interaction=NONLINEAR,
        edge_channels=(128, 128),
        apply_cutoff=False,
        agnostic_product=True,
        heads=HEADS,
    )


def mace_torch(ff, atoms, dtype):
    """A call of mace-torch's energy and forces of the same model."""
    import torch
    from mace import data, tools
    from mace.tools import torch_geometric

    from convert.to_torch import build

    model = build(ff.config, jax.tree.map(lambda x: np.asarray(x, dtype), ff.variables))
    kind = getattr(torch, dtype)
    torch.set_default_dtype(kind)
    item = data.AtomicData.from_config(
        data.config_from_atoms(atoms), z_table=tools.AtomicNumberTable(list(ff.config.species)), cutoff=ff.config.r_max
    )
    loader = torch_geometric.dataloader.DataLoader(dataset=[item], batch_size=1, shuffle=False)
    batch = next(iter(loader)).to_dict()
    batch["head"] = torch.tensor([ff.head_index])
    model = model.to(kind)
    return lambda: model(batch, compute_stress=False)["forces"]


def main(options: Options) -> None:
    """Time each size, print the table, store it."""
    ff = testing.random_forcefield(mh1_config()).with_head("omat_pbe")
    rows = []
    for side in options.sides:
        atoms = crystal("Si", side)
        plain, batch, cold = compiled(ff, atoms, options.dtype)
        calls = {"mace-torch": mace_torch(ff, atoms, options.dtype), "plain": plain}
        if not options.skip_specialised:
            calls["specialised"] = compiled(ff.specialise({"Si"}), atoms, options.dtype)[0]
        found = timed(calls, options.repeats)
        times = {name: found[name]["median_ms"] for name in calls}
        row = {"atoms": len(atoms), "edges": int(np.asarray(batch.edges.mask).sum()), "compile_s": cold}
        row |= {f"{name}_ms": ms for name, ms in times.items()}
        row |= {f"{name}_times_faster": times["mace-torch"] / ms for name, ms in times.items() if name != "mace-torch"}
        rows.append(row | {"timings": found})
    print_table(rows)
    write("newer_shapes", rows, dtype=options.dtype)


if __name__ == "__main__":
    main(tyro.cli(Options))
