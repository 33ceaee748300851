"""How long does a training step take? The published model shape, a batch of ten 64-atom cells; mace-torch beside it.

    python bench/training.py [--structures 10] [--repeats 3] [--no-torch]

Compilation of the step, then the median step with energies, forces and stresses in the loss (gradients of forces with
respect to what is trained), for LoRA and for all parameters, and a step on force constants; the steps alternate with
mace-torch's. Memory: temporary buffers of the compiled step, and the peak of the process after its first call.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import _common as common
import ase
import jax
import jraph
import numpy as np
import tyro
from ase.calculators.singlepoint import SinglePointCalculator

from equijax import data, potential, testing
from equijax.adapters import lora
from equijax.config import ModelConfig
from equijax.data import items
from equijax.finetune import trainer
from equijax.finetune.defaults import LORA_TARGETS, LOSS, TRAINING
from equijax.finetune.options import LossConfig
from equijax.finetune.strategies import Trainable, count, fill


@dataclass(frozen=True)
class TrainingConfig:
    """Time training steps."""

    structures: int = 10
    """64-atom silicon cells in a batch."""
    tangents: int = 4
    """Displacement directions in the force-constant step; 0 leaves it out."""
    rank: int = 16
    """Of LoRA."""
    repeats: int = 3
    """Timed steps."""
    torch: bool = True
    """Time mace-torch too, where it is installed."""
    small: bool = False
    """A 24-channel model instead of the published shape."""


def main() -> None:
    """Compile everything, time it call by call in turn, print the table, write JSON."""
    options = tyro.cli(TrainingConfig)
    config = testing.random_config(channels=24) if options.small else common.published_config()
    variables = testing.random_forcefield(config).variables
    images = [common.crystal("Si", 2, seed=i) for i in range(options.structures)]
    graph = labelled(images, config, variables)
    chosen = strategies(config, variables, options.rank)
    cases = [(name, graph, LOSS, trained) for name, trained in chosen.items()]
    if options.tangents:
        only = products(images[:1], config, variables, options.tangents)
        name = f"lora, force constants: {options.tangents} tangents of one cell"
        cases.append((name, only, dataclasses.replace(LOSS, hessian_weight=1.0), chosen["lora"]))
    rows, calls = [], {}
    for name, batch, losses, trained in cases:
        row, calls[name] = compiled(config, variables, batch=batch, losses=losses, trained=trained)
        calls[name]()
        rows.append({"step": name, **row, "peak_memory_gb": common.peak_memory_gb()})
        print(rows[-1], flush=True)
    for chosen in (images, images[:2]) if options.torch else ():  # its time grows faster than the batch
        if peer := torch_step(chosen, options):
            rows.append(peer[0])
            calls[peer[0]["step"]] = peer[1]
    times = common.timed(calls, options.repeats)
    rows = [{**row, **times[row["step"]]} for row in rows]
    print(table(rows))
    sizes = {"atoms": sum(map(len, images)), "directed_edges": int(np.sum(graph.edges.mask))}
    common.write("training" + ("-small" if options.small else ""), rows, structures=options.structures, **sizes)


def labelled(images: list[ase.Atoms], config: ModelConfig, variables: dict) -> jraph.GraphsTuple:
    """A batch with random labels; their values do not change the time."""
    rng = np.random.default_rng(0)
    structures = []
    for i, atoms in enumerate(images):
        forces, stress = rng.normal(size=(len(atoms), 3)), rng.normal(size=(3, 3)) * 0.01
        structures.append(data.Labelled(atoms, 0.0, forces, stress + stress.T, source=f"structure {i}"))
    return batch_of(structures, config, variables)


def batch_of(structures: list[data.Labelled], config: ModelConfig, variables: dict) -> jraph.GraphsTuple:
    """One padded graph with labels, float32."""
    prepared = items.prepare(structures, config)
    return potential.cast(items.batch(prepared, config, energies=variables["constants"]["atomic_energies"]), "float32")


def products(images: list[ase.Atoms], config: ModelConfig, variables: dict, tangents: int) -> jraph.GraphsTuple:
    """Supercells with force-constant products along random tangents, and no other label."""
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=(2, len(a), tangents, 3)) for a in images]
    some = [data.Labelled(a, tangents=u, hvp=product) for a, (u, product) in zip(images, draws, strict=True)]
    return items.without_first_order(batch_of(some, config, variables))


def strategies(config: ModelConfig, variables: dict, rank: int) -> dict[str, Trainable]:
    """What is trained, by name."""
    params, rows = potential.cast(variables["params"], "float32"), [config.species.index(14)]
    few = lora.init_lora(params, rank, alpha=rank, targets=LORA_TARGETS, rows=rows)
    return {
        "lora": Trainable(few, lora.apply),
        "lora, all layers": Trainable(lora.init_lora(params, rank, alpha=rank, rows=rows), lora.apply),
        "naive": Trainable(params, fill),
    }


def compiled(
    config: ModelConfig, variables: dict, *, batch: jraph.GraphsTuple, losses: LossConfig, trained: Trainable
) -> tuple[dict, Callable]:
    """Compile one step: what it took, and a call that does the next step."""
    step = trainer.make_step(config, trained, losses=losses, options=TRAINING, total_steps=100)
    state = trainer.init(trained.start, TRAINING, total_steps=100)
    variables = jax.device_put(potential.cast(variables, "float32"))
    started = time.perf_counter()
    program = step.lower(state, variables, batch).compile()
    compile_s = time.perf_counter() - started

    def once() -> None:
        nonlocal state
        state, metrics = program(state, variables, batch)
        jax.block_until_ready(metrics)

    temporary_gb = program.memory_analysis().temp_size_in_bytes / 1e9
    return {"trainable": count(trained.start), "compile_s": compile_s, "temporary_gb": temporary_gb}, once


def torch_step(images: list[ase.Atoms], options: TrainingConfig) -> tuple[dict, Callable] | None:
    """mace-torch's training step on the same structures: all parameters, energy, forces and stress; None without it."""
    try:
        import torch
        from mace import data as mace_data
        from mace.tools import torch_geometric, utils
    except ImportError:
        print("mace-torch is not installed: left out")
        return None
    model = torch_model(options)
    table_z = utils.AtomicNumberTable([int(z) for z in model.atomic_numbers])
    batch = torch_geometric.Batch.from_data_list(
        [
            mace_data.AtomicData.from_config(
                mace_data.config_from_atoms(with_labels(a)), z_table=table_z, cutoff=float(model.r_max)
            )
            for a in images
        ]
    )
    rule = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    target = torch.randn(batch["positions"].shape)

    def once():
        rule.zero_grad(set_to_none=True)
        out = model(batch.to_dict(), training=True, compute_stress=True)
        value = (out["energy"] ** 2).mean() + ((out["forces"] - target) ** 2).mean() + (out["stress"] ** 2).mean()
        value.backward()
        rule.step()

    number = sum(p.numel() for p in model.parameters())
    name = f"mace-torch, all parameters, {len(images)} cells"
    return {"step": name, "trainable": number, "compile_s": None, "temporary_gb": None}, once


