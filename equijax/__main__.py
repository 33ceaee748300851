"""`equijax COMMAND ...`: the programs of `python -m equijax.COMMAND ...`, each imported only when it is asked for."""

import importlib
import sys
from collections.abc import Sequence

from equijax.errors import InputError
from equijax.programs import runner

COMMANDS = {
    "adapters": "fold a fine-tuning adapter into its model, or print what it holds",
    "demo": "convert the bundled model, evaluate it and draw phonons of two crystals",
    "evaluate": "errors of a model on labelled structures: table, parity plot, one row a structure",
    "expansion": "mode Grueneisen parameters and quasi-harmonic thermal expansion of a crystal",
    "finetune": "fit a model to labelled structures: LoRA, delta, freeze, naive, multihead replay",
    "kappa": "third-order force constants and lattice thermal conductivity, through phono3py",
    "md": "molecular dynamics: NVE, NVT, NPT with trajectories, logs and restarts",
    "modes": "follow the soft modes of a crystal to the phases they lead to",
    "phonons": "force constants, band structure and thermal properties of a crystal",
    "rattle": "rattled, strained and relaxing supercells worth a DFT calculation",
    "screen": "relaxations and phonons of many crystals, over the processes of a Dask cluster",
    "select": "the candidates most worth a DFT calculation: farthest, D-optimal, or where a committee disagrees",
}


@runner.program("equijax")
def main(argv: Sequence[str] | None = None) -> int | None:
    """Hand the arguments after the sub-command to `main(argv)` of the program of that name."""
    command, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        raise InputError(f"unknown command {command!r}: expected one of {', '.join(COMMANDS)}")
    return importlib.import_module(f"equijax.programs.{command}").main(rest)


def usage() -> str:
    """One line a sub-command."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return f"usage: equijax COMMAND ...\n\n{rows}\n\n`equijax COMMAND --help` lists the options of one."


if __name__ == "__main__":
    sys.exit(main())
