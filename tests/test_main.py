"""The `equijax` command: its table is complete, and a wrong name is answered with the right ones."""

import ast
import importlib.util
from pathlib import Path

import pytest

from equijax import __main__

PACKAGE = Path(__main__.__file__).parent


def entry_points() -> set[str]:
    """Programs: modules of `equijax.programs` that define `main`."""
    defines_main = set()
    for path in (PACKAGE / "programs").glob("*.py"):
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if "main" in functions:
            defines_main.add(path.stem)
    return defines_main


def test_every_program_is_a_sub_command():
    assert set(__main__.COMMANDS) == entry_points()


def test_every_program_has_a_door():
    """`python -m equijax.NAME` runs it."""
    for name in __main__.COMMANDS:
        assert importlib.util.find_spec(f"equijax.{name}.__main__" if (PACKAGE / name).is_dir() else f"equijax.{name}")


def test_unknown_command_lists_the_known_ones(capsys):
    assert __main__.main(["phonon"]) == 2
    assert "unknown command 'phonon': expected one of adapters, " in capsys.readouterr().err


def test_arguments_reach_the_program(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "importlib.import_module", lambda name: type("M", (), {"main": lambda argv: seen.append((name, argv))})
    )
    __main__.main(["demo", "--out", "x"])
    assert seen == [("equijax.programs.demo", ["--out", "x"])]


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help(argv, capsys):
    assert __main__.main(argv) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in __main__.COMMANDS)
