"""`python -m equijax.phonons STRUCTURE --model DIR --supercell 4 4 4 --out DIR`: the options of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from equijax.phonons.options import PhononsConfig
from equijax.programs import runner


@dataclass(frozen=True)
class Options(PhononsConfig):
    __doc__ = PhononsConfig.__doc__

    structure: Annotated[Path, tyro.conf.Positional]
    """Any file ASE reads; its last image is used."""


@runner.program("equijax phonons")
def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print its summary."""
    config = runner.options(Options, argv, "equijax phonons")
    from equijax.phonons import certificate, run  # after the options, so that --help does not wait for JAX and phonopy

    print(certificate.summary(run.run(config)))
    print(f"Everything is in {config.out}")
    return 0
