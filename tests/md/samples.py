"""A pair potential, a structure, and runs of the program that the tests of dynamics share."""

import csv
from importlib import resources
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from equijax.forcefield import ForceField
from equijax.programs.md import main
from equijax.testing import rattled

MINI = resources.files("equijax") / "assets" / "mini.model"


class Morse(ForceField):
    """A pair potential of aluminium with the interface of a force field: statistics need steps, not networks."""

    def node_energies(self, variables, vectors, inputs):
        """Half of D ((1 - exp(-a (r - r0)))^2 - 1) per pair, taken smoothly to zero at the cutoff."""
        r = jnp.sqrt((vectors**2).sum(-1))
        smooth = jnp.clip(1 - (r / self.config.r_max) ** 2, 0.0) ** 3
        return 0.5 * (0.6 * ((1 - jnp.exp(-1.2 * (r - 3.1))) ** 2 - 1) * smooth).sum(1)


def triclinic(repeat=(1, 1, 1)):
    atoms = rattled(repeat=repeat)
    atoms.set_cell(
        atoms.cell.array @ np.array([[1.0, 0.2, -0.1], [0.15, 0.9, 0.3], [0.0, -0.1, 1.1]]), scale_atoms=True
    )
    return atoms


def read_log(folder):
    """The thermo log, columns by name."""
    with open(Path(folder) / "thermo.csv") as file:
        rows = list(csv.DictReader(file))
    return {k: np.array([float(r[k]) for r in rows]) for k in rows[0]}


def command(folder, structure, ensemble, steps, every, *options):
    """Arguments of the program."""
    argv = [
        structure,
        "--model",
        "any",
        "--out",
        folder,
        "--ensemble",
        ensemble,
        "--steps",
        steps,
        "--log-every",
        every,
        "--trajectory-every",
        20 * every,
        "--checkpoint-every",
        20 * every,
    ]
    if "--model" in options:
        del argv[1:3]
    return [str(a) for a in (*argv, *options)]


def run(folder, *arguments):
    """The thermo log of a run; of each replica where there are several."""
    assert main(command(folder, *arguments)) == 0
    replicas = sorted(Path(folder).glob("replica*"))
    return [read_log(f) for f in replicas] if replicas else read_log(folder)
