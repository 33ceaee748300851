"""Every function of both packages: annotated, at most six parameters, and named arguments after the second."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path for package in ("equijax", "convert") for path in (ROOT / package).rglob("*.py"))
CALLERS = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]
MOST = 6  # parameters
# Positional beyond the second argument, because:
ALIKE = {"clebsch_gordan"}  # three angular momenta, as the coefficient is written
OPERANDS = {  # arrays that JAX differentiates and batches by position
    "sum_to_senders",
    "neighbour_sum",
    "table_sum",
    "radial_from_table",
}
FAMILY = {"register"}  # rules of one primitive, in the order in which JAX calls them


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef, ast.AST]]:
    """(where it is, function, what it is in) of every function of a file."""
    tree = ast.parse(path.read_text())
    for parent in ast.walk(tree):
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node, parent


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def passed_on(path: Path) -> set[str]:
    """Names of functions that a file hands to another function: those are called by position."""
    tree = ast.parse(path.read_text())
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute) and node not in called]
    return {node.id if isinstance(node, ast.Name) else node.attr for node in names}


PASSED_ON = set().union(*map(passed_on, CALLERS))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_signatures(path):
    for where, node, parent in functions(path):
        names = [a.arg for a in parameters(node) if a.arg not in ("self", "cls")]
        every = [*parameters(node), *(a for a in (node.args.vararg, node.args.kwarg) if a)]
        bare = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{where}: {bare} without annotation"
        assert node.returns is not None, f"{where}: no annotation of what it returns"
        assert len(names) <= MOST or node.name == "__init__", f"{where}: {len(names)} parameters, at most {MOST}"
        positional = len(node.args.posonlyargs) + len(node.args.args)
        if isinstance(parent, ast.Module) and not node.args.vararg and node.name not in ALIKE | OPERANDS | FAMILY:
            assert positional <= 2 or node.name in PASSED_ON, f"{where}: put `*` after its second argument"
