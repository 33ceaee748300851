"""What every test shares: compiled programs kept on disk, few of them in memory, tests that need other
programs kept apart, and a tiny model with structures that a model close to it labelled."""

import gc
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
APART = {"parity": ROOT / "tests" / "parity", "integrations": ROOT / "tests" / "integrations"}  # marker -> folder
MAX_MEMORY_MAPS = 30_000  # XLA on CPU crashes at the kernel's usual limit of 65,530 memory maps
COUNT_EVERY_S = 5.0  # of processor time, in which no more than a few thousand are made; counting 30,000 takes 20 ms
_counted = [0.0]  # processor time when they were counted last

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("EQUIJAX_CACHE", "off")  # programs of functions that tests replace
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile(
    "equijax", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("equijax")


def pytest_configure(config):
    """Compilation takes most of the time of most tests, and a fifth of it without LLVM's optimisation and with XLA's
    older way of writing the loops of a fusion, which does not go through MLIR.

    The demo, the parity tests and whatever a user runs are compiled with it; so are long runs (`optimised`).
    """
    if config.option.markexpr != "parity":
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
        gc.set_threshold(100_000)  # tracing makes many objects and few cycles: a twelfth of the time goes otherwise


def pytest_ignore_collect(collection_path, config):
    """They import torch and other programs at the top: look at them only where `-m` asks for them."""
    away = [folder for marker, folder in APART.items() if config.option.markexpr != marker]
    return True if {collection_path, *collection_path.parents} & set(away) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        for marker, folder in APART.items():
            if folder in item.path.parents:
                item.add_marker(marker)


@pytest.fixture(autouse=True)
def few_compiled_programs():
    """Forget compiled programs before they exhaust the process's memory maps; the disk cache brings them back."""
    yield
    if time.process_time() - _counted[0] < COUNT_EVERY_S:
        return
    _counted[0] = time.process_time()
    if memory_maps() > MAX_MEMORY_MAPS:
        import jax  # not at the top: the tests of the converter's reader run without it

        from equijax import executables

        executables.programs.clear()  # else their maps stay, and every test from here on compiles anew
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def programs_made(monkeypatch):
    """A list that grows by one with each program that `equijax.executables` compiles."""
    from equijax import executables

    made, compile_ = [], executables._compile
    monkeypatch.setattr(executables, "_compile", lambda *args, **kw: made.append(args) or compile_(*args, **kw))
    return made


@pytest.fixture(scope="session")
def child_environment(tmp_path_factory):
    """Of subprocesses that run our commands: what the first has compiled, the next reads, small programs too."""
    kept = tmp_path_factory.mktemp("kept") / "equijax"
    others = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return {**others, "PYTHONPATH": str(ROOT), "EQUIJAX_CACHE": str(kept)}


def memory_maps() -> int:
    """Number of memory maps of this process; 0 where the system does not tell."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


# one interaction: programs of two take two to three times as long to compile
TINY = {
    "channels": 4,
    "lmax": 0,
    "species": (11, 14, 17),
    "max_ell": 1,
    "radial_mlp": (8,),
    "num_interactions": 1,
    "correlation": (2,),
}


# Imports are inside the fixtures: the tests of the converter's reader run without JAX.
@pytest.fixture(scope="session")
def ff():
    """A small model with every kind of layer, of a few elements."""
    from equijax import testing

    return testing.random_forcefield(testing.random_config(channels=4, max_ell=1, radial_mlp=(16,)))


@pytest.fixture(scope="session")
def student():
    """A tiny model of sodium, silicon and chlorine."""
    from equijax import testing

    return testing.random_forcefield(testing.random_config(**TINY))


@pytest.fixture(scope="session")
def folder(student, tmp_path_factory):
    """A folder with model/, train.extxyz (6 structures), test.extxyz (2) and other.extxyz (2, silicon)."""
    import ase.io
    import jax
    import numpy as np

    from equijax import checkpoint, data, testing
    from equijax.forcefield import ForceField

    path = tmp_path_factory.mktemp("finetune")
    checkpoint.save(path / "model", student.config, variables=student.variables, metadata={"source": "random"})
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda w: w * (1 + 0.2 * rng.normal(size=w.shape)), student.variables["params"])
    teacher = ForceField(student.config, {**student.variables, "params": params}, {})
    salt = [testing.rattled(seed=i) for i in range(8)]
    silicon = [testing.rattled("Si", "diamond", a=5.4, seed=i) for i in range(2)]
    for name, images in (("train", salt[:6]), ("test", salt[6:]), ("other", silicon)):
        found = zip(images, teacher.evaluate(images), strict=True)
        labelled = [data.Labelled(atoms, f.energy, f.forces, f.stress) for atoms, f in found]
        ase.io.write(path / f"{name}.extxyz", [data.to_atoms(s) for s in labelled])
    return path


@pytest.fixture(scope="session")
def arguments(folder):
    """Command line of a short run: out folder, then anything that differs."""

    def make(out, *more):
        given = {
            "--model": folder / "model",
            "--train": folder / "train.extxyz",
            "--out": out,
            "--epochs": 2,
            "--rank": 2,
            "--batch-size": 2,
            "--lr": 0.01,
            "--warmup": 1,
        }
        given |= dict(zip(more[::2], more[1::2], strict=True))
        return [str(x) for pair in given.items() for x in pair]

    return make
