"""Several processes that work as one: starting them, waiting for each other, gathering what each holds."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the processes of a run, before anything else touches a device.

    jax finds the three by itself (jax._src.clusters of 0.10) under Slurm; Open MPI 4 (by OMPI_MCA_orte_hnp_uri, which
    Open MPI 5 does not set); on Cloud TPU, one slice or several (GCE's metadata, GKE's environment); and in an indexed
    Kubernetes Job or JobSet where the Python package kubernetes is installed. Under Slurm and Open MPI, off TPU, each
    process takes the one device of its local number. Elsewhere give them.

    Args:
      coordinator: "host:port" of process 0. num_processes: how many there are. process_id: which this is, from 0.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except ValueError as error:
        raise ValueError(
            f"jax.distributed did not start ({error}); give --coordinator=host:port, --num_processes and --process_id"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole of an array, also where other processes hold parts of it (then all of them must call this)."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
