"""Hostile files under 1 MB: refused in one line, and no memory worth a gigabyte is asked for. No torch."""

import json
import os
import pickletools
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert import archive, mapping
from convert.errors import Budget, UnreadableModel, UnsupportedModel
from convert.torch_model import flatten
from convert.unpickle import interpret

ROOT = Path(__file__).parents[2]
MODULE = b"cmace.modules.models\nMACE\n)R"  # an object without state
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x10tQK\x00%s\x89NtR"
)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def memo(index: int) -> bytes:
    """Keep the top of the stack and take it off."""
    return b"q" + bytes([index]) + b"0"


def get(index: int) -> bytes:
    return b"h" + bytes([index])


def numbered(count: int, value: bytes) -> bytes:
    """A dict of `count` names."""
    return b"}(" + b"".join(text(f"n{i}") + value for i in range(count)) + b"u"


def module(**state: bytes) -> bytes:
    """A torch module with the given parts of its state."""
    parts = {"_modules": b"}"} | state
    more = parts.pop("more", b"")  # a dict of further attributes
    own = b"}(" + b"".join(text(key) + value for key, value in parts.items()) + b"ub"
    return MODULE + (more + b"b" if more else b"") + own


def children(*names: str, child: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + child for name in names) + b"u"


def tree(leaf: bytes, levels: int, names: tuple[str, ...] = ("a", "b")) -> bytes:
    """A module that holds the same child under several names, `levels` deep."""
    stream = leaf + memo(9)
    for _ in range(levels):
        stream += module(_modules=children(*names, child=get(9))) + memo(9)
    return stream + get(9)


def expanded(elements: int) -> bytes:
    return TENSOR % (b"J" + struct.pack("<i", elements) + b"\x85K\x00\x85")


IRREPS = b"ce3nn.o3._irreps\nIrreps\n(%st\x85\x81"
IRREP = b"ce3nn.o3._irreps\n_MulIr\nK\x01ce3nn.o3._irreps\nIrrep\nK\x00K\x01\x86\x81\x86\x81"
PAIR = text("k") + b"N\x86"

# name -> pickle whose reading would unfold to gigabytes, or never end
HOSTILE: dict[str, bytes] = {
    "state copied to many objects": numbered(20_000, b"N") + memo(0) + b"]" + (MODULE + get(0) + b"ba") * 14_000,
    "state tuples copied": b"(" + b"K\x01" * 100_000 + b"t" + memo(0) + MODULE + (get(0) + b"b") * 200_000,
    "ordered dicts copied": b"("
    + PAIR * 20_000
    + b"l"
    + memo(0)
    + b"ccollections\nOrderedDict\n"
    + memo(1)
    + (get(1) + get(0) + b"\x85R") * 100_000,
    "sets copied": b"("
    + b"".join(b"M" + struct.pack("<H", i) for i in range(60_000))
    + b"l"
    + memo(0)
    + b"cbuiltins\nset\n"
    + memo(1)
    + (get(1) + get(0) + b"\x85R") * 100_000,
    "keywords copied": numbered(20_000, b"N")
    + memo(0)
    + b"cmace\nX\n"
    + memo(1)
    + (get(1) + b")" + get(0) + b"\x92") * 100_000,
    "bytes copied": text("a" * 400_000)
    + memo(0)
    + text("latin1")
    + memo(1)
    + b"c_codecs\nencode\n"
    + memo(2)
    + (get(2) + get(0) + get(1) + b"\x86R") * 70_000,
    "arguments copied": b"("
    + b"N" * 200_000
    + b"t"
    + memo(0)
    + b"ctorch\nSize\n"
    + memo(1)
    + (get(1) + get(0) + b"\x85R") * 100_000,
    "names grown by getattr": text("x" * 300_000)
    + memo(0)
    + b"cbuiltins\ngetattr\n"
    + memo(1)
    + b"ctorch\nX\n"
    + memo(2)
    + (get(1) + get(2) + get(0) + b"\x86R" + memo(2)) * 50_000,
    "long global names": text("torch." + "x" * 400_000) + memo(0) + (get(0) + get(0) + b"\x930") * 100_000,
    "long keys": b"(" + b"K\x01" * 100_000 + b"t" + memo(0) + b"}" + (get(0) + b"Ns") * 200_000,
    "large integer": b"\x8b" + struct.pack("<i", 900_000) + b"\x7f" * 900_000,
    "empty sets": b"\x8f" * 990_000,
    "empty dicts in memo": b"}\x94" * 100_000,
    "calls": MODULE[:-2] + memo(0) + (get(0) + b")R") * 200_000,
    "shared modules": tree(module(), 40),
    "shared tensors": expanded(16)
    + memo(1)
    + numbered(10_000, get(1))
    + memo(2)
    + tree(module(_parameters=get(2)), 20),
    "shared attributes": numbered(20_000, b"N") + memo(3) + tree(module(more=get(3)), 20),
    "shared lists": b"(" + b"N" * 300_000 + b"t" + memo(3) + tree(module(**{f"a{i}": get(3) for i in range(50)}), 20),
    "shared irreps": IRREP
    + memo(4)
    + IRREPS % (get(4) * 20_000)
    + memo(3)
    + tree(module(**{f"a{i}": get(3) for i in range(50)}), 12),
    "long names": numbered(200, b"N") + memo(3) + tree(module(more=get(3)), 48, ("a" * 200, "b" * 200)),
    "expanded tensors": expanded(2**20) + memo(1) + module(_buffers=numbered(10_000, get(1))),
    "expanded tensor": module(_buffers=numbered(1, expanded(2**30))),
    "module inside itself": module() + memo(1) + get(1) + b"}" + text("_modules") + children("a", child=get(1)) + b"sb",
    "module inside itself without a name": module()
    + memo(1)
    + get(1)
    + b"}"
    + text("_modules")
    + children("", child=get(1))
    + b"sb",
    "deep tuples": b")" + b"\x85" * 100_000,
    "deep lists": b"]" * 100_000 + b"a" * 99_999,
}

