"""`python -m equijax.select CANDIDATES --model M --count 10`: the structures most worth a DFT calculation."""

from collections.abc import Sequence

from equijax.finetune.options import SelectConfig
from equijax.programs import runner


@runner.program("equijax select")
def main(argv: Sequence[str] | None = None) -> int:
    """Write what was chosen and print it."""
    options = runner.options(SelectConfig, argv, name="equijax select", positional="candidates")
    from equijax.finetune import candidates  # after the options, so that --help waits for neither JAX nor ASE

    return runner.finish(candidates.summary(candidates.run(options)), options.out)
