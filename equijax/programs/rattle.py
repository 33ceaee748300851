"""`python -m equijax.rattle --structure POSCAR ...`: structures worth a DFT calculation, to fine-tune on."""

from collections.abc import Sequence

from equijax.data import rattle
from equijax.programs import runner


@runner.program("equijax rattle")
def main(argv: Sequence[str] | None = None) -> int:
    """Write the picked structures and print what they are."""
    options = runner.options(rattle.RattleConfig, argv, name="equijax rattle")
    return runner.finish(rattle.summary(rattle.run(options)), options.out)
