"""Files of a simulation: extxyz and HDF5 trajectories, and the thermo log.

Every writer has a `mark()`: where it stands, stored in the checkpoint. Opened again at that mark, a file forgets what
was written after the checkpoint, so a continued run leaves the same files as one that never stopped.
"""

import io
import os
from pathlib import Path

import ase.io
import ase.units
import h5py
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from equijax import outputs
from equijax.errors import InputError

# what is logged of a step, and what of its state, with units
SCALARS = (
    "temperature_K",
    "potential_eV",
    "kinetic_eV",
    "total_eV",
    "conserved_eV",
    "pressure_GPa",
    "volume_A3",
)
COLUMNS = ("step", "time_ps", *SCALARS)


class ThermoLog:
    """Comma-separated values, one row a block; numbers are written so that they read back exactly."""

    def __init__(self, path: Path, mark: int | None = None) -> None:
        self.file = outputs.open_at(path, mark)
        if mark is None:
            outputs.append(self.file, (",".join(COLUMNS) + "\n").encode())

    def write(self, row: dict) -> None:
        """Append one row; keys are `COLUMNS`, a missing one is left empty."""
        outputs.append(self.file, (",".join(_number(row.get(name)) for name in COLUMNS) + "\n").encode())

    def mark(self) -> int:
        """Bytes written so far, all of them on disk."""
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class Extxyz:
    """Extended XYZ frames with energy, forces, momenta, step and time."""

    def __init__(self, path: Path, atoms: ase.Atoms, mark: int | None = None) -> None:
        self.file = outputs.open_at(path, mark)

    def write(self, step: int, time_ps: float, atoms: ase.Atoms, *, energy: float, forces: np.ndarray) -> None:
        """Append a frame."""
        frame = atoms.copy()
        frame.info |= {"step": step, "time_ps": time_ps}
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
        text = io.StringIO()
        ase.io.write(text, frame, format="extxyz")
        outputs.append(self.file, text.getvalue().encode())

    def mark(self) -> int:
        """Bytes written so far, all of them on disk."""
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class HDF5:
    """H5MD 1.1 layout: /particles/all/{position,velocity,force}/{value,step,time}, box/edges, /observables/potential.

    Units: A, A/fs, eV/A, ps, eV; `edges` holds cell vectors as rows.
    """

    def __init__(self, path: Path, atoms: ase.Atoms, mark: int | None = None) -> None:
        self.file = h5py.File(path, "w") if mark is None else _open_h5(path)
        if mark is None:
            self._create(atoms)
        for name, dataset in self._datasets().items():
            if len(dataset) < (mark or 0):
                raise InputError(
                    f"{path}: {name} has {len(dataset)} frames where the run to be continued had written {mark}: "
                    "put the file back"
                )
            dataset.resize(mark or 0, axis=0)

    def _create(self, atoms: ase.Atoms) -> None:
        n = len(atoms)
        self.file.create_group("h5md").attrs["version"] = np.array([1, 1])
        creator = self.file.create_group("h5md/creator")
        creator.attrs["name"] = "equijax"
        self.file["particles/all/species"] = atoms.numbers
        self.file["particles/all/mass"] = atoms.get_masses()
        box = self.file.create_group("particles/all/box")
        box.attrs["dimension"] = 3
        box.attrs["boundary"] = [b"periodic" if p else b"none" for p in atoms.pbc]
        for name, (shape, unit) in {
            "particles/all/position": ((n, 3), "A"),
            "particles/all/velocity": ((n, 3), "A fs-1"),
            "particles/all/force": ((n, 3), "eV A-1"),
            "particles/all/box/edges": ((3, 3), "A"),
            "observables/potential": ((), "eV"),
        }.items():
            group = self.file.create_group(name)
            for key, form, dtype in (("value", shape, "f8"), ("step", (), "i8"), ("time", (), "f8")):
                # time-dependent data grow along the first axis
                dataset = group.create_dataset(key, (0, *form), maxshape=(None, *form), dtype=dtype, chunks=(1, *form))
                dataset.attrs["unit"] = {"value": unit, "step": "", "time": "ps"}[key]

    def _datasets(self) -> dict[str, h5py.Dataset]:
        groups = [self.file[f"particles/all/{name}"] for name in ("position", "velocity", "force", "box/edges")]
        return {d.name: d for g in [*groups, self.file["observables/potential"]] for d in g.values()}

    def write(self, step: int, time_ps: float, atoms: ase.Atoms, *, energy: float, forces: np.ndarray) -> None:
        """Append a frame."""
        values = {
            "position": atoms.positions,
            "velocity": atoms.get_velocities() * ase.units.fs,
            "force": forces,
            "edges": atoms.cell.array,
            "potential": energy,
        }
        for name, dataset in self._datasets().items():
            quantity, key = name.split("/")[-2:]
            dataset.resize(len(dataset) + 1, axis=0)
            dataset[-1] = {"value": values[quantity], "step": step, "time": time_ps}[key]

    def mark(self) -> int:
        """Frames written so far, all of them on disk."""
        self.file.flush()
        return len(self._datasets()["/particles/all/position/step"])

    def close(self) -> None:
        """Close the file."""
        self.file.close()


WRITERS = {"extxyz": Extxyz, "h5": HDF5}


def _open_h5(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r+")
    except OSError as error:
        raise InputError(f"{path} cannot be continued, put it back as the run left it: {error}") from error


def _number(value: float | None) -> str:
    return "" if value is None else repr(value if isinstance(value, int) else float(value))
