"""Reading torch files: the shipped model, hostile pickles, damaged containers, fuzzing. No torch anywhere."""

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from convert import archive, unpickle
from convert.errors import Budget, UnreadableModel, UnsupportedModel
from convert.records import Global, Instance
from convert.torch_model import flatten, read_model
from convert.unpickle import interpret

MINI = Path(str(resources.files("equijax"))) / "assets" / "mini.model"


def no_storage(pid):
    raise UnreadableModel("no storages here")


def read(stream: bytes):
    return interpret(stream, no_storage, {})


def write_zip(path: Path, entries: dict[str, bytes], compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def entries_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


class Call:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def test_shipped_model_is_read():
    model = read_model(MINI)
    assert model.classes[""] == "mace.modules.models.ScaleShiftMACE"
    assert model.tensors["products.0.symmetric_contractions.contractions.1.U_matrix_3"].shape == (3, 16, 16, 16, 51)
    assert "interactions.0.linear_up.weight" in model.parameters and "r_max" not in model.parameters
    assert model.attributes["interactions.1.conv_tp.irreps_out"].startswith("24x0e+24x0e+24x1o")
    assert model.attributes["readouts.1.non_linearity.acts.0.f"] == "torch.nn.functional.silu"
    np.testing.assert_allclose(model.tensors["r_max"], 5.0)


def test_reading_imports_nothing_of_the_file():
    code = """if True:
        import sys
        from pathlib import Path
        from convert.torch_model import read_model
        read_model(Path(sys.argv[1]))
        print(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "mace", "e3nn", "opt_einsum_fx", "jax"}))
    """
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(MINI)], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_round_trips(protocol):
    value = {"a": [1, 2.5, None, True, "text", b"bytes", (), (1,), (1, 2, 3, 4)], 7: {"nested": [[]]}, "big": 1 << 70}
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (Call(os.system, "touch MARK"), "system"),
        (Call(eval, "open('MARK', 'w')"), "eval"),
        (Call(exec, "open('MARK', 'w')"), "exec"),
        (Call(getattr, "x", "upper"), "getattr"),
        (Call(subprocess.call, ["touch", "MARK"]), r"\.call"),
        (Call(open, "MARK", "w"), "open"),
        (Call(__import__, "os"), "__import__"),
        ([Call(Call, Call(os.system, "touch MARK"))], "Call"),
    ],
)
def test_hostile_names_are_refused_by_name(payload, name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreadableModel, match=name):
        read(pickle.dumps(payload, protocol))
    assert not list(tmp_path.iterdir())


