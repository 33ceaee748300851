"""What a person waits for before anything happens: the packages a command imports, as the interpreter tells."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import equijax
from equijax.__main__ import COMMANDS

LATER = {"e3nn_jax", "matplotlib", "optax", "orbax", "phonopy", "scipy", "sympy", "torch", "vesin"}
HEAVY = LATER | {"ase", "flax", "jax", "jaxlib", "numpy"}
STARTS = {
    "-m equijax --help": HEAVY | {"tyro"},
    "-m equijax phonons --help": HEAVY,
    **{f"-m equijax.{name} --help": HEAVY for name in COMMANDS},
    "-c import\tequijax": HEAVY,
    "-c import\tequijax;equijax.load;equijax.ForceField": LATER,
    "-c import\tequijax.phonons.run,equijax.calculator,equijax.nn.mace": {"e3nn_jax", "sympy", "torch"},
}


@pytest.mark.parametrize("command", STARTS)
def test_imports_of_a_command(command):
    argv = [part.replace("\t", " ") for part in command.split(" ")]
    done = subprocess.run([sys.executable, "-X", "importtime", *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {row.split("|")[-1].strip().split(".")[0] for row in rows}
    assert "equijax" in imported
    assert not imported & STARTS[command]


SCRIPT = """
import sys
from ase.build import bulk
from equijax import graph
print(len(graph.neighbour_list(bulk("Si"), 4.0).senders))
assert not {"torch", "vesin"} & set(sys.modules)
import vesin
"""


def test_neighbours_do_not_wait_for_torch(tmp_path):
    """With a torch that cannot be imported without notice: a user's own import of vesin does, nothing before."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    path = os.pathsep.join([str(tmp_path), str(Path(equijax.__file__).parent.parent)])
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env)
    assert int(done.stdout) > 0 and "torch was imported" in done.stderr
