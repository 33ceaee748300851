"""`python -m equijax.md STRUCTURE --model CKPT --ensemble npt --temperature 300`: molecular dynamics with JAX-MD."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from equijax.md.blocks import Lost
from equijax.md.options import MDConfig
from equijax.md.run import simulate
from equijax.programs import runner


@dataclass(frozen=True)
class Options(MDConfig):
    __doc__ = MDConfig.__doc__

    structure: Annotated[Path, tyro.conf.Positional]
    """Any file ASE reads. Its momenta, less their drift, serve one replica of one cell; its fixed atoms stay."""


@runner.program("equijax md")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all steps were done, 1 when the simulation broke down."""
    config = runner.options(Options, argv, "equijax md")
    try:
        simulate(config)
    except Lost as error:
        print(f"equijax md: {error}. The last good checkpoint is {config.out / 'checkpoint.npz'}.", file=sys.stderr)
        return 1
    return 0