def raw(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


TORCH_LOAD = b"ctorch.hub\nload\n"


def test_calls_into_allowed_packages_become_inert_data():
    for stream in (raw(TORCH_LOAD, b"X\x01\x00\x00\x00a\x85R"), raw(TORCH_LOAD, b"X\x01\x00\x00\x00a\x85\x81")):
        value = read(stream)
        assert isinstance(value, Instance) and value.cls == "torch.hub.load" and value.args == ("a",)
    assert read(raw(TORCH_LOAD)) == Global("torch.hub", "load")


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (raw(TORCH_LOAD, b")R)R"), "call of something that is not a named"),  # calls the result of a call
        (raw(TORCH_LOAD, b"]R"), "not a tuple"),
        (raw(b"(", TORCH_LOAD, b"o"), "OBJ"),
        (raw(b"(itorch\nload\n"), "INST"),
        (raw(b"\x82\x01"), "EXT1"),
        (raw(b"S'text'\n"), "STRING"),
        (raw(b"\x96" + struct.pack("<Q", 1 << 60)), "broken stream"),  # BYTEARRAY8 of 2^60 bytes
        (raw(b"X\xff\xff\xff\x7fabc"), "broken stream"),
        (raw(b"\x8b\xff\xff\xff\x7f"), "broken stream"),
        (raw(b"h\x05"), "memo entry 5"),
        (raw(b"K\x01K\x02s"), "stack"),
        (raw(b"e"), "mark"),
        (raw(), "stack"),
        (b"\x80\x02N", "broken stream"),
        (b"", "broken stream"),
        (raw(b"K\x01K\x02b"), "state set on 1"),
        (raw(b"K\x01", b"K\x02a"), "appended to 1"),
        (raw(b"}K\x01\x85\x85\x85K\x02s"), "used as a key"),
        (raw(b"\x93"), "stack"),
        (raw(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00rot\x86R"), "encoding"),
        (raw(b"ccollections\nOrderedDict\nK\x01\x85R"), "OrderedDict"),
        (raw(b"cmace\\\nx\\y\n"), "broken stream"),
    ],
)
def test_broken_streams_are_refused(stream, message):
    with pytest.raises(UnreadableModel, match=message):
        read(stream)


def test_memo_index_does_not_allocate():
    assert read(raw(b"K\x07r\xff\xff\xff\xff")) == 7


def test_instructions_count_against_the_budget():
    budget = Budget()
    budget.left = 1000 * unpickle.OPCODE_BYTES
    with pytest.raises(UnreadableModel, match="needs more than"):
        interpret(raw(b"}" * 2000), no_storage, {}, budget)


def test_shared_module_tree_does_not_unfold_exponentially():
    """30 levels of a module that holds its child twice: 2^30 names."""
    module = Instance("torch.nn.Module", (), {"_modules": {}})
    for _ in range(30):
        module = Instance("torch.nn.Module", (), {"_modules": {"a": module, "b": module}})
    with pytest.raises(UnreadableModel, match="needs more than"):
        flatten(module)


def test_module_that_contains_itself_is_refused():
    module = Instance("torch.nn.Module", (), {})
    module.state["_modules"] = {"a": module}
    with pytest.raises(UnreadableModel, match="module tree"):
        flatten(module)


FLOATS = Global("torch", "FloatStorage")


@pytest.fixture(scope="module")
def storages(tmp_path_factory):
    data = {"m/data.pkl": b"", "m/data/0": np.arange(6, dtype="<f4").tobytes(), "m/data/1": b"123"}
    path = write_zip(tmp_path_factory.mktemp("zip") / "s.zip", data)
    file = zipfile.ZipFile(path)
    yield archive._Storages(file, archive._entries(file), "m/", "<")
    file.close()


def test_strided_tensor(storages):
    storage = storages.load(("storage", FLOATS, "0", "cpu", 6))
    tensor = archive._rebuild_tensor(storage, 1, (2, 2), (1, 2))
    np.testing.assert_array_equal(tensor.array, [[1, 3], [2, 4]])
    assert not tensor.array.flags.writeable


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (7,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (5, (2,), (1,)),
        (0, (2,), (2**50,)),
        (True, (1,), (1,)),
        (0, (1,) * 17, (1,) * 17),
        (0, [2], [1]),
    ],
)
def test_tensor_outside_its_storage_is_refused(storages, offset, size, stride):
    with pytest.raises(UnreadableModel, match="tensor"):
        archive._rebuild_tensor(storages.load(("storage", FLOATS, "0", "cpu", 6)), offset, size, stride)


def test_storage_is_shared_whatever_its_device(storages):
    """Files saved on a GPU name their device; tensors may share a storage."""
    first, second = (storages.load(("storage", FLOATS, "0", place, 6)) for place in ("cpu", "cuda:3"))
    assert first is second


def test_half_precision_is_read_exactly(tmp_path):
    """bfloat16 is the upper half of a float32; numpy has no such type."""
    values = np.array([1.5, -2.0, 3.0e38, 2.0**-130, 0.0], np.float32)
    brain = (values.view(np.uint32) >> 16).astype("<u2")
    data = {"m/data.pkl": b"", "m/data/0": brain.tobytes(), "m/data/1": values[:2].astype("<f2").tobytes()}
    with zipfile.ZipFile(write_zip(tmp_path / "s.zip", data)) as file:
        reader = archive._Storages(file, archive._entries(file), "m/", "<")
        found = reader.load(("storage", Global("torch", "BFloat16Storage"), "0", "cpu", 5))
        half = reader.load(("storage", Global("torch", "HalfStorage"), "1", "cpu", 2))
    np.testing.assert_array_equal(found, (brain.astype(np.uint32) << 16).view(np.float32))
    assert found[0] == 1.5 and half.tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("pid", "message"),
    [
        (("storage", FLOATS, "0", "cpu", 5), "holds 6 elements"),
        (("storage", FLOATS, "1", "cpu", 0), "divide"),
        (("storage", FLOATS, "9", "cpu", 1), "missing"),
        (("storage", FLOATS, "../data.pkl", "cpu", 1), "missing"),
        (("storage", Global("torch", "QInt8Storage"), "0", "cpu", 6), "QInt8Storage"),
        (("storage", FLOATS, "0", "cpu", -1), "size -1"),
        ("module", "persistent id"),
    ],
)
def test_storage_claims_are_checked(storages, pid, message):
    with pytest.raises(UnreadableModel, match=message):
        storages.load(pid)


