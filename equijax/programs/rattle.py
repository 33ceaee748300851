"""`python -m equijax.rattle --structure POSCAR ...`: structures worth a DFT calculation, to fine-tune on."""

from collections.abc import Sequence

from equijax.data.options import RattleConfig
from equijax.programs import runner


@runner.program("equijax rattle")
def main(argv: Sequence[str] | None = None) -> int:
    """Write the picked structures and print what they are."""
    options = runner.options(RattleConfig, argv, name="equijax rattle")
    from equijax.data import rattle  # after the options, so that --help waits for neither JAX nor ASE

    return runner.finish(rattle.summary(rattle.run(options)), options.out)
