"""The `equijax` command: its table is complete, and a wrong name is answered with the right ones."""

import ast
from pathlib import Path

import pytest

from equijax import cli

PACKAGE = Path(cli.__file__).parent


def entry_points() -> set[str]:
    """Modules of equijax that define `main`, and so answer to `python -m equijax.NAME`; `x_cli` is what x calls."""
    defines_main = set()
    for path in PACKAGE.glob("*.py"):
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if "main" in functions and not path.stem.endswith("_cli"):
            defines_main.add(path.stem)
    return defines_main


def test_every_program_is_a_sub_command():
    assert set(cli.COMMANDS) == entry_points() - {"cli"}


def test_unknown_command_lists_the_known_ones(capsys):
    assert cli.main(["phonon"]) == 2
    assert "unknown command 'phonon': expected one of adapters, " in capsys.readouterr().err


def test_arguments_reach_the_program(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "importlib.import_module", lambda name: type("M", (), {"main": lambda argv: seen.append((name, argv))})
    )
    cli.main(["demo", "--out", "x"])
    assert seen == [("equijax.demo", ["--out", "x"])]


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help(argv, capsys):
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
