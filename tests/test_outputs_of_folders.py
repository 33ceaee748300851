"""Folders and files appear whole or not at all, whatever interrupts the writer; what is not ours is left alone."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from equijax import checkpoint, outputs, testing
from equijax import outputs as folders
from equijax.adapters import files, lora
from tests.samples import SMALL, tree

ROOT = Path(__file__).resolve().parents[1]


BOX = outputs.Kind("a box", "config.json", frozenset({"box"}), frozenset({"config.json", "content"}))


@pytest.fixture(scope="module")
def ff():
    return testing.random_forcefield(testing.random_config(**SMALL))


def save_model(path, ff):
    return checkpoint.save(path, ff.config, variables=ff.variables, metadata={})


def save_adapter(path, ff):
    start = lora.init_lora(ff.variables["params"], 1, alpha=1, targets=(".*",))
    return files.save(path, start, base=ff)


SAVERS = {"model": (save_model, "config.json"), "adapter": (save_adapter, "adapter.json")}


def foreign(name: str, path: Path, document: str) -> None:
    """Folders that hold something of a user's."""
    if name == "notes":
        (path / "notes.txt").write_text("years of work")
    elif name == "hidden":
        (path / ".git").mkdir()
    elif name == "other json":
        (path / document).write_text('{"model_type": "bert"}')
    elif name == "no json":
        (path / document).write_text("key = value")
    elif name == "json folder":
        (path / document).unlink()
        (path / document).mkdir()
    elif name == "their config":
        for entry in path.iterdir():
            entry.rename(path.parent / f"gone-{entry.name}")
        (path / document).write_text('{"format": 1, "config": {}, "metadata": {}}')
        (path / "data.csv").write_text("1,2,3")


@pytest.mark.parametrize("case", ["notes", "hidden", "other json", "no json", "json folder", "their config"])
@pytest.mark.parametrize("kind", SAVERS)
def test_folders_with_anything_else_are_refused_and_kept(ff, tmp_path, kind, case):
    save, document = SAVERS[kind]
    save(tmp_path / "out", ff)
    foreign(case, tmp_path / "out", document)
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="refusing to replace .*out: it is not an"):
        save(tmp_path / "out", ff)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", SAVERS)
def test_files_are_refused_and_ours_and_empty_folders_replaced(ff, tmp_path, kind):
    save, document = SAVERS[kind]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="refusing to replace"):
        save(tmp_path / "file", ff)
    (tmp_path / "out").mkdir()
    os.symlink("out", tmp_path / "link")
    for path in ("out", "out", "link"):
        assert save(tmp_path / path, ff) == tmp_path / path
        assert (tmp_path / "out" / document).is_file() and (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link", "out"]


@pytest.mark.parametrize("kind", SAVERS)
def test_the_waiting_place_of_an_earlier_folder_is_no_rubbish_bin(ff, tmp_path, kind):
    save, _ = SAVERS[kind]
    save(tmp_path / "out", ff)
    (tmp_path / ".out.previous").mkdir()
    (tmp_path / ".out.previous" / "notes.txt").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"refusing to replace .*\.out\.previous"):
        save(tmp_path / "out", ff)
    assert tree(tmp_path) == before


class Cut(BaseException):
    """A crash: no handler of the program sees it."""


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_at_every_step_of_a_replacement_one_of_the_two_loads(ff, tmp_path, monkeypatch, kind, after):
    save, _ = SAVERS[kind]
    save(tmp_path / "out", ff)
    renames = []

    def rename(old, new):
        if len(renames) == after:
            raise Cut
        renames.append(os.replace(old, new))

    # in this module alone: orbax renames too; and nothing is tidied up
    monkeypatch.setattr(folders, "os", SimpleNamespace(path=os.path, rename=rename))
    monkeypatch.setattr(folders, "shutil", SimpleNamespace(rmtree=lambda path, ignore_errors: None))
    try:
        save(tmp_path / "out", ff)
    except Cut:
        assert after < 3
    monkeypatch.undo()
    assert (tmp_path / "out").exists() == (after != 1)
    for _ in range(2):  # as it was left, and after the next replacement
        if kind == "model":
            np.testing.assert_equal(checkpoint.load(tmp_path / "out")[1], jax.tree.map(np.asarray, ff.variables))
        else:
            files.load(tmp_path / "out", ff)
        save(tmp_path / "out", ff)
        assert not (tmp_path / ".out.previous").exists()


