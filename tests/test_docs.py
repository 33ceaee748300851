"""What documents name exists: imports of their snippets, programs, make targets, entries of the reference."""

import ast
import importlib
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import equijax

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def named(pattern: str) -> set[str]:
    return {found for path in DOCUMENTS for found in re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL)}


def resolve(dotted: str) -> object:
    """The module, or the attribute of one, of this name."""
    parts = dotted.split(".")
    for i in range(len(parts), 0, -1):
        name = ".".join(parts[:i])
        try:
            if importlib.util.find_spec(name) is None:
                continue
        except ModuleNotFoundError:
            continue
        found = importlib.import_module(name)
        for part in parts[i:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("snippet", sorted(named(r"^```python\n(.*?)^```")), ids=lambda s: s.splitlines()[0])
def test_snippets_import_what_exists(snippet):
    tree = ast.parse(snippet)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                resolve(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                resolve(f"{node.module}.{alias.name}")
    modules = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):  # calls through a module: `dynamical.group_velocities(...)`
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            resolve(f"{modules[node.value.id]}.{node.attr}")


@pytest.mark.parametrize("name", sorted(named(r"python -m ((?:equijax|convert)(?:\.[a-z_]+)*)\b(?!\.)")))
def test_programs_exist(name):
    assert importlib.util.find_spec(name) is not None


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wanted = named(r"[`\n]make (\w+)") | {
        target
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for target in re.findall(r"run: make (\w+)", path.read_text())
    }
    assert wanted and wanted <= targets, wanted - targets


@pytest.mark.parametrize("name", sorted(named(r"^::: ([\w.]+)$")))
def test_reference_entries_exist(name):
    resolve(name)


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "equijax.__version__"}
    source = (ROOT / "equijax" / "__init__.py").read_text()
    assert re.findall(r'^__version__ = "(.*)"$', source, re.MULTILINE) == [equijax.__version__]


def test_the_picture_of_the_house_has_every_room():
    picture = re.search(r"## The house.*?```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    folder = ROOT / "equijax"
    rooms = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    doors = {p.stem for p in (folder / "programs").glob("*.py")} - {"__init__"} | {"__main__"}
    drawn = set(re.findall(r"\w+", picture))
    folders = {p.parent.name for p in folder.glob("*/__init__.py")}
    assert not rooms - drawn - (doors - folders), "give it a line in CONTRIBUTING.md"
