"""What judges input says so: a bare ValueError, ImportError or FloatingPointError of ours would be taken for a bug."""

import ast
from pathlib import Path

import pytest

from convert.errors import UnreadableModel, UnsupportedModel
from equijax import errors
from equijax.finetune import trainer
from equijax.md import blocks

ROOT = Path(__file__).resolve().parent.parent
KINDS = [
    (errors.InputError, ValueError),
    (errors.MissingExtra, ImportError),
    (errors.NotFinite, FloatingPointError),
    (UnreadableModel, errors.InputError),
    (UnsupportedModel, errors.InputError),
    (trainer.TrainingDiverged, errors.NotFinite),
    (blocks.Lost, errors.NotFinite),
]
BARE = {"ValueError", "ImportError", "FloatingPointError"}
# Calls from inside this project that cannot be made so: a fault there is a bug.
INTERNAL = {"equijax/graph/regular.py", "equijax/precision.py", "equijax/couplings.py"}


@pytest.mark.parametrize(("kind", "caught"), KINDS)
def test_kinds_are_those_that_callers_catch(kind, caught):
    assert issubclass(kind, caught)


def raised(path: Path) -> set[str]:
    """Names of what a file raises, and of the bases of its own errors."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(ast.unparse(node.exc.func))
        if isinstance(node, ast.ClassDef):
            found |= {ast.unparse(base) for base in node.bases}
    return found


def test_nothing_else_is_raised_of_input():
    files = {str(p.relative_to(ROOT)): p for package in ("equijax", "convert") for p in (ROOT / package).rglob("*.py")}
    bare = {name for name, path in files.items() if raised(path) & BARE}
    assert bare - {"equijax/errors.py"} == INTERNAL
