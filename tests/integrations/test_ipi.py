"""i-PI runs path integral dynamics with our driver in its process, all beads a batch, and with ASE's client."""

import subprocess
import sys
import time
import uuid
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.calculators.socketio import SocketClient

from equijax import checkpoint, ipi_driver

BEADS, STEPS = 32, 4
INPUT = """<simulation verbosity="low">
  <output prefix="out"><properties filename="properties" stride="1">
    [step, conserved{{electronvolt}}, potential{{electronvolt}}, temperature{{kelvin}}, kinetic_cv{{electronvolt}}]
  </properties></output>
  <total_steps>{steps}</total_steps>
  <prng><seed>1</seed></prng>
  {forcefield}
  <system>
    <initialize nbeads="{beads}">
      <file mode="ase" units="angstrom">start.xyz</file>
      <velocities mode="thermal" units="kelvin">300</velocities>
    </initialize>
    <forces><force forcefield="mace"/></forces>
    <motion mode="dynamics"><dynamics mode="nve"><timestep units="femtosecond">0.5</timestep></dynamics></motion>
    <ensemble><temperature units="kelvin">300</temperature></ensemble>
  </system>
</simulation>
"""
DIRECT = """<ffdirect name="mace" pbc="false"><pes>custom</pes><pes_path>{path}</pes_path>
  <parameters>{{model: {model}, template: start.xyz}}</parameters><batch_size>{beads}</batch_size></ffdirect>"""
SOCKET = """<ffsocket mode="unix" name="mace" pbc="false"><address>{address}</address></ffsocket>"""


@pytest.fixture
def start(mini, silicon, tmp_path):
    """A folder with the model and a structure."""
    checkpoint.save(tmp_path / "model", mini.config, variables=mini.variables, metadata={})
    ase.io.write(tmp_path / "start.xyz", silicon.repeat(2), format="extxyz")
    return tmp_path


def ipi(folder: Path, forcefield: str, beads: int) -> subprocess.Popen:
    """i-PI at work in the folder."""
    (folder / "input.xml").write_text(INPUT.format(forcefield=forcefield, beads=beads, steps=STEPS))
    program = Path(sys.executable).with_name("i-pi")
    return subprocess.Popen([program, "input.xml"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(process: subprocess.Popen, folder: Path) -> np.ndarray:
    """Its table, a row a step."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    return np.loadtxt(folder / "out.properties")


@pytest.mark.parametrize("beads", [2, BEADS])
def test_path_integral_dynamics(mini, start, beads):
    """Beads in one batch; two of them the same as one by one through ASE's client."""
    forcefield = DIRECT.format(path=ipi_driver.__file__, model=start / "model", beads=beads)
    table = finished(ipi(start, forcefield, beads), start)
    step, conserved, potential, _, _ = table.T
    assert step[-1] == STEPS and np.ptp(potential) > 1e-3
    assert np.ptp(conserved) < 0.02 * beads
    if beads == BEADS:
        return
    address = f"equijax-{uuid.uuid4().hex[:8]}"
    process = ipi(start, SOCKET.format(address=address), beads)
    atoms = ase.io.read(start / "start.xyz")
    atoms.calc = mini.calculator()
    client = connected(address)
    client.run(atoms, use_stress=True)
    np.testing.assert_allclose(finished(process, start), table, rtol=0, atol=1e-6)


def connected(address: str) -> SocketClient:
    """A client of i-PI's socket, as soon as it is there."""
    for _ in range(300):
        if Path(f"/tmp/ipi_{address}").exists():  # where i-PI and ASE put it
            return SocketClient(unixsocket=address)
        time.sleep(0.2)
    raise TimeoutError(f"i-PI has not opened {address} after a minute")
