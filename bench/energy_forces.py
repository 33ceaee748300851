"""How long do energy and forces take on the MACE-MP-0b3 shape, and how many times faster is that than mace-torch?

Weights are inputs of the compiled program (the trainable form). On a CPU: Si64, Cu108, NaCl216, mace-torch timed in
the same run where it is installed, cold compile time, peak memory at 1,000 atoms. On a GPU or TPU: 64 to 30,000 atoms.

    python bench/energy_forces.py [--repeats 15] [--dtype float32] [--largest 30000]
"""

import subprocess
import sys
import time
from dataclasses import dataclass

import jax
import numpy as np
import tyro
from _common import crystal, peak_memory_gb, print_table, published_config, timed, write

from equijax import graph, predict, testing

CPU_CASES = (("Si", 2), ("Cu", 3), ("NaCl", 3))  # 64, 108 and 216 atoms
MEMORY_CASE = ("Si", 5)  # 1,000 atoms
ACCELERATOR_REPEATS = (2, 3, 4, 5, 7, 10, 12, 15)  # conventional Si cells of 8 atoms per side


@dataclass(frozen=True)
class Options:
    """Energy and forces on the MACE-MP-0b3 shape."""

    repeats: int = 15  # timed calls of each program
    dtype: str = "float32"
    largest: int = 30000  # atoms, on an accelerator
    memory_only: bool = False  # measure peak memory at 1,000 atoms and print it (used by the script itself)


def compiled(ff, atoms, dtype):
    """A call that evaluates energy, forces and stress of `atoms` on the device, its graph, and the cold start in s."""
    batch = graph.build([(atoms, graph.neighbour_list(atoms, ff.config.r_max))], ff.config)
    variables = ff.device_variables(dtype)
    with jax.enable_x64(dtype == "float64"):
        batch = jax.device_put(predict.cast(batch, dtype))
        step = jax.jit(lambda v, g: predict.energy_forces_stress(ff.config, v, g))
        start = time.perf_counter()
        program = step.lower(variables, batch).compile()
        cold = time.perf_counter() - start
    return (lambda: jax.block_until_ready(program(variables, batch))), batch, cold


def torch_call(config, atoms):
    """mace-torch's own model of the same shape with random weights, energy and forces; None where not installed."""
    try:
        import torch
        from e3nn import o3
        from mace import data, modules, tools
        from mace.tools import torch_geometric
    except ImportError as error:
        print(f"mace-torch is not timed: {error}")
        return None
    torch.set_default_dtype(torch.float32)
    model = modules.ScaleShiftMACE(
        r_max=config.r_max, num_bessel=config.num_radial, num_polynomial_cutoff=config.cutoff_power,
        max_ell=config.max_ell, interaction_cls=modules.interaction_classes[config.interaction],
        interaction_cls_first=modules.interaction_classes[config.interaction_first], num_interactions=2,
        num_elements=len(config.species), hidden_irreps=o3.Irreps(config.hidden_irreps),
        MLP_irreps=o3.Irreps(f"{config.readout_mlp}x0e"), atomic_energies=np.zeros(len(config.species)),
        avg_num_neighbors=config.avg_num_neighbors, atomic_numbers=list(config.species), correlation=3,
        gate=torch.nn.functional.silu, pair_repulsion=True, distance_transform="Agnesi", use_reduced_cg=False,
        atomic_inter_scale=1.0, atomic_inter_shift=0.0)  # fmt: skip
    item = data.AtomicData.from_config(
        data.config_from_atoms(atoms), z_table=tools.AtomicNumberTable(list(config.species)), cutoff=config.r_max
    )
    loader = torch_geometric.dataloader.DataLoader(dataset=[item], batch_size=1, shuffle=False)
    batch = next(iter(loader)).to_dict()
    return lambda: model(batch, compute_stress=False)


def cpu_rows(ff, options):
    rows = []
    for name, repeat in CPU_CASES:
        atoms = crystal(name, repeat)
        ours, batch, cold = compiled(ff, atoms, options.dtype)
        calls = {"equijax": ours}
        if theirs := torch_call(ff.config, atoms):
            calls["mace-torch"] = theirs
        times = timed(calls, options.repeats)
        row = {"case": f"{name}{len(atoms)}", "atoms": len(atoms), "edges": int(batch.edges["mask"].sum()),
               "compile_s": cold, "equijax_ms": times["equijax"]["median_ms"]}  # fmt: skip
        if "mace-torch" in times:
            row["mace_torch_ms"] = times["mace-torch"]["median_ms"]
            row["ratio"] = row["mace_torch_ms"] / row["equijax_ms"]
        rows.append(row | {"times": times})
        print_table(rows[-1:])
    return rows


def accelerator_rows(ff, options):
    rows = []
    for repeat in ACCELERATOR_REPEATS:
        if 8 * repeat**3 > options.largest:
            break
        atoms = crystal("Si", repeat)
        call, batch, cold = compiled(ff, atoms, options.dtype)
        times = timed({"equijax": call}, options.repeats)
        median = times["equijax"]["median_ms"]
        rows.append({"case": f"Si{len(atoms)}", "atoms": len(atoms), "edges": int(batch.edges["mask"].sum()),
                     "compile_s": cold, "equijax_ms": median, "us_per_atom": 1e3 * median / len(atoms),
                     "times": times})  # fmt: skip
        print_table(rows[-1:])
    return rows


def main():
    options = tyro.cli(Options)
    ff = testing.random_forcefield(published_config())
    if options.memory_only:
        call, _, _ = compiled(ff, crystal(*MEMORY_CASE), options.dtype)
        call()
        print(peak_memory_gb())
        return
    if jax.default_backend() != "cpu":
        write("energy_forces", accelerator_rows(ff, options), dtype=options.dtype)
        return
    rows = cpu_rows(ff, options)
    command = [sys.executable, __file__, "--memory-only", "--dtype", options.dtype]
    memory = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    print_table(rows)
    ratios = [r["ratio"] for r in rows if "ratio" in r]
    geometric = float(np.exp(np.mean(np.log(ratios)))) if ratios else None
    print(f"geometric mean of the ratios: {geometric}; peak memory at 1,000 atoms: {memory:.2f} GB")
    write("energy_forces", rows, dtype=options.dtype, peak_memory_gb_1000_atoms=memory, geometric_mean_ratio=geometric)


if __name__ == "__main__":
    main()
