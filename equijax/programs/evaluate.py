"""`python -m equijax.evaluate --model CKPT --data a.extxyz ...`: errors of a model on labelled structures."""

from collections.abc import Sequence

from equijax.finetune.options import EvaluateConfig
from equijax.programs import runner


@runner.program("equijax evaluate")
def main(argv: Sequence[str] | None = None) -> int:
    """Write everything to the output folder and print the table."""
    options = runner.options(EvaluateConfig, argv, name="equijax evaluate")
    from equijax.finetune import evaluate  # after the options, so that --help waits for neither JAX nor ASE

    return runner.finish(evaluate.summary(evaluate.run(options)), options.out)
