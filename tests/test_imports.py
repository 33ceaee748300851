"""Imports go one way: read from the source of every module, so that a lazy import counts too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A room may import from the lines above its own, and from its own line where no cycle arises. `equijax` is what
# `equijax/__init__.py` re-exports. `nn.cg` holds numbers alone, so it is a room of its own below the rest of `nn`;
# `x_cli` is what `python -m equijax.x` runs, and the room x may import it to do so; `x_run` is what `x_cli` may start.
LAYERS = (
    {
        "units",
        "config",
        "trees",
        "screen",
        "precision",
        "parallel",
        "folders",
        "runner",
        "structures",
        "memory",
        "constraints",
        "compiled",
    },
    {"files", "projection"},
    {"gather", "neighbors", "nn.cg"},
    {"graph", "kernels"},
    {"nn"},
    {"predict"},
    {"checkpoint", "specialise", "hessian", "bloch", "loss", "calculator", "lora", "data", "stream"},
    {"replay", "forcefield", "adapters", "train", "trajectory"},
    {
        "phonons",
        "bands",
        "certificate",
        "thermo",
        "nac",
        "relax",
        "volume",
        "distortions",
        "modes",
        "third_order",
        "jaxmd",
        "momenta",
        "simulation",
        "md",
    },
    {"feed", "task", "recipe", "store", "metrics", "report", "testing"},
    {"equijax"},
    {"demo", "cli", "phonons_cli", "phonons_run", "finetune", "evaluate", "rattle", "kappa", "expansion"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
TORCH = {"torch", "mace", "e3nn"}
CONVERT_MAY_IMPORT = {
    "equijax",
    "units",
    "config",
    "graph",
    "nn",
    "nn.cg",
    "predict",
    "checkpoint",
    "folders",
    "runner",
}
CONVERT_WITH_TORCH = {"to_torch.py", "verify.py"}  # need the parity extra


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, relative imports resolved; `from a import b` gives a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(ROOT).parent.parts)
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def room_of(path: Path) -> str:
    """`equijax/nn/radial.py` is in the room `nn`, `equijax/__init__.py` is the room `equijax`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return room_named(".".join(part for part in parts if part != "__init__"))


def room_named(dotted: str) -> str:
    """Room of an imported name: `equijax.nn.cg.u_tensor` -> nn.cg, `equijax.load` -> equijax."""
    parts = dotted.split(".")
    if ".".join(parts[1:3]) in LEVEL:
        return ".".join(parts[1:3])
    return parts[1] if len(parts) > 1 and is_module(parts[1]) else "equijax"


def rooms_imported(path: Path) -> set[str]:
    """Rooms of equijax that a file imports; `from equijax import x` is the room x if there is one."""
    rooms = {room_named(name) for name in imported(path) if name.split(".")[0] == "equijax"}
    return rooms - {f"{path.stem}_cli", path.stem.replace("_cli", "_run")}


def is_module(name: str) -> bool:
    return (ROOT / "equijax" / f"{name}.py").exists() or (ROOT / "equijax" / name / "__init__.py").exists()


@pytest.mark.parametrize("path", sources("equijax"), ids=lambda p: str(p.relative_to(ROOT)))
def test_equijax_imports_neither_convert_nor_torch(path):
    top = {name.split(".")[0] for name in imported(path)}
    assert not top & {"convert", *TORCH}


@pytest.mark.parametrize("path", sources("equijax"), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_one_way(path):
    room = room_of(path)
    assert room in LEVEL, f"{room} is a new room: give it a line in LAYERS"
    too_high = {other for other in rooms_imported(path) if LEVEL[other] > LEVEL[room]}
    assert not too_high, f"{room} may not import {sorted(too_high)}"


def test_no_cycle_between_rooms():
    edges: dict[str, set[str]] = {}
    for path in sources("equijax"):
        edges.setdefault(room_of(path), set()).update(rooms_imported(path) - {room_of(path)})
    while leaves := {room for room, needs in edges.items() if not needs & set(edges)}:
        edges = {room: needs for room, needs in edges.items() if room not in leaves}
    assert not edges, f"these rooms import each other: {edges}"


@pytest.mark.parametrize("path", sources("convert"), ids=lambda p: str(p.relative_to(ROOT)))
def test_convert_imports_the_model_and_nothing_above_it(path):
    assert rooms_imported(path) <= CONVERT_MAY_IMPORT
    if path.name not in CONVERT_WITH_TORCH:
        assert not {name.split(".")[0] for name in imported(path)} & TORCH
