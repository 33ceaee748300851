"""`python -m equijax.finetune --model CKPT --train a.extxyz --out DIR`: fine-tune a model and prove what it did."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from equijax.errors import InputError
from equijax.finetune.defaults import resolve
from equijax.finetune.options import FinetuneOptions, option_names
from equijax.programs import runner


@runner.program("equijax finetune")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; prints the final table."""
    options = resolve(parse(sys.argv[1:] if argv is None else argv))
    from equijax import parallel  # these after the options, so that --help waits for no JAX
    from equijax.finetune import report
    from equijax.finetune.run import run, say

    if options.distributed:
        parallel.join(options.coordinator, options.processes, process=options.process)
    result = run(options)
    if result is not None:
        say(report.summary(result))
    return 0


def parse(argv: Sequence[str]) -> FinetuneOptions:
    """Options from flags and from the file that --config names; flags win, unknown names are errors.

    Raises:
      SystemExit: from the command line parser, with its message.
      InputError: unknown or malformed options in the file.
    """
    argv = [part for a in argv for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    stored = _stored(Path(argv[argv.index("--config") + 1])) if "--config" in argv[:-1] else {}
    given = {a.split("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_") for a in argv if a[:2] == "--"}
    flags = [x for name, value in stored.items() if name not in given for x in _flag(name, value)]
    return runner.options(FinetuneOptions, argv + flags, name="equijax finetune")


def _stored(file: Path) -> dict[str, Any]:
    """Options of a file, by the names of `options.flat`."""
    try:
        values = yaml.safe_load(file.read_bytes())
    except yaml.YAMLError as error:
        raise InputError(f"{file} is neither JSON nor YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(
            f"{file}: no mapping of names to values; `python -m equijax.finetune --help` lists the options"
        )
    if unknown := sorted(set(values) - option_names()):
        raise InputError(f"{file}: unknown options {unknown}; `python -m equijax.finetune --help` lists the options")
    return values


def _flag(name: str, value: Any) -> list[str]:
    """A stored option as it is written on the command line; what is left out there is None or empty."""
    flag = "--" + name.replace("_", "-")
    if value is None or value == []:
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
