"""A driver for i-PI: the beads of a ring polymer, or replicas, are one batch.

i-PI loads this file by its path (`python -c "import equijax.ipi_driver as d; print(d.__file__)"`), within itself

    <ffdirect name="mace" pbc="false"> <pes>custom</pes> <pes_path>.../equijax/ipi_driver.py</pes_path>
      <parameters>{model: model/, template: start.xyz}</parameters> <batch_size>32</batch_size> </ffdirect>

or at the other end of a socket: `i-pi-driver-py -u -a NAME -m custom -P .../equijax/ipi_driver.py -o model/,start.xyz`.
i-PI's own "ase" driver and ASE's `SocketClient` take our calculator too, a structure at a time.
"""

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase.units import Bohr, Hartree

from equijax import graph
from equijax.config import Compute
from equijax.forcefield import load
from equijax.potential import Evaluated

# names that i-PI looks for
__DRIVER_NAME__ = "equijax"
__DRIVER_CLASS__ = "EquijaxDriver"

Answer = tuple[float, np.ndarray, np.ndarray, str]  # Hartree, [N, 3] Hartree/Bohr, [3, 3] Hartree, "" (no extras)


class EquijaxDriver:
    """What i-PI calls with cells and positions in Bohr, one of each or lists.

    Args:
      model: a folder that `python -m convert` or fine-tuning wrote.
      template: a file that ASE reads, for elements and periodicity; of `Atoms.info` also charge and spin.
      dtype: "float32" or "float64".
      head: of a model that has several.
      verbose, verbosity: i-PI's; nothing is printed.

    Raises:
      InputError, OSError: see `equijax.load`.
    """

    def __init__(
        self,
        model: str,
        template: str,
        dtype: str = "float64",
        head: str | None = None,
        verbose: Any = None,
        verbosity: Any = None,
    ) -> None:
        self.forcefield, self.compute = load(Path(model).expanduser(), head=head), Compute(dtype)
        self.template = ase.io.read(template, index=-1)

    def __call__(self, cell: Any, pos: Any) -> Answer | list[Answer]:
        """Energy, forces and virial of one structure, or a list of them in one batch.

        Args:
          cell: [3, 3] Bohr, the cell vectors as columns; or a list.
          pos: [N, 3] Bohr; or a list.
        """
        several = isinstance(cell, list)
        images = []
        for vectors, positions in zip(cell, pos, strict=True) if several else [(cell, pos)]:
            atoms = self.template.copy()
            atoms.set_cell(np.transpose(vectors) * Bohr)
            atoms.set_positions(np.reshape(positions, (-1, 3)) * Bohr, apply_constraint=False)
            images.append(atoms)
        found = self.forcefield.evaluate(images, compute=self.compute)
        answers = [_answer(atoms, result) for atoms, result in zip(images, found, strict=True)]
        return answers if several else answers[0]


def _answer(atoms: ase.Atoms, result: Evaluated) -> Answer:
    virial = -result.stress * atoms.cell.volume if graph.has_stress(atoms) else np.zeros((3, 3))
    return result.energy / Hartree, result.forces * (Bohr / Hartree), virial / Hartree, ""
