"""What documents and scripts name exists: modules, functions and their arguments, programs and their options, files."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import os
import re
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import equijax
from equijax.__main__ import COMMANDS
from equijax.forcefield import ForceField

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn, where it is installed, loads its constants so
ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SCRIPTS = [*sorted((ROOT / "bench").glob("*.py")), *sorted((ROOT / "docs").rglob("*.py"))]
SOURCES = [p for room in ("equijax", "convert", "tests") for p in sorted((ROOT / room).rglob("*.py"))]
OURS = ("equijax", "convert")
ABSENT = {"torch", "jobflow"}  # of extras
THEIRS = {"--lora", "--save_cpu"}  # of mace-torch's training


def named(pattern: str, files: list[Path] = DOCUMENTS) -> set[str]:
    return {found for path in files for found in re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL)}


def resolve(dotted: str) -> object | None:
    """The module, or the attribute of one, of this name; fields of a class are what annotates them.

    Where what a module needs at its top is missing, None of a name that its source defines.
    """
    parts = dotted.split(".")
    for i in range(len(parts), 0, -1):
        name = ".".join(parts[:i])
        try:
            if importlib.util.find_spec(name) is None:
                continue
        except ImportError:  # of what it is in
            continue
        try:
            found = importlib.import_module(name)
        except ImportError as error:
            if error.name not in ABSENT:
                raise
            assert not parts[i:] or parts[i] in defined(name), f"{name} has no {parts[i]}"
            return None
        for part in parts[i:]:
            found = member(found, part)
        return found
    raise ModuleNotFoundError(dotted)


def defined(module: str) -> set[str]:
    """Functions and classes of a module, from its source."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def member(owner: object, name: str) -> object:
    fields = typing.get_type_hints(owner) if isinstance(owner, type) else {}
    return fields[name] if name in fields and not hasattr(owner, name) else getattr(owner, name)


# ---- Python: what is imported exists, what is called takes the arguments


