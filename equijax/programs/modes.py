"""`python -m equijax.modes STRUCTURE --model DIR`: follow soft modes downhill until a stable phase is found."""

from collections.abc import Sequence

from equijax.phonons.options import ModesConfig
from equijax.programs import runner


@runner.program("equijax modes")
def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print its summary."""
    config = runner.options(ModesConfig, argv, name="equijax modes", positional="structure")
    from equijax.phonons import soft_modes  # after the options, so that --help waits for neither JAX nor phonopy

    return runner.finish(soft_modes.summary(soft_modes.run(config)), config.out)
