"""`python -m equijax.kappa STRUCTURE --model DIR --supercell 2 2 2`: thermal conductivity through phono3py."""

from collections.abc import Sequence

from equijax.phonons.options import KappaConfig
from equijax.programs import runner


@runner.program("equijax kappa")
def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print its summary."""
    config = runner.options(KappaConfig, argv, name="equijax kappa", positional="structure")
    from equijax.phonons import conductivity  # after the options, so that --help waits for neither JAX nor phonopy

    return runner.finish(conductivity.summary(conductivity.run(config)), config.out)
