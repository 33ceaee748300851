"""What a person waits for before anything happens: the packages a command imports, as the interpreter tells."""

import subprocess
import sys

import pytest

LATER = {"e3nn_jax", "matplotlib", "optax", "orbax", "phonopy", "scipy", "sympy", "torch", "vesin"}
HEAVY = LATER | {"ase", "flax", "jax", "jaxlib", "numpy"}
COMMANDS = {
    "-m equijax.cli --help": HEAVY | {"tyro"},
    "-m equijax.cli phonons --help": HEAVY,
    "-m equijax.phonons --help": HEAVY,
    "-c import\tequijax": HEAVY,
    "-c import\tequijax;equijax.load;equijax.ForceField": LATER,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_imports_of_a_command(command):
    argv = [part.replace("\t", " ") for part in command.split(" ")]
    done = subprocess.run([sys.executable, "-X", "importtime", *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {row.split("|")[-1].strip().split(".")[0] for row in rows}
    assert "equijax" in imported
    assert not imported & COMMANDS[command]
