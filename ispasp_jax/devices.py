"""Many devices and several hosts: batches are spread over a mesh, the rest is copied.

The jitted functions stay what they are: a sum over a spread batch becomes a sum over
all devices. With several hosts every process runs the same program on the same data,
gives its devices their rows, and takes the first one's word where hosts could differ.
"""

import ctypes
import functools
import os
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ispasp_jax.errors import InputError

_AXIS = "batch"

#: mallopt's parameters and values: M_MMAP_THRESHOLD, so that arrays up to 1 GB come
#: from the heap (larger ones would leave holes that the next do not fit in);
#: M_TRIM_THRESHOLD, so that the heap keeps its end; M_ARENA_MAX, for one heap.
_KEEP_FREED_MEMORY = ((-3, 2**30), (-1, -1), (-8, 1))

#: How long a process that ends waits for the others before it gives them up, and how
#: long one is not heard of before it counts as lost. (One whose connections break is
#: lost at the next sum over all.)
_SECONDS_TO_END = _SECONDS_UNHEARD = 60


def initialise() -> None:
    """Joins the other hosts' processes; call it before anything touches a device.

    jax itself reads JAX_COORDINATOR_ADDRESS and knows Slurm, Open MPI, Kubernetes and
    TPU pods; JAX_NUM_PROCESSES and JAX_PROCESS_ID are read here.

    Raises:
      InputError: not enough is known about the other processes. (Where they do not
        answer for five minutes, or are lost later, jaxlib itself ends the process: the
        commands say it in a sentence, cli/peers.py.)
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is not None and not address.rpartition(":")[2].isdecimal():
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS={address} is not HOST:PORT of the first process."
        )
    result: dict[str, Any] = {}
    for name in ("num_processes", "process_id"):
        text = os.environ.get(f"JAX_{name.upper()}")
        if text is not None and not text.isdecimal():
            raise InputError(f"JAX_{name.upper()}={text} is not a whole number.")
        if text is not None:
            result[name] = int(text)
    try:
        jax.distributed.initialize(
            **result,
            heartbeat_timeout_seconds=_SECONDS_UNHEARD,
            shutdown_timeout_seconds=_SECONDS_TO_END,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the processes cannot be joined: {error} Set JAX_COORDINATOR_ADDRESS "
            "(HOST:PORT of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID "
            "for every process, or start them by Slurm, Open MPI or on a TPU pod."
        ) from error


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, for its next activations; for
    commands, not for libraries, as it is the whole process's.

    XLA's arrays on a CPU are malloc's, and glibc gives those above 32 MB back to the
    system at once, which hands every page out anew: that can take longer than computing
    what is written there. Changes nothing where the C library is another one.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    mallopt = getattr(library, "mallopt", None)
    if mallopt:
        for parameter, value in _KEEP_FREED_MEMORY:
            mallopt(parameter, value)


def mesh(count: int | Literal["all"] | None = "all") -> Mesh:
    """A mesh of one axis over the first `count` devices of every process; None is all
    of them, and one where they are CPUs, which share the same cores anyway.

    Args:
      count: devices of each process, "all", or None.

    Returns:
      The mesh; its one axis is called "batch".

    Raises:
      InputError: a process has fewer.
    """
    present = jax.local_device_count()
    if count is None:
        count = 1 if jax.default_backend() == "cpu" else "all"
    if count != "all" and count > present:
        raise InputError(
            f"{count} devices asked for: {jax.default_backend()} has {present} here; "
            "give fewer, or all."
        )
    chosen = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[: present if count == "all" else count]
    ]
    return jax.make_mesh(
        (len(chosen),), (_AXIS,), axis_types=(AxisType.Auto,), devices=chosen
    )


def place(mesh: Mesh | None, batch: Any) -> Any:
    """Spreads the rows of a batch's arrays over the devices.

    Rows of zeros fill up to a multiple of their number; what a batch weighs is among
    its arrays, so these weigh nothing.

    Args:
      mesh: of `mesh`; None leaves the batch as it is.
      batch: a tree of arrays of equal length, the same on every process.

    Returns:
      The same tree, spread.
    """
    if mesh is None:
        return batch
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))

    def spread(array):
        short = -len(array) % mesh.size
        if short:
            array = np.asarray(array)
            array = np.pad(array, [(0, short)] + [(0, 0)] * (array.ndim - 1))
        return _put(array, sharding)

    return jax.tree.map(spread, batch)


def replicate(mesh: Mesh | None, tree: Any) -> Any:
    """Copies a tree of arrays to all devices; None leaves it as it is.

    Args:
      mesh: of `mesh`; None leaves the tree as it is.
      tree: of arrays, the same on every process.

    Returns:
      The same tree, on every device of the mesh.
    """
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(functools.partial(_put, sharding=sharding), tree)


def _put(array, sharding: NamedSharding):
    if getattr(array, "sharding", None) == sharding:
        return array
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def rows(x: Any, weight: Any) -> Any:
    """The rows of x that weigh something; they stay spread where all of them do.

    Args:
      x: an array, an example a row.
      weight: of the rows, 0 for those that are padding.

    Returns:
      The array without its padding.
    """
    if not getattr(weight, "is_fully_addressable", True):
        weight = multihost_utils.process_allgather(weight, tiled=True)
    real = np.asarray(weight) > 0
    return x if real.all() else x[real]


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def agree(tree: Any) -> Any:
    """The first process's values on every process: arrays and numbers, the same shapes
    everywhere. Results of one program on hosts of different make may differ in their
    last bit, and a decision may not.

    Args:
      tree: arrays and numbers.

    Returns:
      The first process's tree.
    """
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(jax.device_get(tree))


def barrier(name: str) -> None:
    """Waits until every process is here.

    Args:
      name: the same on every process, another for every place in the program.
    """
    multihost_utils.sync_global_devices(name)