def torch_model(options: TrainingConfig) -> Any:
    """A ScaleShiftMACE of the same shape with random weights."""
    import torch
    from e3nn import o3
    from mace import modules

    torch.set_default_dtype(torch.float32)
    config = testing.random_config(channels=24) if options.small else common.published_config()
    blocks = modules.interaction_classes
    return modules.ScaleShiftMACE(
        r_max=config.r_max,
        num_bessel=config.num_radial,
        num_polynomial_cutoff=config.cutoff_power,
        max_ell=config.max_ell,
        interaction_cls=blocks[config.interaction],
        interaction_cls_first=blocks[config.interaction_first],
        num_interactions=config.num_interactions,
        num_elements=len(config.species),
        hidden_irreps=o3.Irreps(config.hidden_irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(config.species)),
        avg_num_neighbors=config.avg_num_neighbors,
        atomic_numbers=list(config.species),
        correlation=3,
        gate=torch.nn.functional.silu,
        pair_repulsion=True,
        distance_transform="Agnesi",
        radial_MLP=list(config.radial_mlp),
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        use_reduced_cg=False,
    )


def with_labels(atoms: ase.Atoms) -> ase.Atoms:
    """A copy with the results mace-torch's reader expects."""
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)), stress=np.zeros(6))
    return atoms


def table(rows: list[dict]) -> str:
    """Markdown; the ratio is of mace-torch's step on the same batch."""
    peer = next((r["median_ms"] for r in rows if r["step"].startswith("mace-torch")), None)
    lines = ["| step | trainable | compile, s | step, ms | mace-torch / it | temporary, GB |", "| --- " * 6 + "|"]
    for r in rows:
        ratio = f"{peer / r['median_ms']:.1f}x" if peer and r["step"].split(",")[0] in ("lora", "naive") else "-"
        ratio = "-" if "force constants" in r["step"] else ratio
        own = [f"{r[k]:.2f}" if r[k] is not None else "-" for k in ("compile_s", "temporary_gb")]
        lines.append(f"| {r['step']} | {r['trainable']:,} | {own[0]} | {r['median_ms']:.0f} | {ratio} | {own[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
