"""Several devices, several processes: one mesh over all of them, and the few things processes have to agree on.

Every process runs the same program on the same files, so that all hold the same weights and know every batch. A batch
is one graph a device, and a process builds the graphs of its own devices alone.
"""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jraph
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from equijax.errors import InputError

T = TypeVar("T")
EVERYWHERE, SPLIT = PartitionSpec(), PartitionSpec("data")


def join(coordinator: str | None, processes: int | None, *, process: int | None) -> None:
    """Become one of the processes of a job, before anything is computed.

    Args:
      coordinator: HOST:PORT of process 0; None for JAX_COORDINATOR_ADDRESS or what a cluster's environment says.
      processes: how many there are, and
      process: which one this is; None where the environment says (SLURM, Open MPI, Kubernetes, TPU pods).

    Raises:
      InputError: neither given nor found.
    """
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:
        raise InputError(
            f"cannot join the other processes ({error}): give coordinator, processes and process"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def wait(what: str) -> None:
    """Return when every process is here."""
    if several():
        multihost_utils.sync_global_devices(what)


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process: the same answer in all of them."""
    return bool(multihost_utils.process_allgather(np.array(flag)).any()) if several() else flag


def from_first(values: dict[str, float | None]) -> dict[str, float | None]:
    """The numbers of process 0, to the last bit, in every process."""
    if not several():
        return values
    own = np.array([np.nan if v is None else v for v in values.values()], np.float64)
    bits = np.asarray(multihost_utils.broadcast_one_to_all(own.view(np.int32)))  # JAX would round float64 to float32
    shared = np.ascontiguousarray(bits).view(np.float64).tolist()
    return {k: None if v is None else x for (k, v), x in zip(values.items(), shared, strict=True)}


def data_mesh(devices: int) -> Mesh | None:
    """A mesh with the axis "data" over this many devices, or over all devices of all processes; None for one device.

    Raises:
      InputError: more devices asked for than there are.
    """
    if several():
        return Mesh(np.array(jax.devices()), ("data",))
    if devices > jax.device_count():
        raise InputError(f"{devices} devices asked for, this machine has {jax.device_count()}")
    return None if devices == 1 else Mesh(np.array(jax.devices()[:devices]), ("data",))


def mine(mesh: Mesh) -> list[int]:
    """Positions in the mesh of the devices of this process."""
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]


def stack(graphs: Sequence[jraph.GraphsTuple], mesh: Mesh) -> jraph.GraphsTuple:
    """Graphs of one shape for the devices `mine`, as arrays with a leading device axis over the whole mesh."""
    placed = NamedSharding(mesh, SPLIT)
    return jax.tree.map(lambda *x: jax.make_array_from_process_local_data(placed, np.stack(x)), *graphs)


def replicate(tree: T, mesh: Mesh | None) -> T:
    """Arrays on every device of the mesh, or on the default device."""
    if mesh is None:
        return jax.device_put(tree)
    return jax.device_put(jax.tree.map(np.asarray, tree), NamedSharding(mesh, EVERYWHERE))
