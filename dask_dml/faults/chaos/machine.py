"""The processes of a chaos cluster: a scheduler, or a machine, which is a nanny and its worker.

It runs as `python -m dask_dml.faults.chaos.machine SPEC`, reads lines of JSON from its standard
input and writes lines of JSON to its standard output. When its input ends, so does everything in
its session.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
from typing import Any

import dask
from distributed import Nanny, Scheduler, Status
from distributed.utils import get_mp_context

from dask_dml.faults.chaos.metadata import StandInMetadata
from dask_dml.faults.chaos.network import RelayControl

# A worker that dies is there again at once when all this need not be imported anew.
_PRELOAD = ["distributed", "dask.array", "numpy", "pandas", "dask_dml.linear_model"]


class MachineNanny(Nanny):
    """A nanny that can be reached, as its worker can, through a relay only, and says who it has.

    Parameters
    ----------
    machine : int
        Its number.
    host : str
    relay : str
        Unix socket of the relay; empty: it is reached directly.
    **options : Any
        Of `Nanny`.
    """

    def __init__(self, machine: int, host: str, relay: str, **options: Any) -> None:
        super().__init__(host=host, **options)
        self._machine = machine
        self._own_host = host
        self._control = RelayControl(relay) if relay else None
        self._contact = ""

    @property
    def address(self) -> str:
        """Where others reach it."""
        if self._control is not None and not self._contact:
            self._contact = self._relayed(int(super().address.rsplit(":", 1)[1]))
        return self._contact or str(super().address)

    async def instantiate(self) -> Status:
        """Start a worker, at a new address."""
        if self._control is not None:
            with socket.socket() as probe:
                probe.bind((self._own_host, 0))
                port = probe.getsockname()[1]
            self.contact_address = self._relayed(port)
            where = {"port": port, "contact_address": self.contact_address}
            if self.process is None:
                self.worker_kwargs.update(where)
            else:
                self.process.worker_kwargs.update(where)
        status = await super().instantiate()
        report(worker=self.worker_address, pid=self.pid)
        return status

    def _relayed(self, port: int) -> str:
        assert self._control is not None
        port = self._control.open("tcp", self._machine, "in", self._own_host, port)
        return f"tcp://{self._own_host}:{port}"


def report(**facts: Any) -> None:
    """Write a line for the one that started this process."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _obey(metadata: StandInMetadata | None) -> None:
    """Do what standard input says; when it ends, so does this session."""
    for line in sys.stdin:
        said = json.loads(line)
        if metadata is not None:
            metadata.announce(said["deadline_s"])
    os.killpg(0, signal.SIGKILL)


async def run_scheduler(options: dict[str, Any]) -> None:
    """Be a scheduler until it is closed."""
    threading.Thread(target=_obey, args=(None,), name="dml-chaos-input", daemon=True).start()
    async with Scheduler(**options) as scheduler:
        report(scheduler=scheduler.address)
        await scheduler.finished()


async def run_machine(options: dict[str, Any]) -> None:
    """Be a machine until its nanny is closed."""
    with StandInMetadata() as metadata:
        dask.config.set({"dml.preemption.url": metadata.url})
        threading.Thread(
            target=_obey, args=(metadata,), name="dml-chaos-input", daemon=True
        ).start()
        async with MachineNanny(**options) as nanny:
            await nanny.finished()


def main(spec: str) -> None:
    """Be what the specification says.

    Parameters
    ----------
    spec : str
        JSON: ``role``, ``config`` (of Dask), and ``options`` of the scheduler or the nanny.
    """
    said = json.loads(spec)
    dask.config.set(said["config"])
    if said["role"] == "scheduler":
        asyncio.run(run_scheduler(said["options"]))
        return
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    get_mp_context()  # sets its own list, once
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOAD)
    asyncio.run(run_machine(said["options"]))


if __name__ == "__main__":
    main(sys.argv[1])
