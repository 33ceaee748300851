"""How programs end: what a user can mend is one line and status 2, whatever the program; bugs keep their traceback."""

import errno
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from equijax import __main__, checkpoint, structures, testing
from equijax.errors import InputError, MissingExtra, NotFinite
from equijax.finetune import trainer
from equijax.programs import runner
from tests.samples import SMALL

ROOT = Path(__file__).resolve().parents[2]
# What each program is called with; STRUCTURE, MODEL and OUT stand for files, and bad ones take their place.
CALLS = {
    "adapters": "merge STRUCTURE --model MODEL --out OUT",
    "demo": "--model STRUCTURE --out OUT",
    "evaluate": "--model MODEL --data STRUCTURE --out OUT",
    "expansion": "STRUCTURE --model MODEL --supercell 1 1 1 --out OUT",
    "finetune": "--model MODEL --train STRUCTURE --out OUT",
    "kappa": "STRUCTURE --model MODEL --supercell 1 1 1 --out OUT",
    "md": "STRUCTURE --model MODEL --out OUT",
    "modes": "STRUCTURE --model MODEL --out OUT",
    "phonons": "STRUCTURE --model MODEL --supercell 1 1 1 --out OUT",
    "rattle": "--structure STRUCTURE --model MODEL --out OUT --candidates 1 --number 1",
    "select": "STRUCTURE --model MODEL --out OUT --count 1",
    "convert": "STRUCTURE OUT",
}
APART = {"screen"}  # asks for its extra first: tests/integrations/test_screen.py
WITH_MODEL = [name for name, call in CALLS.items() if "MODEL" in call]
READING = sorted(set(WITH_MODEL) - {"adapters"})  # of structures


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """model/ of Na and Cl, salt.extxyz (labelled), unknown.extxyz (an element it lacks), and what cannot be read."""
    folder = tmp_path_factory.mktemp("inputs")
    ff = testing.random_forcefield(testing.random_config(**SMALL))
    checkpoint.save(folder / "model", ff.config, variables=ff.variables, metadata={})
    for name, atoms in {"salt": bulk("NaCl", "rocksalt", 5.6), "unknown": bulk("KCl", "rocksalt", 6.3)}.items():
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((2, 3)), stress=np.full(6, 1e-3))
        ase.io.write(folder / f"{name}.extxyz", [atoms] * 4)
    (folder / "garbage.extxyz").write_text("3\nnothing\nat all\n")
    (folder / "garbage.cif").write_bytes(bytes(range(256)))
    (folder / "empty.vasp").write_text("")
    (folder / "folder").mkdir()
    for name, content in {"no_json": "key = value", "foreign": '{"a": 1}', "list": "[1]"}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(content)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_bytes((folder / "model" / "config.json").read_bytes())
    return folder


def main_of(name: str):
    return importlib.import_module("convert.__main__" if name == "convert" else f"equijax.programs.{name}").main


def arguments(name: str, files: Path, out: Path, structure: str = "salt.extxyz", model: str = "model") -> list[str]:
    stand_for = {"STRUCTURE": str(files / structure), "MODEL": str(files / model), "OUT": str(out)}
    return [stand_for.get(word, word) for word in CALLS[name].split()]


def one_line(capfd) -> str:
    """What was said on standard error, which must be one line."""
    said = capfd.readouterr().err
    assert said.endswith("\n") and said.count("\n") == 1, said
    return said


def test_every_program_is_here():
    assert {*CALLS} | APART == {*__main__.COMMANDS, "convert"}


@pytest.mark.parametrize("model", ["none", "folder", "no_json", "foreign", "list", "damaged", "salt.extxyz"])
@pytest.mark.parametrize("name", WITH_MODEL)
def test_no_model_there(name, model, files, tmp_path, capfd):
    assert main_of(name)(arguments(name, files, tmp_path / "out", model=model)) == 2
    assert str(files / model) in one_line(capfd) or name == "adapters"


@pytest.mark.parametrize("structure", ["none.extxyz", "garbage.extxyz", "garbage.cif", "empty.vasp", "folder"])
@pytest.mark.parametrize("name", sorted({*CALLS} - {"demo"}))
def test_no_structure_there(name, structure, files, tmp_path, capfd):
    assert main_of(name)(arguments(name, files, tmp_path / "out", structure)) == 2
    assert structure in one_line(capfd)


def test_the_demo_hands_on_what_the_converter_says(files, tmp_path, capfd):
    with pytest.raises(SystemExit, match="2"):
        main_of("demo")(arguments("demo", files, tmp_path / "out", "garbage.cif"))
    assert "garbage.cif" in one_line(capfd)


