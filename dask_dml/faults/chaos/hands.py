"""What can be done to the workers of a cluster that somebody else started: through Dask alone."""

from __future__ import annotations

import math
import os
import signal
import threading
import time

import numpy as np
import psutil
from distributed import Client, Worker

from dask_dml.errors import ClusterError
from dask_dml.faults.chaos.processes import start_signaller
from dask_dml.faults.schedule import Fault

FOREIGN_KINDS = frozenset({"kill", "hang", "slow", "memory", "retire"})
# Nannies look at memory ten times a second and end a worker at 0.95 of its limit.
_BEYOND = 1.1
_STEPS = 20
_HOLD_S = 2.0
# A hang without an end is one that outlasts everybody's patience.
_FOR_EVER_S = 86_400.0


class ForeignHands:
    """Causes faults on a cluster through its client.

    Machines are its workers in the order of their addresses, as they are now; one that leaves is
    not counted anew.

    Parameters
    ----------
    client : distributed.Client
        Synchronous.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._workers = sorted(client.scheduler_info(n_workers=-1)["workers"])

    def begin(self, fault: Fault) -> str:
        """Begin a fault; what was done.

        Raises
        ------
        ClusterError
            If the fault cannot be caused through Dask, or there is no such worker (any more).
        """
        if fault.kind not in FOREIGN_KINDS:
            raise ClusterError(
                f"{fault.kind} cannot be caused on a cluster that others started: that can only "
                f"{', '.join(sorted(FOREIGN_KINDS))}"
            )
        if fault.target >= len(self._workers):
            raise ClusterError(
                f"there is no worker {fault.target}: the cluster had {len(self._workers)}"
            )
        worker = self._workers[fault.target]
        if worker not in self._client.scheduler_info(n_workers=-1)["workers"]:
            raise ClusterError(f"{worker} has left")
        match fault.kind:
            case "kill":
                self._client.run(_shoot, workers=[worker])
            case "hang" | "slow":
                duration_s = min(fault.duration_s, _FOR_EVER_S)
                self._client.run(_disturb, fault.kind, duration_s, workers=[worker])
            case "memory":
                self._client.run(grow, fault.duration_s, workers=[worker])
            case "retire":
                self._client.retire_workers([worker])
        return f"{fault.kind} {worker}"

    def end(self, fault: Fault) -> str:
        """End a fault: all of these end by themselves."""
        return f"{fault.kind} is over"


def _shoot() -> None:
    """Kill this process, once it has answered."""
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()


def _disturb(action: str, duration_s: float) -> None:
    """Have another process disturb this one; it outlives it, and then ends."""
    start_signaller(os.getpid(), action, duration_s)


def grow(duration_s: float, dask_worker: Worker) -> None:
    """Have this process grow beyond its memory limit within some time, and shrink again.

    Parameters
    ----------
    duration_s : float
    dask_worker : distributed.Worker
        Filled in by Dask.

    Raises
    ------
    ClusterError
        If the worker has no memory limit.
    """
    limit = dask_worker.memory_manager.memory_limit
    if not limit:
        raise ClusterError(f"{dask_worker.address} has no memory limit that it could exceed")
    need = max(_BEYOND * limit - psutil.Process().memory_info().rss, 0.0)
    step = math.ceil(need / _STEPS / 8)

    def hog() -> None:
        held = []
        for _ in range(_STEPS):
            held.append(np.ones(step))
            time.sleep(duration_s / _STEPS)
        time.sleep(_HOLD_S)

    threading.Thread(target=hog, name="dml-chaos-memory", daemon=True).start()
