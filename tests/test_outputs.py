"""Files appear whole or not at all, whatever library writes them; a folder belongs to one program at a time."""

import ast
import importlib
import json
import resource
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import ase
import ase.build
import numpy as np
import phonopy
import pytest

from equijax import __main__, outputs, plots, structures, tables
from equijax.data import errors, labelled
from equijax.md import files
from equijax.phonons import certificate, thermal
from equijax.potential import Evaluated

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def full_disk(size: int):
    """No file of this process grows past `size` bytes: Python ignores SIGXFSZ, so that writing is an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def one_structure():
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6)
    found = Evaluated(-1.0, np.full(2, -0.5), np.ones((2, 3)), np.zeros((3, 3)))
    return labelled.from_values(atoms, "file:0", energy=-1.1, forces=np.zeros((2, 3))), found


def write_errors(path):
    structure, found = one_structure()
    errors.write_csv(path, [structure], found=[found], errors=[errors.structure_errors(structure, found)])


def chain():
    """Phonons of a crystal with springs to itself alone: flat bands."""
    phonon = phonopy.Phonopy(structures.to_phonopy(ase.build.bulk("Ar", "fcc", a=5.3)), np.eye(3))
    phonon.force_constants = np.eye(3)[None, None]
    return phonon


XS = np.arange(9)
HISTORY = [{"epoch": e, "train_loss": 1.0, "loss": 1.0, "forces_mae": 1.0} for e in (1, 2)]
SCAN = {
    "q": [[0, 0, 0]],
    "from_space_group": "a",
    "frequency_THz": 1.0,
    "distorted_space_group": "b",
    "Q": [0, 1],
    "energy_meV_atom": [0, 1],
    "well_meV_atom": 1.0,
    "Q_min": 1.0,
}
WRITERS = {
    "report.json": lambda path: certificate.write({"numbers": np.arange(9)}, path),
    "metrics.jsonl": lambda path: outputs.write_text(path, 20 * "line\n"),
    "checkpoint.npz": lambda path: outputs.save_arrays(path, [np.arange(9)], document={"step": 1}),
    "dos.csv": lambda path: thermal.write_dos(SimpleNamespace(frequency_points=np.arange(9), dos=np.arange(9)), path),
    "thermal.csv": lambda path: thermal.harmonic([[0, 0, 0.5]], [[1.0, 2, 3]]).write_csv(path),
    "structures.csv": write_errors,
    "table.csv": lambda path: tables.write_csv(path, ["x"], rows=[[float(i)] for i in range(9)]),
    "bands.png": lambda path: plots.draw_bands(path, chain(), title="Ar"),
    "comparison.png": lambda path: plots.compare_bands(path, {"Ar": {"reference": chain(), "converted": chain()}}),
    "kappa.png": lambda path: plots.draw_conductivity(path, {"xx": XS}, temperatures=XS, title="Ar"),
    "expansion.png": lambda path: plots.draw_expansion(path, modes=(XS, XS), expansion=(XS, XS), title="Ar"),
    "parity.png": lambda path: plots.draw_parity(path, errors.parity(*([x] for x in one_structure()))),
    "learning_curve.png": lambda path: plots.draw_learning_curve(path, HISTORY, start=HISTORY[0]),
    "energy_of_Q.png": lambda path: plots.draw_scans(path, [SCAN]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_earlier_file(tmp_path, name):
    path = tmp_path / name
    path.write_text("earlier")
    with full_disk(10), pytest.raises(OSError, match="too large"):
        WRITERS[name](path)
    assert path.read_text() == "earlier" and [p.name for p in tmp_path.iterdir()] == [name]
    WRITERS[name](path)
    assert path.stat().st_size > 10 and [p.name for p in tmp_path.iterdir()] == [name]


# What makes a file; modules and functions that have their own way to make it whole.
MAKERS = {"savefig", "savetxt", "savez", "save", "write_text", "write_bytes", "write_fc2_to_hdf5", "write_fc3_to_hdf5"}
OWN_WAY = {"outputs", "checkpoint", "files", "build", "reference", "executables"}
WHOLE = {"hooks.save", "outputs.write_text", "outputs.write_json", "checkpoints.save", "checkpoint.save", "files.save"}
WHOLE |= {"committee.save", "rattle.write"}


def test_figures_are_drawn_in_one_place_and_by_no_window():
    """Nothing but `plots` imports matplotlib, and that not its global state."""
    found = {
        p.relative_to(ROOT): p.read_text() for package in ("equijax", "convert") for p in (ROOT / package).rglob("*.py")
    }
    assert [str(p) for p, text in found.items() if "matplotlib" in text] == ["equijax/plots.py"]
    assert "pyplot" not in found[Path("equijax/plots.py")]


def unprotected(path: Path) -> list[str]:
    """Calls that make a file outside of `with files.beside(...)`."""
    found = []

    def look(node, inside):
        if isinstance(node, ast.With):
            inside = inside or any("outputs.beside(" in ast.unparse(item) for item in node.items)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name) and not inside:
            name = ast.unparse(node.func)
            writes = name.endswith("open") and any(getattr(a, "value", None) in ("w", "wb", "a") for a in node.args)
            method = isinstance(node.func, ast.Attribute) and node.func.attr in MAKERS and name not in WHOLE
            if method or name == "ase.io.write" or writes:
                found.append(f"{path.name}:{node.lineno} {name}")
        for child in ast.iter_child_nodes(node):
            look(child, inside)

    look(ast.parse(path.read_text()), False)
    return found


def test_every_program_writes_beside_and_renames():
    modules = [p for p in (ROOT / "equijax").rglob("*.py") if p.stem not in OWN_WAY]
    assert len(modules) > 30 and [line for path in modules for line in unprotected(path)] == []


def test_a_record_that_does_not_fit_is_not_there_at_all(tmp_path):
    with outputs.open_at(tmp_path / "log", None) as log:
        outputs.append(log, b"first\n")
        with full_disk(10), pytest.raises(OSError, match="too large"):
            outputs.append(log, b"second\n")
        outputs.append(log, b"third\n")
    assert (tmp_path / "log").read_bytes() == b"first\nthird\n"


def test_a_frame_that_does_not_fit_is_not_there_at_all(tmp_path):
    atoms = ase.build.bulk("Al")
    frames = files.Extxyz(tmp_path / "trajectory.extxyz", atoms)
    frames.write(0, 0.0, atoms, energy=1.0, forces=np.zeros((1, 3)))
    size = frames.mark()
    with full_disk(size + 100), pytest.raises(OSError, match="too large"):
        frames.write(1, 1.0, atoms, energy=1.0, forces=np.zeros((1, 3)))
    assert frames.mark() == size == (tmp_path / "trajectory.extxyz").stat().st_size
    frames.close()


@pytest.mark.parametrize("writer", [files.Extxyz, files.HDF5])
def test_a_trajectory_that_lost_frames_is_refused(tmp_path, writer):
    atoms, path = ase.build.bulk("Al"), tmp_path / "trajectory"
    frames = writer(path, atoms)
    for step in range(2):
        frames.write(step, 0.0, atoms, energy=1.0, forces=np.zeros((1, 3)))
    mark = frames.mark()
    frames.close()
    with pytest.raises(ValueError, match="trajectory.* where the run to be continued had written"):
        writer(path, atoms, mark + 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="put it back"):
        writer(path, atoms, mark)
    path.unlink()
    with pytest.raises(ValueError, match="put it back"):
        writer(path, atoms, mark)


def test_a_lock_refuses_a_second_and_leaves_nothing(tmp_path):
    out = tmp_path / "deep" / "out"
    with outputs.lock(out):
        with pytest.raises(FileExistsError, match="out is in use by another run: wait for it"), outputs.lock(out):
            pass
        assert out.is_dir()
    assert not list(tmp_path.iterdir())
    with outputs.lock(out):
        (out / "result").touch()
    assert [p.name for p in out.iterdir()] == ["result"]
    (out / outputs.LOCK).touch()  # of a killed process
    with outputs.lock(out):
        pass
    assert [p.name for p in out.iterdir()] == ["result"]


ARGUMENTS = {
    "demo": (),
    "evaluate": ("--data", "data.extxyz", "--model", "m"),
    "expansion": ("POSCAR", "--model", "m", "--supercell", 2, 2, 2),
    "finetune": ("--model", "m", "--train", "data.extxyz"),
    "kappa": ("POSCAR", "--model", "m", "--supercell", 2, 2, 2),
    "md": ("POSCAR", "--model", "m"),
    "modes": ("POSCAR", "--model", "m"),
    "phonons": ("POSCAR", "--model", "m", "--supercell", 2, 2, 2),
    "rattle": ("--structure", "POSCAR"),
    "screen": ("POSCAR", "--model", "m"),
    "select": ("candidates.extxyz", "--model", "m"),
}


def test_every_command_has_its_arguments_here():
    assert set(__main__.COMMANDS) == {*ARGUMENTS, "adapters"}  # adapters merge writes a model: `checkpoint.save`


@pytest.mark.parametrize("command", ARGUMENTS)
def test_two_runs_of_one_folder(tmp_path, capsys, command):
    """The second is refused before it reads anything: its inputs do not exist."""
    argv = [str(x) for x in (*ARGUMENTS[command], "--out", tmp_path / "out")]
    told = ""
    with outputs.lock(tmp_path / "out"):
        try:
            assert importlib.import_module(f"equijax.programs.{command}").main(argv) == 2
        except (SystemExit, FileExistsError) as refusal:
            told = str(refusal)
    assert "out is in use by another run" in told + capsys.readouterr().err


@dataclass
class Option:
    path: Path


def test_json_of_what_it_has_no_type_for(tmp_path):
    document = {"array": np.arange(3), "number": np.float64(0.5), "options": Option(Path("a/b"))}
    outputs.write_json(tmp_path / "a.json", document)
    expected = {"array": [0, 1, 2], "number": 0.5, "options": {"path": "a/b"}}
    assert json.loads((tmp_path / "a.json").read_text()) == expected
    with pytest.raises(TypeError, match="of type set cannot be written as JSON"):
        outputs.write_json(tmp_path / "a.json", {1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        outputs.write_json(tmp_path / "a.json", {"x": float("nan")}, allow_nan=False)
    assert json.loads((tmp_path / "a.json").read_text()) == expected
