"""`python -m convert SOURCE OUT`: a mace-torch model to an equijax checkpoint, or back with --to-torch."""

import sys
from collections.abc import Sequence

import tyro

from convert import download, run
from equijax.programs import runner


@runner.program("python -m convert")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m convert` and `equijax-convert`."""
    options = tyro.cli(run.ConvertOptions, args=argv, prog="python -m convert", config=(tyro.conf.FlagCreatePairsOff,))
    if options.list:
        print(download.listing())
        return 0
    done = run.convert(options)
    if options.to_torch:
        left = ", without its dispersion: that is mace-torch's dispersion=True" if done.config.dispersion else ""
        print(f"{done.source} -> {done.out}{left}")
        return 0
    print(f"{done.source.name} -> {done.out} ({done.seconds:.1f} s)\n{done.summary}")
    rows = run.verify(done) if options.verify else []
    print("".join(f"{row}\n" for row in rows), end="")
    return int(not all(row.within for row in rows))


if __name__ == "__main__":
    sys.exit(main())