READ_ALL = """
import json, re, resource, sys
from pathlib import Path
from convert.torch_model import read_model

resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
for path in sys.argv[1:]:
    try:
        read_model(Path(path))
        answer = "read"
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    # not ru_maxrss, which starts from what the process that started this one held
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    print(json.dumps([Path(path).stem, answer, 1024 * int(peak)]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple[str, int]]:
    """Answer to every file, and the peak memory until then, in bytes, of the one process that read them."""
    paths = [tmp_path_factory.mktemp("hostile") / f"{name}.model" for name in HOSTILE]
    for path in paths:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("m/data.pkl", b"\x80\x02" + HOSTILE[path.stem] + b".")
            file.writestr("m/data/0", np.zeros(16, np.float32).tobytes())
        assert path.stat().st_size < 2**20
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *map(str, paths)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (answer, peak) for name, answer, peak in rows} | {"stderr": (done.stderr[-500:], 0)}


@pytest.mark.skipif(sys.platform != "linux", reason="the limit and the measure of memory are those of Linux")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_one_line_within_bounds(name, outcomes):
    answer, peak = outcomes.get(name) or outcomes["stderr"]
    assert answer.startswith(("UnreadableModel", "UnsupportedModel")), answer
    assert "\n" not in answer and len(answer) < 1000 and "MemoryError" not in answer
    assert peak < 2**30


# A small valid file: modules in modules, a parameter, a buffer, irreps, numbers, lists, a set, a shared dict.
VALID = module(
    _parameters=children("weight", child=expanded(16) + b"q\x01"),
    _buffers=children("scale", child=get(1)),
    _modules=children("0", "1", child=module(x=b"K\x01" + b"G" + struct.pack(">d", 2.5) + b"\x86") + b"q\x02"),
    irreps=IRREPS % (IRREP * 2),
    numbers=b"](K\x01M\xff\xffJ\xff\xff\xff\xff\x8a\x09" + b"\x01" * 9 + b"e",
    kinds=b"\x8f(K\x01\x88N\x90",
    shared=numbered(3, b"K\x07") + b"q\x03",
    again=get(3),
)
SPECIAL = [
    b"}",
    b"]",
    b")",
    b"\x8f",
    b"(",
    b"0",
    b"1",
    b"2",
    b"R",
    b"\x81",
    b"\x92",
    b"b",
    b"s",
    b"u",
    b"a",
    b"e",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"Q",
    b"\x90",
    b"\x91",
    b"\x93",
    b"\x94",
    b"N",
    b"l",
    b"d",
    b"o",
    b"h\x01",
    b"h\x02",
    b"h\x03",
    b"q\x01",
    b"r\xff\xff\xff\xff",
    b"cbuiltins\nset\n",
    b"ccollections\nOrderedDict\n",
    b"cbuiltins\ngetattr\n",
    b"ctorch\nSize\n",
    b"\x8a\xff" + b"\x7f" * 255,
    b"J\xff\xff\xff\x7f",
]


def instructions(stream: bytes) -> list[bytes]:
    starts = [at or 0 for _, _, at in pickletools.genops(stream)]
    return [stream[a:b] for a, b in zip(starts, [*starts[1:], len(stream)], strict=True)]


EDIT = st.tuples(
    st.sampled_from(["drop", "double", "swap", "insert", "byte"]),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.sampled_from(SPECIAL),
)


def edited(parts: list[bytes], edits: list[tuple[str, int, int, bytes]]) -> bytes:
    """The stream with instructions dropped, doubled, swapped, inserted, or one byte of them changed."""
    parts = list(parts)
    for kind, i, j, special in edits:
        i, j = i % len(parts), j % len(parts)
        if kind == "drop" and len(parts) > 1:
            del parts[i]
        elif kind == "double":
            parts.insert(j, parts[i])
        elif kind == "swap":
            parts[i], parts[j] = parts[j], parts[i]
        elif kind == "insert":
            parts.insert(i, special)
        elif kind == "byte":
            at = j % len(parts[i])
            parts[i] = parts[i][:at] + bytes([special[-1]]) + parts[i][at + 1 :]
    return b"".join(parts)


def outcome(stream: bytes) -> str:
    """What becomes of a pickle with one storage of 16 numbers, through to the mapping."""
    budget = Budget()
    try:
        model = flatten(
            interpret(stream, lambda pid: np.zeros(16, np.float32), builders=archive._BUILDERS, budget=budget), budget
        )
    except (UnreadableModel, UnsupportedModel) as error:
        assert len(str(error)) < 1000 and "\n" not in str(error)
        return "refused"
    with pytest.raises((UnreadableModel, UnsupportedModel)):  # no model is this small
        mapping.to_flax(model)
    return "read"


def test_valid_stream_is_read():
    assert outcome(b"\x80\x02" + VALID + b".") == "read"


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(edits=st.lists(EDIT, min_size=1, max_size=6))
def test_edited_instructions_never_crash(edits):
    assert outcome(edited(instructions(b"\x80\x02" + VALID + b"."), edits)) in ("read", "refused")
