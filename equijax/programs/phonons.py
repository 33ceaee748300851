"""`python -m equijax.phonons STRUCTURE --model DIR --supercell 4 4 4 --out DIR`: phonons and what follows from them."""

from collections.abc import Sequence

from equijax.phonons.options import PhononsConfig
from equijax.programs import runner


@runner.program("equijax phonons")
def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print its summary."""
    config = runner.options(PhononsConfig, argv, name="equijax phonons", positional="structure")
    from equijax.phonons import run  # after the options, so that --help waits for neither JAX nor phonopy

    return runner.finish(run.summary(run.run(config)), config.out)