def imports(tree: ast.AST) -> dict[str, str]:
    """Dotted name by the name it has in the code, of what is imported from our packages."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: alias.asname and alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = {name: dotted or name for name, dotted in found.items()}
    return {name: dotted for name, dotted in found.items() if dotted.split(".")[0] in OURS}


def check_code(text: str) -> None:
    """Every import, attribute and call of ours, through modules and through variables whose class is known."""
    tree = ast.parse(text)
    known: dict[str, object] = {"ff": ForceField} | {name: resolve(dotted) for name, dotted in imports(tree).items()}

    def meaning(node: ast.AST) -> object | None:
        """What an expression names; of an instance, its class."""
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Attribute) and ours(owner := meaning(node.value)):
            return member(owner, node.attr)
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in OURS:
                    resolve(alias.name)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            function = meaning(node.value.func)
            made = function if isinstance(function, type) else getattr(function, "__annotations__", {}).get("return")
            known[node.targets[0].id] = made if isinstance(made, type) else None
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            meaning(node)
        elif isinstance(node, ast.Call) and ours(function := meaning(node.func)):
            through = meaning(node.func.value) if isinstance(node.func, ast.Attribute) else None
            check_call(function, node, of_instance=isinstance(through, type) and not isinstance(function, type))


def ours(found: object) -> bool:
    """Whether it is a module, class or function of ours, whose members and arguments can be checked."""
    name = found.__name__ if inspect.ismodule(found) else getattr(found, "__module__", None)
    return callable(found) | inspect.ismodule(found) and str(name).split(".")[0] in OURS


def check_call(function: Callable, node: ast.Call, *, of_instance: bool) -> None:
    """The arguments bind, where none is a spread list or dict."""
    arguments = [*([None] if of_instance else []), *node.args], {k.arg: k.value for k in node.keywords}
    if not any(isinstance(a, ast.Starred) for a in node.args) and None not in arguments[1]:
        try:
            inspect.signature(function).bind(*arguments[0], **arguments[1])
        except TypeError as error:
            raise TypeError(f"{ast.unparse(node)}: {error}") from error


@pytest.mark.parametrize("snippet", sorted(named(r"^```python\n(.*?)^```")), ids=lambda s: s.splitlines()[0])
def test_snippets_use_what_exists(snippet):
    check_code(snippet)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_use_what_exists(path):
    check_code(path.read_text())


@pytest.mark.parametrize(
    "call, message",
    [
        ("load()", "missing a required"),
        ("load('m', heads='a')", "unexpected"),
        ("nothing('m')", "no attribute"),
        ("load('m').evaluate", None),
    ],
)
def test_wrong_code_is_noticed(call, message):
    with pytest.raises((TypeError, AttributeError), match=message) if message else contextlib.nullcontext():
        check_code(f"import equijax\nequijax.{call}")


# ---- names and files in prose and docstrings


def test_names_exist():
    """Dotted names between backticks, in documents, scripts and docstrings; one in capitals stands for many."""
    missing = {}
    for name in sorted(named(r"`((?:equijax|convert)(?:\.\w+)+)[`(]", [*DOCUMENTS, *SCRIPTS, *SOURCES])):
        if set(name.split(".")) & {"NAME", "NOUN", "ROOM"}:
            continue
        try:
            resolve(name)
        except (AttributeError, ImportError) as error:
            missing[name] = str(error)
    assert not missing


def test_files_exist():
    names = named(r"`((?:bench|convert|docs|equijax|tests|\.ci|\.github)/[\w./-]+)`")
    names |= named(r"python ((?:bench|docs)/[\w/]+\.py)", [*DOCUMENTS, *SCRIPTS])
    missing = {name for name in names if not (ROOT / name).exists()}
    assert names and not missing


@pytest.mark.parametrize("name", sorted(named(r"^::: ([\w.]+)$")))
def test_reference_entries_exist(name):
    resolve(name)


# ---- programs and their options


def help_of(program: str, *arguments: str) -> str:
    module = importlib.import_module(program)
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        raise SystemExit(module.main([*arguments, "--help"]))
    return out.getvalue()


@functools.cache
def flags(program: str) -> set[str]:
    """Options of `equijax.NAME`, `convert` or `bench/NAME.py`."""
    if program.startswith("bench/"):
        fields = [n for n in ast.walk(ast.parse((ROOT / program).read_text())) if isinstance(n, ast.AnnAssign)]
        names = [n.target.id.replace("_", "-") for n in fields if isinstance(n.target, ast.Name)]
        return {f"--{no}{name}" for name in names if name.islower() for no in ("", "no-")}
    if program == "equijax.adapters":
        text = "".join(help_of("equijax.programs.adapters", command) for command in ("info", "merge"))
    else:
        text = help_of("convert.__main__" if program == "convert" else program.replace("equijax.", "equijax.programs."))
    return set(re.findall(r"--[a-z][\w-]*", text))


def command_lines() -> Iterator[tuple[str, str]]:
    """(program, arguments) of the commands in documents and scripts."""
    for path in [*DOCUMENTS, *SCRIPTS]:
        text = path.read_text().replace("\\\n", " ")
        for program, rest in re.findall(r"python (?:-m )?((?:equijax\.|bench/)[a-z_.]+|convert)([^`#\n]*)", text):
            yield program.rstrip("."), rest
        for program, rest in re.findall(r"^equijax ([a-z]+)([^`#\n]*)", text, re.MULTILINE):
            yield f"equijax.{program}", rest


def test_options_of_commands_exist():
    unknown = {}
    for program, rest in command_lines():
        if asked := set(re.findall(r"--[a-z][\w-]*", rest)):
            unknown |= {(program, flag): rest for flag in asked - flags(program)}
    assert not unknown


def test_options_in_prose_exist():
    """Between backticks: an option of some program, but for mace-torch's in the table of its versions."""
    documents = [path for path in DOCUMENTS if path.name != "versions.md"]
    programs = [*(f"equijax.{name}" for name in COMMANDS), "convert"]
    known = set().union(*map(flags, programs), *(flags(f"bench/{p.name}") for p in SCRIPTS if p.parent.name == "bench"))
    unknown = named(r"`(--[a-z][\w-]*)[^`]*`", documents) - known - THEIRS
    assert not unknown


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


# ---- version and rooms


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
