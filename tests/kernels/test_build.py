"""Kernels on disk: what is wrong with the folder or the file costs the kernel, never a wrong or foreign program."""

import ctypes
import logging
import os
import subprocess
from pathlib import Path

import jax
import pytest

from equijax import compiled
from equijax.kernels import build, convolution, polynomial

# A handler that says which version of the interface it was made for and does nothing else.
TRIVIAL = """
#include "xla/ffi/api/c_api.h"
extern "C" XLA_FFI_Error* handler(XLA_FFI_CallFrame* frame) {
  XLA_FFI_Extension_Base* asked = frame->extension_start;
  if (asked && asked->type == XLA_FFI_Extension_Metadata) {
    auto& version = reinterpret_cast<XLA_FFI_Metadata_Extension*>(asked)->metadata->api_version;
    version.major_version = XLA_FFI_API_MAJOR, version.minor_version = XLA_FFI_API_MINOR;
  }
  return nullptr;
}
"""
PATHS = ((0, 0, 0), (1, 1, 1))

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler on this machine")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A cache of its own, looked at anew by each call; XLA, awake, checks what is registered."""
    jax.devices()
    monkeypatch.setenv("EQUIJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("EQUIJAX_KERNELS", "auto")
    build.target.cache_clear()
    yield tmp_path / "kernels"
    build.target.cache_clear()


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.so"))


def again(name: str, source: str = TRIVIAL) -> str | None:
    """What a new process would be given."""
    build.target.cache_clear()
    return build.target(name, source)


def test_made_once_for_this_user_alone(folder):
    first = again("once")
    (library,) = libraries(folder)
    written = library.stat()
    assert folder.stat().st_mode & 0o777 == 0o700 and written.st_mode & 0o077 == 0
    assert list(folder.iterdir()) == [library]
    assert again("once") == first and library.stat().st_mtime_ns == written.st_mtime_ns


@pytest.mark.parametrize("content", [b"", b"\x7fELF not a library", None], ids=["empty", "corrupt", "cut short"])
def test_a_damaged_library_is_made_again(folder, content):
    name = f"damaged{len(content or b'-' * 99)}"
    first = again(name)
    (library,) = libraries(folder)
    whole = library.read_bytes()
    library.unlink()  # a file that is mapped must not be written to
    library.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert again(name) == first
    assert [path.read_bytes() for path in libraries(folder)] == [whole]
    assert ctypes.CDLL(str(libraries(folder)[0])).handler


def unwritable(folder):
    folder.parent.rmdir()
    folder.parent.write_text("a file where the folder should be")


def writable_by_all(folder):
    folder.mkdir()
    folder.chmod(0o777)


def foreign(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 1 + folder.stat().st_uid)


PLACES = {
    "unwritable": (lambda folder, _: unwritable(folder), "Not a directory"),
    "mode 0777": (lambda folder, _: writable_by_all(folder), "chmod go-w"),
    "another owner": (foreign, "set EQUIJAX_CACHE"),
}


@pytest.mark.parametrize("place", PLACES)
def test_unusable_place(folder, monkeypatch, caplog, place):
    """In auto one line and no kernel, in require an error; nothing is loaded from there or left there."""
    spoil, message = PLACES[place]
    spoil(folder, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert again("placed") is None and build.target("placed", TRIVIAL) is None
    assert len(caplog.records) == 1 and message in caplog.text and "slower" in caplog.text
    monkeypatch.setenv("EQUIJAX_KERNELS", "require")
    with pytest.raises(RuntimeError, match=message):
        again("placed")
    assert not libraries(folder)


def test_another_processor_makes_its_own(folder, monkeypatch):
    first = again("shared")
    monkeypatch.setattr(compiled, "processor", lambda: "flags : sse2")
    assert again("shared") != first
    assert len(libraries(folder)) == 2


def test_broken_source_is_said_not_hidden(folder, monkeypatch, caplog):
    assert again("broken", "this is not C++") is None
    assert "error" in caplog.text
    assert not list(folder.iterdir())


def test_modes(monkeypatch, caplog):
    monkeypatch.setenv("EQUIJAX_KERNELS", "fast")
    with pytest.raises(ValueError, match="auto, off, require"):
        build.mode()
    monkeypatch.setenv("EQUIJAX_KERNELS", "off")
    assert not convolution.available(16, "float32")
    monkeypatch.setattr(build, "compiler", lambda: None)
    monkeypatch.setenv("EQUIJAX_KERNELS", "require")
    build._without_compiler.cache_clear()
    with pytest.raises(RuntimeError, match=r"install g\+\+"):
        build.wanted()
    monkeypatch.setenv("EQUIJAX_KERNELS", "auto")
    assert not convolution.available(16, "float32")
    assert "slower" in caplog.text
    build._without_compiler.cache_clear()


def test_vector_bytes(monkeypatch):
    monkeypatch.setattr(compiled, "processor", lambda: "flags : sse2 avx avx512f")
    assert [build.vector_bytes(c, 4) for c in (128, 24, 20, 6)] == [64, 32, 16, None]
    monkeypatch.setattr(compiled, "processor", lambda: "flags : sse2 avx")
    assert build.vector_bytes(128, 8) == 32


# Every function of a kernel on buffers of exactly the right size, with indices that point far outside of them, under
# the address and undefined-behaviour sanitizers; and the offset of a row that 32 bits cannot count to.
HARNESS = {
    "convolution": """
#include <vector>
int main() {
  const int64_t N = 3, K = 4, M = 2, rows = 5;
  std::vector<Real> R(N * K * TERMS, 1), Y(N * K * NUM_Y, 1), h(M * NUM_H * C, 1), A(N * NUM_ROWS * C, 1),
      W(rows * ROW, 1), dR(R), dY(Y), dh(h);
  const std::vector<int32_t> wild = {0, 1, -7, 1 << 30, 5, 2, -(1 << 30), 9, 0, 4, 3, 1};
  Problem p{};
  p.N = N, p.K = K, p.M = M, p.rows = rows, p.batch = 1;
  p.senders = p.reverse = p.first = wild.data();
  p.R.data = R.data(), p.Y.data = Y.data(), p.h.data = h.data(), p.W.data = W.data();
  std::vector<Real> sums(A);
  p.out[0].data = sums.data();
  for (int64_t n = 0; n < N; ++n) sum_neighbours(p, 0, n);
  p.A.data = A.data(), p.out[0].data = dR.data(), p.out[1].data = dY.data(), p.out[2].data = dh.data();
  for (int64_t n = 0; n < N; ++n) edge_derivatives<true, true>(p, 0, n);
  for (int64_t s = 0; s < M; ++s) sum_to_sender(p, 0, s, p.out[2]);
  const int32_t last = 2147483646;
  p.M = p.rows = int64_t{last} + 1 + TERMS, p.senders = p.first = &last;
  p.h.data = p.W.data = reinterpret_cast<Real*>(4096);
  const bool whole = p.sender(0, 0) - p.h.data == int64_t{last} * NUM_H * C && p.table(0) - p.W.data == last * ROW;
  return whole ? 0 : 1;
}
""",
    "polynomial": """
#include <vector>
int main() {
  const int64_t N = 5, U = 2, C = LANES;
  std::vector<Real> x(N * VARIABLES * C, 1), w(U * C, 1), O(N * C, 1), t(x), out(x), dw(w);
  const std::vector<int32_t> wild = {0, 1, -7, 1 << 30, 2}, factors(DEGREE, 0), runs = {0, 0, 1};
  Problem p;
  p.C = C, p.species = U, p.num_runs = 1;
  p.slot = wild.data(), p.factors = factors.data(), p.runs = runs.data();
  p.x = {x.data(), 0, N, VARIABLES * C}, p.w = {w.data(), 0, U, C}, p.O = {O.data(), 0, N, C};
  p.t[0] = {t.data(), 0, N, VARIABLES * C}, p.out = {out.data(), 0, N, VARIABLES * C};
  for (int64_t n = 0; n < N; ++n) gradient<0, 1>(p, 0, n, 0);
  std::vector<Real> value(N * C);
  p.out = {value.data(), 0, N, C};
  for (int64_t n = 0; n < N; ++n) values<1, 1>(p, 0, n, 0);
  p.out = {dw.data(), 0, U, C};
  coefficients<1>(p, 0, 0);
  const int32_t last = 2147483646;
  p.species = int64_t{last} + 1, p.slot = &last, p.w.data = reinterpret_cast<Real*>(4096), p.w.columns = 1000;
  return p.w.at(0, p.row(0)) - p.w.data == int64_t{last} * 1000 ? 0 : 1;
}
""",
}
SOURCES = {
    "convolution": lambda: convolution.source(PATHS, 2, channels=4, scalar="float", size=16),
    "polynomial": lambda: polynomial.source(1, 4, scalar="float", size=16),
}


@pytest.mark.parametrize("case", SOURCES)
def test_bounds_and_offsets_under_the_sanitizers(case, tmp_path):
    text = SOURCES[case]() + HARNESS[case]
    (tmp_path / "harness.cc").write_text(text)
    program = str(tmp_path / "harness")
    include = [f"-I{Path(build.__file__).parent}", f"-I{jax.ffi.include_dir()}"]
    flags = ["-std=c++17", "-O0", "-w", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [build.compiler(), *flags, *include, str(tmp_path / "harness.cc"), "-o", program]
    made = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in made.stderr:
        pytest.skip("the compiler comes without its sanitizers")
    assert made.returncode == 0, made.stderr[-2000:]
    ran = subprocess.run([program], capture_output=True, text=True, env={"ASAN_OPTIONS": "detect_leaks=0"})
    assert ran.returncode == 0, ran.stderr[-2000:]
