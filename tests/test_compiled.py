"""Compiled programs on disk: turned on by programs and the calculator alone, in a safe place, shared by crystals."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import psutil
import pytest
from ase.build import bulk

from equijax import compiled, testing
from equijax.phonons import force_constants
from equijax.programs import runner

FOLDER, SIZE, SECONDS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """JAX as a user's process finds it, with a cache of its own; nothing is compiled meanwhile."""
    before = {name: getattr(jax.config, name) for name in (FOLDER, SIZE, SECONDS)}
    jax.config.update(FOLDER, None)
    monkeypatch.setenv("EQUIJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "_places", {})
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def folder_in_use() -> Path:
    return Path(jax.config.jax_compilation_cache_dir)


@dataclass(frozen=True)
class Options:
    steps: int = 1


STARTS = {
    "a program": lambda: runner.options(Options, [], name="equijax nothing"),
    "the calculator": lambda: testing.pair_forcefield(lambda r: r, 3.0, species=(11,)).calculator(),
}


@pytest.mark.parametrize("start", STARTS)
def test_who_turns_it_on(cache, start):
    assert jax.config.jax_compilation_cache_dir is None  # the imports above did not
    STARTS[start]()
    assert folder_in_use().parent == cache and folder_in_use().stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_max_size == compiled.MAX_BYTES
    assert compiled.programs_folder() == cache / "programs"


def test_a_users_own_choice_stays(cache, monkeypatch):
    jax.config.update(FOLDER, "of/the/user")
    compiled.use_cache()
    assert jax.config.jax_compilation_cache_dir == "of/the/user"
    assert compiled.programs_folder() == cache / "programs"


def test_nothing_is_kept_where_it_is_switched_off(cache, monkeypatch):
    monkeypatch.setenv("EQUIJAX_CACHE", "off")
    compiled.use_cache()
    assert jax.config.jax_compilation_cache_dir is None and compiled.programs_folder() is None
    assert not list(cache.iterdir())


def test_another_processor_has_its_own_folder(cache, monkeypatch):
    compiled.use_cache()
    first = folder_in_use()
    jax.config.update(FOLDER, None)
    monkeypatch.setattr(compiled, "processor", lambda: "flags : sse2")
    compiled.use_cache()
    assert folder_in_use() != first


@pytest.mark.parametrize("has_sysctl", [True, False])
def test_the_processor_of_a_system_without_proc(monkeypatch, tmp_path, has_sysctl):
    """macOS: sysctl tells; where it is missing too, Python does."""
    monkeypatch.setattr(compiled, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setenv("PATH", str(tmp_path))
    if has_sysctl:
        (tmp_path / "sysctl").write_text("#!/bin/sh\necho $1.brand_string: Apple M9\n")
        (tmp_path / "sysctl").chmod(0o700)
    expected = "machdep.cpu.brand_string: Apple M9\n" if has_sysctl else platform.processor()
    assert compiled.processor.__wrapped__() == expected


@pytest.mark.parametrize("mode", [0o777, 0o770], ids=oct)
def test_a_folder_of_several_users_is_not_used(cache, caplog, mode):
    compiled.use_cache()
    folder_in_use().chmod(mode)
    jax.config.update(FOLDER, None)
    compiled.use_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert len(caplog.records) == 1 and "chmod go-w" in caplog.text


CRYSTALS = {"Si": ("diamond", 5.43), "MgO": ("rocksalt", 4.2)}


def work(name: str) -> None:
    """What a phonon run asks of XLA, for one of `CRYSTALS`: their neighbours and rows are not alike in number."""
    structure, a = CRYSTALS[name]
    ff = testing.random_forcefield(
        testing.random_config(channels=2, radial_mlp=(4,), max_ell=1, num_interactions=1, correlation=(1,))
    )
    atoms = bulk(name, structure, a=a)
    atoms.calc = ff.calculator()
    atoms.get_stress()
    phonon = force_constants.make_phonon(atoms, (2, 2, 2))
    force_constants.force_constants(ff, phonon)
    force_constants.spot_check(ff, phonon)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Folder of the cache, and of a process for each crystal in turn: what JAX counted, and functions it traced."""
    script = f"""
import sys, collections, importlib.util, json, jax
spec = importlib.util.spec_from_file_location("compiled_tests", {__file__!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.compiled.use_cache()
counts, traced = collections.Counter(), set()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.split("/")[-1]]))
jax.monitoring.register_event_duration_secs_listener(lambda event, _, fun_name=None, **more: traced.add(fun_name))
tests.work(sys.argv[1])
print(json.dumps([counts, [name for name in traced if name]]))
"""
    path, root = tmp_path_factory.mktemp("cache"), Path(compiled.__file__).parent.parent
    env = os.environ | {"EQUIJAX_CACHE": str(path), "PYTHONPATH": str(root)}
    env.pop("JAX_COMPILATION_CACHE_DIR")
    found = []
    for name in CRYSTALS:
        done = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return path, found


def test_another_crystal_in_another_process_compiles_nothing(processes):
    _, ((first, _), (second, _)) = processes
    assert first["cache_misses"] > 0
    assert second["compile_requests_use_cache"] == second["cache_hits"] and "cache_misses" not in second, second


def test_another_crystal_in_another_process_traces_no_program(processes):
    folder, ((_, first), (_, second)) = processes
    assert {"push_tangents", "_evaluate"} <= {name.split(" ")[0] for name in first}
    assert not {name for name in second if "push" in name or "evaluate" in name}
    names = {path.name.split("-")[0] for path in (folder / "programs").iterdir()}
    assert names == {"push_tangents", "energy_forces_stress"}


GB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"

SYSTEMS = {
    "not Linux": ({}, []),
    "no limit": ({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "max\n", f"{V2}/memory.current": "5\n"}, []),
    "version 2": (
        {
            "proc/self/cgroup": "0::/\n",
            f"{V2}/memory.max": f"{4 * GB}\n",
            f"{V2}/memory.current": f"{3 * GB}\n",
            f"{V2}/memory.stat": f"anon 1\ninactive_file {2 * GB}\n",
        },
        [3 * GB],
    ),
    "version 2, the group above is tighter": (
        {
            "proc/self/cgroup": "0::/user/job\n",
            f"{V2}/user/job/memory.max": f"{8 * GB}",
            f"{V2}/user/job/memory.current": "0",
            f"{V2}/user/memory.max": f"{2 * GB}",
            f"{V2}/user/memory.current": f"{GB}",
        },
        [8 * GB, GB],
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n",
            f"{V1}/job/memory.limit_in_bytes": f"{GB}\n",
            f"{V1}/job/memory.usage_in_bytes": f"{GB // 2}\n",
            f"{V1}/job/memory.stat": f"total_inactive_file {GB // 4}\n",
        },
        [3 * GB // 4],
    ),
    "version 1, the host's path": (
        {
            "proc/self/cgroup": "4:memory:/docker/0123\n",
            f"{V1}/memory.limit_in_bytes": f"{2 * GB}\n",
            f"{V1}/memory.usage_in_bytes": f"{3 * GB}\n",
        },
        [0],
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_limits_of_containers(tmp_path, name):
    files, left = SYSTEMS[name]
    root = write(tmp_path, files)
    assert compiled.container_limits(root) == left
    free = psutil.virtual_memory().available
    if left and min(left) < free // 2:
        assert compiled.available_memory(root) == min(left)
    else:
        assert free / 2 < compiled.available_memory(root) < 2 * free


def test_a_hessian_uses_part_of_it():
    assert jax.default_backend() != "cpu" or 0 < compiled.default_memory() < compiled.available_memory()


def test_no_module_reads_meminfo():
    """/proc/meminfo exists on Linux alone."""
    package = Path(sys.modules["equijax"].__file__).parent
    assert not [p for p in package.rglob("*.py") if "meminfo" in p.read_text()]
