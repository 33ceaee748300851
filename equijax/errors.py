"""Errors that a user can mend: programs show them in one line. All others are bugs and keep their traceback."""

from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Input that cannot be used: the message names it, says what was expected and what to do."""


class MissingExtra(ImportError):
    """A package is not installed that comes with an extra; the message names the extra."""


class NotFinite(FloatingPointError):
    """Energies, forces or a run that broke down; the message names the structure or the step, and what to change."""


def needed(value: T | None, message: str) -> T:
    """A value that may be missing by its type, where it must be there.

    Raises:
      InputError: None; `message`.
    """
    if value is None:
        raise InputError(message)
    return value
