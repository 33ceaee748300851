"""`python -m equijax.md STRUCTURE --model CKPT --ensemble npt --temperature 300`: molecular dynamics with JAX-MD."""

import sys
from collections.abc import Sequence

from equijax.md.options import MDConfig
from equijax.programs import runner


@runner.program("equijax md")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all steps were done, 1 when the simulation broke down."""
    config = runner.options(MDConfig, argv, name="equijax md", positional="structure")
    from equijax.md import blocks, run  # after the options, so that --help waits for neither JAX nor JAX-MD

    try:
        run.simulate(config)
    except blocks.Lost as error:
        print(f"equijax md: {error}. The last good checkpoint is {config.out / 'checkpoint.npz'}.", file=sys.stderr)
        return 1
    return 0
