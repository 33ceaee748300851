"""`python -m equijax.expansion STRUCTURE --model DIR --supercell 3 3 3`: Grueneisen parameters, thermal expansion."""

from collections.abc import Sequence

from equijax.phonons.options import ExpansionConfig
from equijax.programs import runner


@runner.program("equijax expansion")
def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print its summary."""
    config = runner.options(ExpansionConfig, argv, name="equijax expansion", positional="structure")
    from equijax.phonons import expansion  # after the options, so that --help waits for neither JAX nor phonopy

    return runner.finish(expansion.summary(expansion.run(config)), config.out)