def test_a_cut_while_the_earlier_folder_is_removed_does_no_harm(ff, tmp_path, monkeypatch):
    save_model(tmp_path / "out", ff)

    def half(path, ignore_errors):
        if (document := Path(path) / "config.json").exists():  # only once, and nothing is tidied up after that
            document.unlink()
            monkeypatch.undo()
            monkeypatch.setattr(folders, "shutil", SimpleNamespace(rmtree=lambda path, ignore_errors: None))
            raise Cut

    monkeypatch.setattr(folders, "shutil", SimpleNamespace(rmtree=half))
    with pytest.raises(Cut):
        save_model(tmp_path / "out", ff)
    monkeypatch.undo()
    save_model(tmp_path / "out", ff)
    assert not (tmp_path / ".out.previous").exists()
    checkpoint.load(tmp_path / "out")


# Replaces a folder for ever; loaded by its path, so that it starts in a moment.
WRITER = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("folders", sys.argv[1])
folders = importlib.util.module_from_spec(spec)
sys.modules["folders"] = folders
spec.loader.exec_module(folders)
box = folders.Kind("a box", "config.json", frozenset({"box"}), frozenset({"config.json", "content"}))
number = int(sys.argv[3])
while True:
    number += 1
    with folders.replaced(sys.argv[2], box) as beside:
        (beside / "content").write_text(str(number) * 1000)
        (beside / "config.json").write_text(json.dumps({"box": number}))
    print(number, flush=True)
"""


def test_killed_at_any_moment_the_old_or_the_new_folder_is_there(tmp_path):
    """SIGKILL at random moments of a writer that does nothing but replace; no replacement that was done is lost."""
    rng, path, seen = np.random.default_rng(0), tmp_path / "box", 0
    for _ in range(25):
        command = [sys.executable, "-c", WRITER, outputs.__file__, str(path), str(seen)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            done = int(writer.stdout.readline())
            time.sleep(rng.uniform(0, 0.02))
            writer.send_signal(signal.SIGKILL)
            done = max([done, *(int(line) for line in writer.stdout.read().split("\n")[:-1])])
        found = outputs.present(path)
        seen = json.loads((found / "config.json").read_text())["box"]
        assert seen >= done and (found / "content").read_text() == str(seen) * 1000 and BOX.owns(found)


SAVES = """
import sys
from equijax import checkpoint
config, variables, metadata = checkpoint.load(sys.argv[1])
while True:
    checkpoint.save(sys.argv[1], config, variables=variables, metadata=metadata)
    print("saved", flush=True)
"""


def test_a_checkpoint_survives_sigkill(ff, tmp_path):
    save_model(tmp_path / "model", ff)
    rng = np.random.default_rng(1)
    with subprocess.Popen(
        [sys.executable, "-c", SAVES, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "saved\n"
        time.sleep(rng.uniform(0, 0.3))
        writer.send_signal(signal.SIGKILL)
    np.testing.assert_equal(checkpoint.load(tmp_path / "model")[1], jax.tree.map(np.asarray, ff.variables))


@pytest.fixture
def little_room():
    """No file can grow beyond 2 kB, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", SAVERS)
def test_a_full_disk_leaves_what_was_there(ff, tmp_path, kind, little_room, request, capfd):
    save, _ = SAVERS[kind]
    with pytest.raises(OSError, match="File too large"):
        save(tmp_path / "new", ff)
    assert not list(tmp_path.iterdir()) and not capfd.readouterr().err
