"""`python -m equijax.demo`: convert a MACE model, evaluate it, fine-tune it, draw phonons before and after."""

from collections.abc import Sequence

from equijax.demonstration.options import DemoConfig
from equijax.programs import runner


@runner.program("equijax demo")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; print its tables, write models, bands.png, phonopy files and report.json to the output folder."""
    config = runner.options(DemoConfig, argv, name="equijax demo")
    from equijax.demonstration import run  # after the options, so that --help waits for neither JAX nor phonopy

    return runner.finish(run.summary(run.run(config), config.out), config.out)
