"""The zip container: storages, tensors, other files, damaged bytes. No torch."""

import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from convert import archive
from convert.errors import UnreadableModel, UnsupportedModel
from convert.records import Global
from convert.torch_model import read_model
from tests.convert.samples import MINI, raw, write_zip


def entries_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


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
