"""`python -m equijax.adapters info|merge DIR --model CKPT`: what an adapter holds, and folding it into its model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from equijax.programs import runner


@dataclass(frozen=True)
class Merge:
    """Fold an adapter into its backbone: a checkpoint that loads like any other."""

    adapter: tyro.conf.Positional[Path]
    """Adapter directory."""
    model: Path
    """The checkpoint it was trained from."""
    out: Path
    """Checkpoint to write."""


@dataclass(frozen=True)
class Info:
    """Print what an adapter directory holds."""

    adapter: tyro.conf.Positional[Path]
    """Adapter directory."""
    model: Path | None = None
    """The checkpoint it was trained from: checks that it is, and counts per layer."""


@runner.program("equijax adapters")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m equijax.adapters merge|info`."""
    commands = Annotated[Merge, tyro.conf.subcommand("merge")] | Annotated[Info, tyro.conf.subcommand("info")]
    options = runner.options(commands, argv, name="equijax adapters")
    return _merge(options) if isinstance(options, Merge) else _info(options)


def _merge(options: Merge) -> int:
    # here and below, after the options, so that --help waits for neither JAX nor ASE
    from equijax import checkpoint, forcefield, outputs
    from equijax.adapters.files import attach

    outputs.check_replaceable(options.out, outputs.MODEL)
    merged = attach(forcefield.load(options.model), options.adapter)
    checkpoint.save(options.out, merged.config, variables=merged.variables, metadata=merged.metadata)
    return runner.finish(f"{options.model} with {options.adapter} folded in", options.out)


def _info(options: Info) -> int:
    from equijax import forcefield, tables
    from equijax.adapters.files import info, load
    from equijax.adapters.lora import table

    document = info(options.adapter)
    print(json.dumps({k: v for k, v in document.items() if k != "ranks"}, indent=1))
    if options.model is None:
        rows = ([path, "full" if rank is None else rank] for path, rank in document["ranks"].items())
        print(tables.text(["parameter", "rank"], rows))
    else:
        base = forcefield.load(options.model)
        print(table(base.variables["params"], load(options.adapter, base).adapters))
    return 0
