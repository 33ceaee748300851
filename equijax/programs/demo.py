"""`python -m equijax.demo`: convert a MACE model, evaluate it, fine-tune it, draw phonons before and after."""

from collections.abc import Sequence

from equijax import demonstration
from equijax.programs import runner


@runner.program("equijax demo")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; print its tables, write models, bands.png, phonopy files and report.json to the output folder."""
    config = runner.options(demonstration.DemoConfig, argv, name="equijax demo")
    return runner.finish(demonstration.summary(demonstration.run(config), config.out), config.out)
