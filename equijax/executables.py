"""Compiled programs: a bounded number in memory, and kept on disk so that the next process neither traces nor compiles.

JAX's own compilation cache (`equijax.compiled`) spares the compiler alone: to find a program there, JAX must trace and
lower it first, which takes longer than the work of a small crystal. Here a program is found by what it was made from:
configuration, shapes, equijax's own source, the versions of JAX, the devices and the processor.

What is read back is a pickle with machine code, so it is executed: it lies in a folder that only this user can write
to, and whoever can write there could as well change the user's Python. EQUIJAX_CACHE=off keeps and reads nothing.

On CPUs the compiler takes longer than most questions. A program asked for little work is first compiled without LLVM's
optimisation, in a fifth of the time, and runs up to 1.6 times as long; when it has done so much that optimising would
have paid (`FEW`), it is compiled again with care. Whatever comes, that takes about twice the time of the better choice
at most (the rule of those who rent skis). Results of the two differ by rounding; what must come out the same to the
last bit when it is done again runs `carefully`.
"""

import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import pickle
import tempfile
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from functools import cache, partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.extend
import jaxlib.version
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from equijax import compiled, precision
from equijax.errors import needed
from equijax.kernels import build

FEW = 5_000  # evaluations of one atom: optimising takes 4 to 9 s and spares 0.3 to 2 ms of each
# The loops of fusions as XLA wrote them before it went through MLIR: a quarter less to compile, as fast to run.
CAREFUL: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}
HASTY: dict[str, Any] = {**CAREFUL, "xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
HASTILY = "hastily"  # ends the key of a program compiled so
MAX_PROGRAMS = 32  # alive at once: XLA on CPU runs out of memory maps when there are hundreds
PLAIN = (str, bytes, int, float, type(None))  # what a key on disk may hold, in tuples and dataclasses
SUFFIX = ".program"
TRACED = ("flax", "optax", "jraph", "e3nn-jax", "jax-md")  # whose functions are parts of programs
log = logging.getLogger(__name__)
programs: OrderedDict[Hashable, "Program"] = OrderedDict()
work_done: defaultdict[Hashable, float] = defaultdict(float)  # evaluations of one atom, by program
_careful: ContextVar[bool] = ContextVar("careful", default=False)


class Program(NamedTuple):
    """A compiled program and what it needs beside its arguments."""

    call: jax.stages.Compiled
    temporary: int  # bytes on a device


class Kept(NamedTuple):
    """What a file holds of a program."""

    kernels: tuple[str, ...]  # that XLA must know before it reads the machine code
    devices: tuple[int, ...]  # ids
    temporary: int
    executable: tuple  # of `serialize_executable`


class Unusable(Exception):
    """A file on disk cannot be used; the message says why."""


def program(key: tuple, lower: Callable[[], jax.stages.Lowered], *, work: float = math.inf) -> Program:
    """The program of `key`: in memory among the `MAX_PROGRAMS` that were used last, on disk, or compiled now.

    Args:
      key: the name of a function, then all that its program depends on beside the process: static arguments, `shapes`
        of the others. Where all of it is plain values in tuples and dataclasses, the program is kept on disk.
      lower: traces it.
      work: how many evaluations of one atom it is asked for now, to choose how it is compiled.
    """
    key = (*key, precision.of_model(), jax.config.jax_enable_x64)
    work_done[key] += math.inf if _careful.get() else work
    if key not in programs and (*key, HASTILY) in programs and work_done[key] <= FEW:
        key = (*key, HASTILY)
    if key not in programs:
        key = _make(key, lower)
    programs.move_to_end(key)
    return programs[key]


@contextlib.contextmanager
def carefully() -> Iterator[None]:
    """No program is compiled in haste here: which one that was would depend on what had been asked before."""
    token = _careful.set(True)
    try:
        yield
    finally:
        _careful.reset(token)


def _make(key: tuple, lower: Callable[[], jax.stages.Lowered]) -> tuple:
    """Read or compile a program, with care unless little is asked of it; returns the key it then has."""
    path, options = _path(key), CAREFUL
    found = path and _read(path)
    optimises = jax.default_backend() == "cpu" and not jax.config.read("jax_disable_most_optimizations")
    if not found and optimises and work_done[key] <= FEW:
        key, options = (*key, HASTILY), HASTY
        path = _path(key)
        found = path and _read(path)
    programs[key] = found or _compile(path, lower, options=compiler_options(options))
    while len(programs) > MAX_PROGRAMS:
        programs.popitem(last=False)
    return key


def compiler_options(options: dict[str, Any] = CAREFUL) -> dict[str, Any] | None:
    """The options for CPUs where programs are compiled for one; None elsewhere, and where XLA does not know them."""
    return options if jax.default_backend() == "cpu" and _older_loops() else None


@cache
def _older_loops() -> bool:
    """Whether this version of XLA still has its older loops."""
    try:
        jax.jit(lambda x: x).lower(0).compile(compiler_options=CAREFUL)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def fitting(
    key: tuple, lower: Callable[[int], jax.stages.Lowered], *, chunk: int, memory: int, one: str, work: float
) -> tuple[jax.stages.Compiled, int]:
    """The program that does the most at once within `memory`.

    Args:
      key: of the program, but for the chunk.
      lower: makes the program for a chunk.
      chunk: what one call should do, if memory allows; rounded up to a power of two, so that programs are few.
      memory: bytes of a device for temporary arrays.
      one: what a chunk of 1 is, for the message.
      work: of all there is to do, see `program`.

    Returns:
      the program and its chunk.

    Raises:
      MemoryError: a chunk of 1 needs more than `memory`.
    """
    chunk = 1 << (chunk - 1).bit_length()
    while True:
        found = program((*key, chunk), partial(lower, chunk), work=work)
        if found.temporary <= memory:
            return found.call, chunk
        if chunk == 1:
            raise MemoryError(
                f"{one} needs {found.temporary / 1e9:.2f} GB a device, the budget is {memory / 1e9:.2f} GB: raise the "
                "memory option, use float32 or a smaller cell"
            )
        fits = max(1, int(chunk * memory / found.temporary))
        chunk = min(chunk // 2, 1 << (fits.bit_length() - 1))


def keep(jitted: Any, key: tuple) -> Callable:
    """A function made by `jax.jit` whose programs are those of `program`.

    Args:
      jitted: called with pytrees of arrays by position.
      key: its name, then all that it depends on beside its arguments.
    """

    def call(*arguments: Any) -> Any:
        layout = (str(jax.tree.structure(arguments)), shapes(arguments))
        return program((*key, layout), lambda: jitted.lower(*arguments)).call(*arguments)

    return call


def shapes(tree: Any) -> tuple:
    """Shapes and dtypes (numpy's letters) of the arrays of a pytree: what the key of a program that takes it holds."""
    return tuple((x.shape, x.dtype.char) for x in jax.tree.leaves(tree))


def _path(key: tuple) -> Path | None:
    """Where the program of `key` is kept; None where nothing is, or the key does not say all of it."""
    folder = compiled.programs_folder()
    if folder is None or not _plain(key):
        return None
    text = repr((key, _environment()))
    return folder / f"{key[0]}-{hashlib.sha256(text.encode()).hexdigest()[:32]}{SUFFIX}"


def _plain(value: object) -> bool:
    """Whether the text of a value is all there is to it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = tuple(getattr(value, f.name) for f in dataclasses.fields(value))
    return all(map(_plain, value)) if isinstance(value, tuple) else isinstance(value, PLAIN)


def _environment() -> tuple:
    """What machine code depends on beside the function and its arguments."""
    backend = jax.extend.backend.get_backend()
    return (
        *(_source(), _versions(), jax.__version__, jaxlib.version.__version__),
        *(backend.platform, backend.platform_version),
        *(tuple((d.id, d.device_kind) for d in jax.local_devices()), str(jax.config.jax_default_device)),
        *(os.environ.get("XLA_FLAGS"), compiled.processor(), build.mode(), build.compiler()),
    )


@cache
def _versions() -> tuple[str, ...]:
    """Versions of the packages in `TRACED`, of those that are there."""
    there = {d.name.lower().replace("_", "-"): d.version for name in TRACED for d in distributions(name=name)}
    return tuple(f"{name} {version}" for name, version in sorted(there.items()))


@cache
def _source() -> str:
    """Digest of this package's own code."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".cc", ".h")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _compile(path: Path | None, lower: Callable[[], jax.stages.Lowered], *, options: dict[str, Any] | None) -> Program:
    lowered = lower()
    with contextlib.nullcontext() if path is None else _by_the_compiler():
        call = lowered.compile(compiler_options=options)
    memory = needed(call.memory_analysis(), "JAX does not say how much memory a program takes on this device")
    made = Program(call, memory.temp_size_in_bytes)
    if path is not None and not build.refused:  # without its kernels it is no program for the next time
        try:
            _write(path, made)
        except (OSError, ValueError, NotImplementedError) as error:  # a full disk; JAX cannot serialise it
            log.warning("a compiled program is not kept for the next time: %s", error)
    return made


@contextlib.contextmanager
def _by_the_compiler() -> Iterator[None]:
    """What is compiled meanwhile does not come from JAX's compilation cache.

    An executable that XLA for CPUs has read from there cannot be written again: it is written without its functions.
    """
    enabled = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX looks at the option only before it has a cache
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def _write(path: Path, made: Program) -> None:
    """Beside its place, then moved there; the oldest go where all together are more than the cache may hold."""
    loaded = needed(made.call.runtime_executable(), "JAX does not give the executable")
    devices = tuple(d.id for d in loaded.local_devices())
    executable = serialize_executable.serialize(made.call)
    kept = Kept(tuple(sorted(build.registered)), devices, made.temporary, executable)
    body = zlib.compress(pickle.dumps(kept), level=1)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:  # gone with what is half-written, whatever happens
        part = Path(scratch) / path.name
        part.touch(mode=0o600)
        part.write_bytes(hashlib.sha256(body).digest() + body)
        os.replace(part, path)
    stamped = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in path.parent.glob(f"*{SUFFIX}"))
    excess = sum(size for _, size, _ in stamped) - compiled.MAX_BYTES
    for _, size, old in stamped[:-1]:
        if excess > 0:
            old.unlink(missing_ok=True)
            excess -= size


def _read(path: Path) -> Program | None:
    """The program of a file; None where there is none, or, which is said, none that can be used."""
    if not path.is_file():
        return None
    try:
        kept = _checked(path)
        os.utime(path)  # the least recently used go first
        devices = [d for d in jax.local_devices() if d.id in kept.devices]
        call = serialize_executable.deserialize_and_load(
            *kept.executable, backend=jax.extend.backend.get_backend(), execution_devices=devices
        )
    except (Unusable, OSError, pickle.PickleError, jax.errors.JaxRuntimeError) as error:
        log.warning("%s is made again: %s", path, error)
        return None
    return Program(call, kept.temporary)


def _checked(path: Path) -> Kept:
    """What a file holds, its kernels made known to XLA.

    Raises:
      Unusable: the file is another user's, or was damaged; a kernel is gone.
    """
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & compiled.WRITABLE_BY_OTHERS:
        raise Unusable("it is not this user's alone")
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise Unusable("it was damaged")
    kept = pickle.loads(zlib.decompress(content[32:]))
    missing = [key for key in kept.kernels if not build.register(key)]
    if missing:
        raise Unusable(f"the kernels {', '.join(missing)} are gone")
    return kept
