"""The pickle machine: plain data, hostile names, broken streams. No torch."""

import io
import os
import pickle
import random
import struct
import subprocess
import zipfile

import pytest

from convert import archive, unpickle
from convert.errors import Budget, UnreadableModel
from convert.records import Global, Instance
from convert.torch_model import flatten
from convert.unpickle import interpret
from tests.convert.samples import MINI, raw


def no_storage(pid):
    raise UnreadableModel("no storages here")


def read(stream: bytes):
    return interpret(stream, no_storage, builders={})


class Call:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


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
        interpret(raw(b"}" * 2000), no_storage, builders={}, budget=budget)


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
                flatten(interpret(bytes(data), storages.load, builders=archive._BUILDERS))
                outcomes.add("read")
            except UnreadableModel as error:
                outcomes.add("refused")
                assert len(str(error)) < 1500
    assert outcomes == {"read", "refused"}
