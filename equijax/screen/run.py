"""A screening run: crystals to the workers of a Dask cluster, rows into the store as they come (extra `screen`)."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tqdm import tqdm

from equijax import checkpoint, compiled, forcefield, outputs
from equijax.errors import InputError, MissingExtra
from equijax.phonons import certificate, force_constants
from equijax.screen import compute, crystals, store
from equijax.screen.compute import Row
from equijax.screen.crystals import Crystal
from equijax.screen.options import MAY_CHANGE, ScreenConfig

OPTIONS = "screen.json"
WRITE_EVERY_S = 10.0  # rows that came meanwhile are one file of the store


class Screened(NamedTuple):
    """How a run went."""

    crystals: int  # asked for
    computed: int  # now; the others were in the store
    failed: list[tuple[str, str]]  # name and error, of all asked for
    seconds: float


@outputs.locked
def run(config: ScreenConfig) -> Screened:
    """Compute what the store in `config.out` lacks.

    A worker that dies is replaced, where the cluster does that, and Dask computes its crystal again; one that four
    workers had when they died has failed. What the store holds is whole at any time, see `equijax.screen.store`; a
    client that is killed loses the rows that came since the last writing, some ten seconds of them.

    Raises:
      InputError, FileNotFoundError: unusable input, before work starts; options other than those of the store.
      MissingExtra: dask.distributed or pyarrow is not installed.
      OSError: the scheduler cannot be reached, or went away.
    """
    start = time.perf_counter()
    distributed()
    store.parquet()
    found = crystals.read(config.structures)
    ff = forcefield.load(config.model, head=config.head)
    if config.supercell is not None:
        force_constants.supercell_matrix(config.supercell)
    digest = checkpoint.fingerprint(ff.config, ff.variables)
    begin(config, {"model": digest, "head": ff.config.heads[ff.head_index]})
    done = store.done(config.out, retry=config.retry)
    wanted = [crystal for crystal in found if (crystal.name, crystal.digest) not in done]
    if wanted:
        with cluster(config) as client:
            keep(results(client, wanted, config=config, digest=digest), config.out, total=len(wanted))
    store.write_structures(config.out)
    names = {crystal.name for crystal in found}
    errors = [(row["name"], row["error"]) for row in store.table(config.out, ("name", "error")).to_pylist()]
    failed = [(name, error) for name, error in errors if error and name in names]
    return Screened(len(found), len(wanted), failed, time.perf_counter() - start)


def begin(config: ScreenConfig, model: dict[str, str]) -> None:
    """Write screen.json, or compare with that of the run to be continued.

    Raises:
      InputError: other options, or another model.
    """
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in MAY_CHANGE | {"model"}}
    now = json.loads(json.dumps(options | model, default=outputs.plain))
    path = config.out / OPTIONS
    if not path.is_file():
        outputs.write_json(path, now | {"versions": certificate.versions()})
        return
    then = json.loads(path.read_text())
    if different := [f"{k} = {then.get(k)}, not {v}" for k, v in now.items() if then.get(k) != v]:
        raise InputError(f"{config.out} holds results with {'; '.join(different)}: give the same, or another --out")


def distributed() -> ModuleType:
    """dask.distributed.

    Raises:
      MissingExtra: it is not installed.
    """
    try:
        import distributed
    except ImportError as error:
        raise MissingExtra("screening needs dask.distributed: pip install 'equijax[screen]'") from error
    return distributed


@contextmanager
def cluster(config: ScreenConfig) -> Iterator[Any]:
    """A client of the scheduler at `config.scheduler`, or of processes of this machine, which end with the block."""
    dask = distributed()
    if config.scheduler is not None:
        with dask.Client(config.scheduler) as client:
            yield client
        return
    with (
        dask.LocalCluster(
            n_workers=config.workers, threads_per_worker=1, dashboard_address=None, memory_limit=0
        ) as local,
        dask.Client(local) as client,
    ):
        yield client


def results(client: Any, wanted: Sequence[Crystal], *, config: ScreenConfig, digest: str) -> Iterator[Row]:
    """Rows as they come, one a crystal.

    Raises:
      ConnectionError: the scheduler went away.
      Unready: a worker has not the model.
    """
    sent = dataclasses.replace(config, structures=(), model=config.model.absolute())
    cores = () if config.scheduler is not None else shares(config.workers)
    if config.scheduler is None and config.memory is None:
        sent = dataclasses.replace(sent, memory=0.7e-9 * compiled.available_memory() / config.workers)
    futures = {client.submit(task, c, sent, digest, cores, pure=False): c for c in wanted}
    for future, found in distributed().as_completed(futures, with_results=True, raise_errors=False):
        crystal = futures.pop(future)
        if future.status in ("cancelled", "lost"):
            raise ConnectionError("the Dask scheduler went away: what came is in the store, start again to go on")
        if future.status == "error":
            _, error, _ = found
            if isinstance(error, compute.Unready):
                raise error
            found = Row(crystal.name, crystal.digest, f"{type(error).__name__}: {' '.join(str(error).split())}")
        yield found


def task(crystal: Crystal, config: ScreenConfig, digest: str, cores: Sequence[tuple[int, ...]]) -> Row:
    """`compute.compute` on a worker of `distributed`, on the cores of the worker of that number, if there are any."""
    mine = cores[int(distributed().get_worker().name)] if cores else ()
    return compute.compute(crystal, config, digest=digest, cores=mine)


def shares(workers: int) -> list[tuple[int, ...]]:
    """The cores of each worker of this machine: for small crystals many processes of one thread are faster than one of
    many. Empty where the system knows no such thing."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    every = sorted(os.sched_getaffinity(0))
    return [tuple(every[i::workers]) or (every[i % len(every)],) for i in range(workers)]


def keep(rows: Iterator[Row], out: Path, *, total: int) -> None:
    """Write rows to the store as they come, whatever ends them."""
    waiting: list[Row] = []
    written = time.monotonic()
    try:
        with tqdm(total=total, desc="screen", unit="crystal", disable=None) as bar:
            for row in rows:
                waiting.append(row)
                bar.update()
                if time.monotonic() - written > WRITE_EVERY_S:
                    store.write(out, waiting)
                    waiting, written = [], time.monotonic()
    finally:
        if waiting:
            store.write(out, waiting)


def summary(found: Screened, out: Path) -> str:
    """The lines printed at the end of a run."""
    shown = [f"  {name}: {error}" for name, error in found.failed[:10]]
    more = [f"  and {len(found.failed) - len(shown)} more, see the column error"] if len(found.failed) > 10 else []
    return "\n".join(
        [
            f"{found.crystals} crystals: {found.computed} computed in {found.seconds:.1f} s, "
            f"{found.crystals - found.computed} were there, {len(found.failed)} failed",
            *shown,
            *more,
        ]
    )