@pytest.mark.parametrize("name", READING)
def test_an_element_the_model_lacks(name, files, tmp_path, capfd):
    assert main_of(name)(arguments(name, files, tmp_path / "out", "unknown.extxyz")) == 2
    said = one_line(capfd)
    assert "K" in said and said.startswith(f"equijax {name}: ")


@pytest.mark.parametrize("name", [*CALLS, "equijax"])
def test_an_unknown_option(name, files, tmp_path, capfd):
    if name == "equijax":
        assert __main__.main(["phonon"]) == 2
        assert "phonons" in one_line(capfd)
        return
    with pytest.raises(SystemExit) as ended:
        main_of(name)([*arguments(name, files, tmp_path / "out"), "--no-such-option", "1"])
    assert ended.value.code == 2 and "no-such-option" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [1", "neither JSON nor YAML"), ("learning_rate: 1", "unknown options"), ("- 1", "no mapping of names")],
)
@pytest.mark.parametrize("form", ["--config={}", "--config {}"])
def test_a_bad_file_of_options(files, tmp_path, capfd, content, message, form):
    (tmp_path / "run.yaml").write_text(content)
    argv = [*arguments("finetune", files, tmp_path / "out"), *form.format(tmp_path / "run.yaml").split()]
    assert main_of("finetune")(argv) == 2
    assert message in one_line(capfd)


def library(argv):
    np.zeros(3) + np.zeros(2)


def jitted(argv):
    import jax

    jax.jit(lambda x: x.reshape(7))(np.zeros(3))


def raises(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("mesh 0: expected\n  a positive number"), "mesh 0: expected a positive number"),
        (MissingExtra("needs x"), "needs x"),
        (NotFinite("not finite"), "not finite"),
        (MemoryError("1 TB"), "1 TB"),
        (MemoryError(), "MemoryError"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device", "a.csv"), "a.csv: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a.csv"), "a.csv: Permission denied"),
        (FileNotFoundError("no file a"), "no file a"),
    ],
)
def test_what_a_user_can_mend(error, said, capfd):
    assert runner.program("equijax x")(raises(error))([]) == 2
    assert one_line(capfd) == f"equijax x: {said}\n"


BUGS = [TypeError, KeyError, IndexError, AssertionError, RuntimeError, ZeroDivisionError]


@pytest.mark.parametrize("error", [*BUGS, ValueError, ImportError, FloatingPointError])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(error, match="bug"):
        runner.program("equijax x")(raises(error("bug")))([])


@pytest.mark.parametrize("main", [library, jitted])
def test_errors_of_libraries_are_bugs(main):
    with pytest.raises((ValueError, TypeError)):
        runner.program("equijax x")(main)([])


def test_ctrl_c_is_one_line_and_the_next_one_silent(capfd):
    before = signal.getsignal(signal.SIGINT)
    try:
        assert runner.program("equijax x")(raises(KeyboardInterrupt))([]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    assert one_line(capfd) == "equijax x: interrupted\n"


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    before = signal.getsignal(signal.SIGINT)  # ignored in a job that a shell put in the background
    with pytest.raises(KeyboardInterrupt), trainer.stop_signal() as stopped:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was not heeded")
    assert signal.getsignal(signal.SIGINT) is before


# No file may grow beyond so many bytes: what a full disk is to a program.
FULL = """
import resource, sys
from equijax import {module} as program
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
sys.exit(program.main())
"""


@pytest.mark.parametrize("name", ["evaluate", "rattle"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(name, files, tmp_path):
    model = str(files / "model")
    script = FULL.format(module=name, size=600)
    argv = [a for a in arguments(name, files, tmp_path / "out") if name == "evaluate" or a not in ("--model", model)]
    done = subprocess.run(
        [sys.executable, "-c", script, *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("equijax")]
    assert done.returncode == 2 and len(lines) == 1 and "File too large" in lines[0], done.stderr
    assert "Traceback" not in done.stderr
    left = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]  # a half-written one would have 600 bytes
    assert all(p.stat().st_size < 600 and not p.name.startswith(".") for p in left), left
    assert not (tmp_path / "out" / "report.json").exists()


def test_the_one_reader_names_what_it_cannot_read(files):
    assert len(structures.read_all(files / "salt.extxyz")) == 4
    assert isinstance(structures.read(files / "salt.extxyz"), ase.Atoms)
    with pytest.raises(ValueError, match="garbage.cif: ASE cannot read it"):
        structures.read(files / "garbage.cif")
