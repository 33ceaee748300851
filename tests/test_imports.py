"""Imports go one way: read from the source of every module, so that a lazy import counts too. There is no exception."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A room is a folder or a module of `equijax`; it imports from the lines above its own. `__init__` is what
# `import equijax` gives; the doors are the modules that `python -m equijax.NAME` runs.
LAYERS = (
    {"errors", "faces"},
    {"units", "config", "pytrees", "couplings", "precision", "parallel", "compiled", "structures", "constraints"},
    {"outputs"},
    {"tables"},
    {"graph"},
    {"kernels"},
    {"executables"},
    {"nn"},
    {"potential", "folding", "dispersion"},
    {"derivatives", "checkpoint"},
    {"specialise", "relax", "plots", "descriptors", "hessian"},
    {"calculator"},
    {"forcefield"},
    {"adapters"},
    {"phonons", "md", "testing", "ipi_driver", "lammps"},
    {"data"},
    {"finetune"},
    {"__init__"},
    {"demonstration", "flows", "screen"},
    {"programs"},
    {"doors"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
TORCH = {"torch", "mace", "e3nn"}
CONVERT_MAY_IMPORT = {
    "__init__",
    "errors",
    "faces",
    "config",
    "couplings",
    "graph",
    "nn",
    "potential",
    "derivatives",
    "checkpoint",
    "dispersion",
    "outputs",
}
RUNNER = "equijax.programs.runner"  # how every program ends, those of `convert` too
CONVERT_WITH_TORCH = {"to_torch.py", "verify.py"}  # need the parity extra
TAKE_DERIVATIVES = {"equijax.derivatives", "equijax.finetune.trainer"}
TRANSFORMATIONS = {
    *("grad", "value_and_grad", "jvp", "vjp", "linearize", "hessian", "jacfwd", "jacrev", "linear_transpose"),
    "jet",  # a module: Taylor series
}
PROGRAM_LIBRARIES = {"tyro", "argparse"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules that a file imports, and modules or names that it imports from one, dotted."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def module_of(name: str) -> str:
    """The module that an imported name is, or is in."""
    return name if is_module(name) else name.rpartition(".")[0]


def modules_imported(path: Path, package: str = "equijax") -> set[str]:
    return {module_of(name) for name in imported(path) if name.split(".")[0] == package}


def name_of(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(module: str) -> str:
    """`equijax.nn.radial` is in the room `nn`, `equijax` is `__init__`, `equijax.phonons.__main__` is a door."""
    parts = module.split(".")
    if len(parts) == 1:
        return "__init__"
    if (
        parts[-1] == "__main__"
        or len(parts) == 2
        and is_module(f"equijax.programs.{parts[1]}")
        and parts[1] not in LEVEL
    ):
        return "doors"
    return parts[1]


@pytest.mark.parametrize("path", sources("equijax"), ids=lambda p: str(p.relative_to(ROOT)))
def test_equijax_imports_neither_convert_nor_torch(path):
    top = {name.split(".")[0] for name in imported(path)}
    assert not top & {"convert", *TORCH}


@pytest.mark.parametrize("path", sources("equijax"), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_one_way(path):
    room = room_of(name_of(path))
    assert room in LEVEL, f"{room} is a new room: give it a line in LAYERS"
    wrong = {m for m in modules_imported(path) if room_of(m) != room and LEVEL[room_of(m)] >= LEVEL[room]}
    assert not wrong, f"{room} may not import {sorted(wrong)}"


def test_no_circle_of_modules():
    needs = {name_of(path): modules_imported(path) - {name_of(path)} for path in sources("equijax")}
    # that a module imports its own room's face does not count: Python runs the face first in any case
    needs = {name: {n for n in found if not name.startswith(f"{n}.")} for name, found in needs.items()}
    while leaves := {name for name, found in needs.items() if not found & set(needs)}:
        needs = {name: found for name, found in needs.items() if name not in leaves}
    assert not needs, f"these modules import each other: {sorted(needs)}"


def test_derivatives_are_taken_in_one_module():
    """Of the energy. Kernels hold the derivative rules of operations, the trainer takes the gradient by parameters."""
    elsewhere = {}
    for path in sources("equijax"):
        name = name_of(path)
        if name in TAKE_DERIVATIVES or room_of(name) == "kernels":
            continue
        found = {ast.unparse(n) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        found = {n for n in found if n.split(".")[0] == "jax" and n.split(".")[-1] in TRANSFORMATIONS}
        found |= {n for n in imported(path) if n.split(".")[0] == "jax" and n.split(".")[-1] in TRANSFORMATIONS}
        if found:
            elsewhere[name] = sorted(found)
    assert not elsewhere


def test_programs_alone_parse():
    parsing = {name_of(p) for p in sources("equijax") if {n.split(".")[0] for n in imported(p)} & PROGRAM_LIBRARIES}
    assert {room_of(name) for name in parsing} == {"programs"}, sorted(parsing)


@pytest.mark.parametrize("path", sources("convert"), ids=lambda p: str(p.relative_to(ROOT)))
def test_convert_imports_the_model_and_nothing_above_it(path):
    found = modules_imported(path) - {RUNNER}
    assert {room_of(m) for m in found} <= CONVERT_MAY_IMPORT
    if path.name not in CONVERT_WITH_TORCH:
        assert not {name.split(".")[0] for name in imported(path)} & TORCH


# Tests that are about no single module, and why.
SUBJECTS = {
    "tests/convert/test_bounds.py": "hostile files, through all modules that read them",
    "tests/integrations": "other programs, by program",
    "tests/parity": "comparisons with mace-torch, by what is compared",
    "tests/phonons/test_oracles.py": "lattice dynamics known on paper, through several modules",
    "tests/programs/test_startup.py": "what programs import before they answer",
    "tests/test_accelerator.py": "the benchmark of accelerators, whole",
    "tests/test_docs.py": "documents",
    "tests/test_imports.py": "the floor plan",
    "tests/test_lowering.py": "programs for devices that this machine lacks",
    "tests/test_library_dtype.py": "float64 from every function that is asked for it",
    "tests/test_signatures.py": "every signature",
    "tests/test_outputs_of_folders.py": "folders that appear whole; files do in test_outputs.py",
}


def test_tests_are_named_after_modules():
    """`tests/ROOM/test_NOUN.py` tests `equijax.ROOM.NOUN`, `tests/convert/test_NOUN.py` `convert.NOUN`."""
    others = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        place, noun = path.relative_to(ROOT / "tests"), path.stem.removeprefix("test_")
        room = (ROOT if place.parts[0] == "convert" else ROOT / "equijax") / place.parent
        if not any((room / f"{name}.py").is_file() for name in (noun, f"__{noun}__")):
            name = str(path.relative_to(ROOT))
            others.add(next((subject for subject in SUBJECTS if name.startswith(subject)), name))
    assert others == set(SUBJECTS), "name them after the module they test, or give a reason in SUBJECTS"