def test_big_endian_file(tmp_path):
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nDoubleStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89NtR"
    )
    entries = {"m/data.pkl": raw(tensor), "m/data/0": np.array([1.5, 2.5], ">f8").tobytes(), "m/byteorder": b"big"}
    value = archive.read_archive(write_zip(tmp_path / "big.model", entries))
    assert isinstance(value, archive.Tensor) and value.array.tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (pickle.dumps({}, 2), "bare pickle"),
        (b"\x89HDF\r\n", "not a torch"),
        (b"PK\x03\x04 cut", "truncated or corrupt"),
    ],
)
def test_other_files_are_described(tmp_path, content, message):
    path = tmp_path / "x.model"
    path.write_bytes(content)
    with pytest.raises(UnreadableModel, match=message):
        read_model(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a.txt": b"hello"}, "found 0"),
        ({"a/data.pkl": b"", "b/data.pkl": b""}, "found 2"),
        ({"a/data.pkl": pickle.dumps({"model": 1, "optimizer": 2}, 2)}, "training checkpoint"),
        ({"a/data.pkl": pickle.dumps([1], 2)}, "a list"),
        ({"a/data.pkl": b"", "a/constants.pkl": b"", "a/code/x.py": b""}, "TorchScript"),
        ({"a/data.pkl": pickle.dumps([1], 2), "a/byteorder": b"middle"}, "byteorder"),
    ],
)
def test_zip_files_that_are_no_models(tmp_path, entries, message):
    with pytest.raises((UnreadableModel, UnsupportedModel), match=message):
        read_model(write_zip(tmp_path / "x.model", entries))


def test_compressed_entries_are_refused(tmp_path):
    path = write_zip(tmp_path / "bomb.model", {"a/data.pkl": b"\x00" * 10_000_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnreadableModel, match="compressed"):
        read_model(path)


def test_missing_file_keeps_its_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "nothing.model")


def test_missing_entries_are_named(tmp_path):
    entries = entries_of(MINI)
    del entries["mini/data/27"]
    with pytest.raises(UnreadableModel, match="data/'27' is missing"):
        read_model(write_zip(tmp_path / "x.model", entries))


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_never_crash(tmp_path, seed):
    """Truncation and flips anywhere in the file: the model is read or refused, nothing else."""
    rng = random.Random(seed)
    data = bytearray(MINI.read_bytes())
    if seed % 4 == 0:
        data = data[: rng.randrange(len(data))]
    else:
        region = len(data) if seed % 4 == 1 else 9000 + 260_000 * (seed % 4 == 2)  # anywhere, pickle, zip directory
        for _ in range(rng.choice([1, 4, 64])):
            at = rng.randrange(region)
            data[at if seed % 4 < 3 else -1 - at] ^= 1 << rng.randrange(8)
    path = tmp_path / "x.model"
    path.write_bytes(data)
    try:
        read_model(path)
    except UnreadableModel as error:
        assert len(str(error)) < 1500


def test_damaged_pickle_never_crashes():
    """Flips inside the pickle with a consistent container around it, which checksums cannot catch."""
    with zipfile.ZipFile(io.BytesIO(MINI.read_bytes())) as file:
        pristine = file.read("mini/data.pkl")
        storages = archive._Storages(file, archive._entries(file), "mini/", "<")
        rng = random.Random(1)
        outcomes = set()
        for _ in range(60):
            data = bytearray(pristine)
            for _ in range(rng.choice([1, 1, 2, 8])):
                at = rng.randrange(len(data))
                data[at] = rng.randrange(256)
            try:
                flatten(interpret(bytes(data), storages.load, archive._BUILDERS))
                outcomes.add("read")
            except UnreadableModel as error:
                outcomes.add("refused")
                assert len(str(error)) < 1500
    assert outcomes == {"read", "refused"}
