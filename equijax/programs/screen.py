"""`python -m equijax.screen STRUCTURES --model DIR --workers 2 --out DIR`: phonons of many crystals, over Dask."""

from collections.abc import Sequence

from equijax.programs import runner
from equijax.screen.options import ScreenConfig


@runner.program("equijax screen")
def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print its summary."""
    config = runner.options(ScreenConfig, argv, name="equijax screen", positional="structures")
    from equijax.screen import run  # after the options, so that --help waits for neither JAX nor phonopy

    return runner.finish(run.summary(run.run(config), config.out), config.out)
