"""Programs kept on disk: found by what they were made from, made again where a file cannot be used."""

import os
import re
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from equijax import compiled, executables, testing
from equijax.kernels import build

NUMBERS = np.arange(3.0, dtype=np.float32)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A cache of its own, and no program in memory."""
    monkeypatch.setenv("EQUIJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "_places", {})
    monkeypatch.setattr(executables, "programs", type(executables.programs)())
    compiled.use_cache()
    return tmp_path / "programs"


@pytest.fixture
def double(monkeypatch):
    """Twice `NUMBERS` by the program of a key, in what counts as a new process: how often one was made by then."""
    made = []

    def lower():
        made.append(1)
        return jax.jit(lambda x: 2 * x).lower(NUMBERS)

    def call(key=("double", 1), **work):
        executables.programs.clear()
        np.testing.assert_array_equal(executables.program(key, lower, **work).call(NUMBERS), 2 * NUMBERS)
        return len(made)

    return call


def test_a_program_is_traced_once(folder, double):
    assert (double(), double(), double(("double", 2)), double()) == (1, 1, 2, 2)
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600} and folder.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def options_used(monkeypatch):
    """The tests' own haste switched off: what each program was compiled with."""
    used, compile_ = [], executables._compile
    monkeypatch.setattr(
        executables, "_compile", lambda *args, **kw: used.append(kw["options"]) or compile_(*args, **kw)
    )
    monkeypatch.setattr(executables, "work_done", executables.work_done.__class__(float))
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield used
    jax.config.update("jax_disable_most_optimizations", before)


def test_a_program_is_optimised_once_that_pays(folder, double, options_used):
    """Hasty at first, also in the next process; careful from there on where that is on disk."""
    few = executables.FEW / 4
    assert [double(work=few) for _ in range(6)] == [1, 1, 1, 1, 2, 2]
    assert options_used == [executables.HASTY, executables.CAREFUL]
    executables.work_done.clear()
    assert double(work=few) == 2
    assert len(os.listdir(folder)) == 2


def test_who_does_not_say_how_much_it_is_gets_an_optimised_program(folder, double, options_used):
    assert (double(), double(("double", 2), work=2 * executables.FEW)) == (1, 2)
    assert options_used == [executables.CAREFUL] * 2


def test_what_runs_carefully_is_optimised_whatever_was_asked_before(folder, double, options_used):
    assert double(work=1) == 1
    with executables.carefully():
        assert double(work=1) == 2
    assert double(work=1) == 2
    assert options_used == [executables.HASTY, executables.CAREFUL]


def test_a_compiler_without_the_older_loops_gets_no_options(folder, double, options_used, monkeypatch):
    executables._older_loops.cache_clear()
    monkeypatch.setattr(executables, "CAREFUL", {"xla_cpu_no_such_option": True})
    assert double() == 1 and options_used == [None]
    executables._older_loops.cache_clear()


SPOILT = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged"),
    "foreign": (lambda path: path.write_bytes(b"something else"), "damaged"),
    "of several users": (lambda path: path.chmod(0o666), "not this user's alone"),
    "without its kernel": (lambda path: build.registered.clear(), "kernels .* are gone"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_file_that_cannot_be_used_is_made_again(folder, double, monkeypatch, caplog, case):
    spoil, message = SPOILT[case]
    monkeypatch.setattr(build, "registered", {"convolution_of_another_day"})
    double()
    spoil(*folder.iterdir())
    assert double() == 2
    (record,) = caplog.records
    assert "is made again" in record.message
    assert re.search(message, record.message)
    assert double() == 2  # the new file is sound


@pytest.fixture
def all_in_the_cache_of_jax():
    """JAX keeps also what takes no time to compile."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0.0)
    yield
    jax.config.update(name, before)


@pytest.mark.usefixtures("all_in_the_cache_of_jax")
def test_what_is_in_the_cache_of_jax_as_well_can_be_read_back(folder):
    """An executable that JAX took from its own cache cannot be written whole."""
    function = jax.jit(lambda x: jax.numpy.sin(x).sum() + jax.numpy.cumsum(x))
    expected = np.asarray(function.lower(NUMBERS).compile()(NUMBERS))  # there from here on
    for _ in range(2):
        jax.clear_caches()
        executables.programs.clear()
        found = executables.program(("sums", 1), lambda: function.lower(NUMBERS)).call(NUMBERS)
        np.testing.assert_array_equal(found, expected)
    assert len(os.listdir(folder)) == 1
    assert jax.config.jax_enable_compilation_cache


CHANGES = {
    "packages": lambda patch: patch.setattr(executables, "_versions", lambda: ("jax-md 9",)),
    "source": lambda patch: patch.setattr(executables, "_source", lambda: "another"),
    "processor": lambda patch: patch.setattr(compiled, "processor", lambda: "flags : sse2"),
    "kernels": lambda patch: patch.setenv("EQUIJAX_KERNELS", "off"),
    "flags": lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_program_was_made_from_is_part_of_its_name(folder, double, monkeypatch, change):
    double()
    CHANGES[change](monkeypatch)
    assert double() == 2
    assert len(os.listdir(folder)) == 2


def test_the_precision_of_products_is_part_of_its_name(folder, double):
    double()
    with jax.default_matmul_precision("tensorfloat32"):
        assert double() == 2


@dataclass(frozen=True)
class Options:
    name: str = "any"
    function: object = None


def test_a_jitted_function_is_kept_by_the_layout_of_its_arguments(folder):
    add = executables.keep(jax.jit(lambda tree, y: tree["x"] + y), ("add", 1))
    for x in (NUMBERS, NUMBERS, NUMBERS[:2]):
        np.testing.assert_array_equal(add({"x": x}, x), 2 * x)
    assert len(os.listdir(folder)) == len(executables.programs) == 2


def test_a_key_that_does_not_say_all_is_not_kept_on_disk(folder, double):
    """The text of a function is its name and address, which another function has in the next process."""
    pair = testing.pair_forcefield(lambda r: r, 3.0, species=(11,)).config
    for key in (("double", pair), ("double", Options(function=len)), ("double", (1, np.ones(1)))):
        if not isinstance(key[1], tuple):
            double(key)
        assert executables._path(key) is None
    assert executables._path(("double", Options(), (1.5, None))) is not None
    assert not os.listdir(folder)


def test_a_program_that_cannot_be_written_is_used_and_leaves_nothing(folder, double, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert double() == 1
    assert not os.listdir(folder)
    assert "not kept for the next time" in caplog.text


def test_the_oldest_go_where_there_are_too_many(folder, double, monkeypatch):
    double()
    (old,) = folder.iterdir()
    os.utime(old, (0, 0))
    monkeypatch.setattr(compiled, "MAX_BYTES", int(1.5 * old.stat().st_size))
    double(("double", 2))
    (left,) = folder.iterdir()
    assert left != old


def test_a_folder_that_takes_no_files_is_said(folder, double, monkeypatch, caplog):
    def full(path, made):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(executables, "_write", full)
    double()
    assert "not kept for the next time" in caplog.text
