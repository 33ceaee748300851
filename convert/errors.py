"""What reading a model file can end in, and the bound on the memory it may ask for."""

from collections.abc import Iterator
from contextlib import contextmanager

from equijax.errors import InputError

BASE_BYTES = 256 * 2**20  # for any file, so that one under 1 MB never asks for 1 GB; published models need a tenth
BYTES_PER_FILE_BYTE = 24  # on top: what a tensor in half precision takes while it is converted, twice 24


class UnreadableModel(InputError):
    """The file is truncated, corrupt, hostile or not a torch model; the message says what was found and where."""


class UnsupportedModel(InputError):
    """A readable torch model that is not of the family equijax implements; the message names what differs."""


def shorten(value: object, limit: int = 120) -> str:
    """`value` as text that fits an error message, however large the file made it."""
    if isinstance(value, str | bytes):
        text = repr(value[: limit + 1])
    elif isinstance(value, int | float | bool | None) and not (isinstance(value, int) and value.bit_length() > 4096):
        text = repr(value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[:limit] + "..."


class Budget:
    """Counts the bytes that objects built from a file will take, before they are built.

    Pickles are programs: a few bytes can copy or repeat anything built before. One budget is shared by all steps.
    """

    def __init__(self, file_bytes: int = 0) -> None:
        self.total = self.left = BASE_BYTES + BYTES_PER_FILE_BYTE * file_bytes

    def spend(self, size: int) -> None:
        """Take `size` bytes.

        Raises:
          UnreadableModel: more than the budget holds.
        """
        self.left -= size
        if self.left < 0:
            raise UnreadableModel(f"what it describes needs more than {self.total} bytes; no model of its size does")


@contextmanager
def one_line() -> Iterator[None]:
    """Errors that only damaged or hostile contents cause become `UnreadableModel`: one line instead of a traceback."""
    try:
        yield
    except (UnreadableModel, UnsupportedModel):
        raise
    except (MemoryError, OverflowError, RecursionError, ValueError) as error:
        raise UnreadableModel(f"damaged or hostile contents: {type(error).__name__}: {str(error)[:200]}") from error
