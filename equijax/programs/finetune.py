"""`python -m equijax.finetune --model CKPT --train a.extxyz --out DIR`: fine-tune a model and prove what it did."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from equijax import parallel
from equijax.errors import InputError
from equijax.finetune import report, run
from equijax.finetune.options import FinetuneConfig, resolve
from equijax.programs import runner


@runner.program("equijax finetune")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; prints the final table."""
    options = resolve(read(sys.argv[1:] if argv is None else argv))
    if options.distributed:
        parallel.join(options.coordinator, options.processes, options.process)
    result = run.run(options)
    if result is not None:
        run.say(report.summary(result))
    return 0


def read(argv: Sequence[str] | None = None) -> FinetuneConfig:
    """Options from flags and from the file that --config names; flags win, unknown names are errors.

    Raises:
      SystemExit: from the command line parser, with its message.
      InputError: unknown or malformed options in the file.
    """
    argv = [part for a in argv for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    if "--config" not in argv[:-1]:
        return runner.options(FinetuneConfig, argv, "equijax finetune")
    file = Path(argv[argv.index("--config") + 1])
    try:
        values = yaml.safe_load(file.read_bytes())
    except yaml.YAMLError as error:
        raise InputError(f"{file} is neither JSON nor YAML: {error}") from error
    names = {f.name: f for f in dataclasses.fields(FinetuneConfig)}
    if not isinstance(values, dict) or (unknown := sorted(set(values) - set(names))):
        found = f"unknown options {unknown}" if isinstance(values, dict) else "no mapping of names to values"
        raise InputError(f"{file}: {found}; `python -m equijax.finetune --help` lists the options")
    given = {a.split("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_") for a in argv if a[:2] == "--"}
    flags = [x for name, value in values.items() if name not in given for x in _flag(name, value)]
    return runner.options(FinetuneConfig, argv + flags, "equijax finetune")


def _flag(name: str, value: Any) -> list[str]:
    """The option of the command line that says the same as an entry of the file."""
    flag = "--" + name.replace("_", "-")
    if value is None or value == []:
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
