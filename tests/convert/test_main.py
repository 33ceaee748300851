"""The command line: what it writes, what it refuses and how it says so. No torch."""

import importlib.util
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from convert import download
from convert.__main__ import main
from convert.download import ChecksumWarning
from equijax import checkpoint
from tests.convert.samples import MINI


def test_convert_writes_a_checkpoint_with_its_provenance(tmp_path, capsys):
    out = tmp_path / "deep" / "model"
    assert main([str(MINI), str(out)]) == 0
    assert "33 elements" in capsys.readouterr().out
    config, variables, metadata = checkpoint.load(out)
    assert config.species[0] == 3 and variables["params"]["node_embedding"].dtype == np.float32
    assert metadata["source"] == "mini.model" and metadata["sha256"] == download.sha256_of(MINI)
    assert (metadata["source_dtype"], metadata["dtype"]) == ("float32", "float32")
    assert [p.name for p in out.parent.iterdir()] == ["model"]


def test_dtype_and_replacing_a_checkpoint(tmp_path):
    for dtype in ("float32", "float64"):
        assert main([str(MINI), str(tmp_path / "model"), "--dtype", dtype]) == 0
        _, variables, metadata = checkpoint.load(tmp_path / "model")
        assert variables["params"]["node_embedding"].dtype == dtype == metadata["dtype"]


def test_dispersion_is_stored_with_the_model(tmp_path, capsys):
    pytest.importorskip("torch_dftd", reason="needs the d3 extra")
    assert main([str(MINI), str(tmp_path / "model"), "--dispersion", "pbe"]) == 0
    assert "with D3(BJ) of pbe" in capsys.readouterr().out
    config, variables, _ = checkpoint.load(tmp_path / "model")
    assert config.dispersion is not None and config.dispersion.a2 == 4.4407
    assert variables["constants"]["dispersion"]["c6"].shape == (33, 33, 5, 5)
    assert main([str(MINI), str(tmp_path / "other"), "--dispersion", "mine"]) == 2
    assert "functional 'mine'" in capsys.readouterr().err and not (tmp_path / "other").exists()


@pytest.mark.parametrize("source", ["mace-mp-0b3-medium", "medium-0b3", "mace-mp-0b3-medium.model", "the file"])
def test_published_name_is_converted_from_the_cache(tmp_path, monkeypatch, capsys, source):
    monkeypatch.setattr(download, "cache_directory", lambda: tmp_path)
    file = tmp_path / download.PUBLISHED["mace-mp-0b3-medium"].filename
    file.write_bytes(MINI.read_bytes())
    source = str(file) if source == "the file" else source
    with pytest.warns(ChecksumWarning, match="THIS IS NOT THE FILE"):
        assert main([source, str(tmp_path / "model")]) == 0
    assert checkpoint.load(tmp_path / "model")[2]["source"] == "mace-mp-0b3-medium.model"
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("mace") is None:
        return  # --verify is refused for want of them: test_runner
    with pytest.warns(ChecksumWarning):  # again, and torch never sees it
        assert main([source, str(tmp_path / "verified"), "--verify"]) == 2
    assert "whose checksum failed" in capsys.readouterr().err and not (tmp_path / "verified").exists()


def test_list(capsys):
    assert main(["--list"]) == 0
    assert "mace-mp-0b3-medium" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--list"], ["--help"], [], ["missing.model", "out"], ["mace-omat-0-small", "out"], ["mini", "folder"]],
)
def test_answers_that_need_no_jax_come_without_it(tmp_path, arguments):
    """And so within a fraction of a second."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").touch()
    code = """if True:
        import sys
        from convert.__main__ import main
        try:
            main(sys.argv[1:])
        except SystemExit:
            pass
        print("imported:", sorted({m.split(".")[0] for m in sys.modules} & {"jax", "flax", "torch", "scipy", "ase"}))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "imported: []" and "Traceback" not in done.stderr


class Evil:
    def __reduce__(self):
        return os.system, ("touch MARK",)


@pytest.mark.parametrize(
    ("content", "message"),
    [(pickle.dumps({"a": 1}, 2), "a dict with keys 'a'"), (pickle.dumps(Evil(), 2), "system"), (b"cut", "broken")],
)
def test_hostile_and_foreign_files(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("x.model", "w") as file:
        file.writestr("a/data.pkl", content)
    assert main(["x.model", "out"]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["x.model"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give SOURCE and OUT"),
        (["missing.model", "out"], "there is no file missing.model"),
        (["mace-mp-0b3-medum", "out"], "perhaps mace-mp-0b3-medium, "),
        (["mace-omat-0-small", "out"], "--accept-licence"),
        (["folder", "out"], "is a directory"),
        ([str(MINI), "folder"], "refusing to replace folder: it is not an equijax model directory alone"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"format": 1}')
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_unknown_options_are_errors(capsys):
    with pytest.raises(SystemExit):
        main([str(MINI), "out", "--verifi"])
    assert "verif" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--to-torch", "ckpt", "out.model"], [str(MINI), "model", "--verify"]])
def test_what_needs_torch_says_so(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    for name in ("torch", "mace", "mace.calculators"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("convert.to_torch", "convert.verify"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(arguments) == 2
    assert "equijax[parity]" in capsys.readouterr().err and not list(tmp_path.iterdir())
