"""Which of several ways to compute the same arrays is fastest on this device? Timed, checked and said, never silent."""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from equijax.graph.fields import Array
from equijax.kernels import build

PRECISION = "jax_default_matmul_precision"
SETTINGS = ("jax_enable_x64", PRECISION, "jax_default_device")  # that JAX keeps for each thread
CALLS = 5  # timed, of each candidate
# largest difference from the first candidate, relative to its largest entry
AGREE = {"float32": 1e-4, "float64": 1e-10}


def fastest(name: str, candidates: dict[str, Callable[[], list[jax.Array]]]) -> str:
    """The candidate that takes the least time; a line on stderr says so.

    Args:
      name: of what is computed.
      candidates: calls that compute the same arrays. The first is the reference and has to work; another that fails or
        disagrees is left out, and the line says why.

    Returns:
      its key.

    Raises:
      RuntimeError: a candidate fails or disagrees and EQUIJAX_KERNELS=require.
    """
    options = {key: getattr(jax.config, key) for key in SETTINGS}
    with ThreadPoolExecutor(1) as alone:  # this thread may be tracing a program, where nothing runs
        seconds, told = alone.submit(_timed, name, candidates, options=options).result()
    chosen = min(seconds, key=seconds.__getitem__)
    told = [f"{key} {1e3 * s:.3g} ms" for key, s in seconds.items()] + told
    print(f"equijax: {name} by {chosen} on {jax.devices()[0].device_kind} ({'; '.join(told)})", file=sys.stderr)
    return chosen


def _timed(name: str, candidates: dict[str, Callable], *, options: dict[str, Any]) -> tuple[dict[str, float], list]:
    """Seconds of each candidate that can be used, and why the others cannot; with these options of JAX."""
    with jax.enable_x64(options["jax_enable_x64"]), jax.default_matmul_precision(options[PRECISION]):
        with jax.default_device(options["jax_default_device"]):
            (first, reference), *others = candidates.items()
            expected = jax.block_until_ready(reference())
            seconds, told = {first: _seconds(reference)}, []
            for key, call in others:
                why = _trouble(call, expected)
                if why is None:
                    seconds[key] = _seconds(call)
                elif build.mode() == "require":
                    raise RuntimeError(f"EQUIJAX_KERNELS=require: {name} by {key}: {why}")
                else:
                    told.append(f"{key} left out: {why}")
    return seconds, told


def value_and_gradients(function: Callable, x: Sequence[Array]) -> Callable[[], list[jax.Array]]:
    """A call of the compiled function and its gradients: [*outputs, *dx], cotangents being the outputs themselves."""

    def both(*x: jax.Array) -> list[jax.Array]:
        out, pull = jax.vjp(function, *x)
        return [*jax.tree.leaves(out), *pull(out)]

    compiled = jax.jit(both)
    return lambda: compiled(*x)


def _trouble(call: Callable, expected: list[jax.Array]) -> str | None:
    """Why a candidate cannot be used; None where it can."""
    try:
        found = jax.block_until_ready(call())
    except Exception as error:  # compilers of kernels raise anything
        return f"{type(error).__name__}: {error}".splitlines()[0]
    for a, b in zip(found, expected, strict=True):
        error = float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())
        if not error <= AGREE[b.dtype.name]:
            return f"off by {error:.1e} of the largest entry"
    return None


def _seconds(call: Callable) -> float:
    """The least of several; one call has been made before."""
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return min(taken)
