"""How a program ends: what its user can mend is one line on standard error and status 2, a bug keeps its traceback."""

import dataclasses
import functools
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from equijax.errors import InputError, MissingExtra, NotFinite

USAGE, INTERRUPTED = 2, 128 + signal.SIGINT  # exit statuses
MENDABLE = (InputError, MissingExtra, NotFinite, OSError, MemoryError)  # the last two: files, disk, memory

Main = Callable[[Sequence[str] | None], int | None]


def program(name: str) -> Callable[[Main], Callable[..., int]]:
    """A decorator of `main(argv)`: what a user can mend ends in one line and 2, Ctrl-C in one line and 130."""

    def decorate(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv) or 0
            except KeyboardInterrupt:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one ends it without a word
                return _end(name, "interrupted", status=INTERRUPTED)
            except MENDABLE as error:
                return _end(name, describe(error), status=USAGE)

        return run

    return decorate


def options(kind: Any, argv: Sequence[str] | None, *, name: str, positional: str | None = None) -> Any:
    """Options of a program; from here on compiled programs are kept on disk.

    Args:
      kind: dataclass to make an instance of.
      argv: the command line, without the program's name.
      name: of the program, for messages.
      positional: a field that is given without a flag.
    """
    import tyro  # here, because `equijax --help` needs neither it nor JAX, and other programs' --help ends in tyro

    if positional is not None:
        field = next(f for f in dataclasses.fields(kind) if f.name == positional)
        marked = [(positional, tyro.conf.Positional[field.type])]
        kind = dataclasses.make_dataclass(
            kind.__name__, marked, bases=(kind,), frozen=True, namespace={"__doc__": kind.__doc__}
        )
    chosen = tyro.cli(kind, args=argv, prog=name, config=(tyro.conf.OmitArgPrefixes,))  # flags are flat
    from equijax import compiled  # after the options: JAX

    compiled.use_cache()
    return chosen


def finish(summary: str, out: Path) -> int:
    """Print the summary of a run and where its files are; 0."""
    print(f"{summary}\nEverything is in {out}")
    return 0


def describe(error: BaseException) -> str:
    """The message of an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        places = [str(p) for p in (error.filename, error.filename2) if p is not None]
        text = ": ".join([" -> ".join(places), error.strerror] if places else [error.strerror])
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__


def _end(name: str, text: str, *, status: int) -> int:
    print(f"{name}: {text}", file=sys.stderr)
    return status
