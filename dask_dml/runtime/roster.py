"""The workers of a cluster, as a client sees them: who they are, and who cannot be used."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping
from concurrent import futures
from typing import Any

import dask
from dask.utils import parse_bytes
from distributed import Client
from distributed.comm.addressing import get_address_host

from dask_dml.errors import NoWorkersError, WorkerPackageError
from dask_dml.runtime.importing import importer
from dask_dml.runtime.waiting import in_loop
from dask_dml.version import __version__

# Status of workers that may be given work; those paused for memory will go on.
_ABLE = ("init", "running", "paused")
_LOOPBACK = ("127.0.0.1", "::1")
# How long workers are waited for to say what they have; those that take longer come in later.
_ANSWER_S = 3.0
# What a worker imports to say what it has. scipy.sparse, before a block is unpickled there: threads
# that import the whole of it and a part of it at the same time lock each other out. And what is
# compiled, whose import would take the first task a second.
_IMPORTED = ("dask_dml", "scipy.sparse", "dask_dml.objective.kernels")


class Roster:
    """Workers that may be given work.

    Parameters
    ----------
    client : distributed.Client

    Raises
    ------
    NoWorkersError
        If the cluster has no worker.
    WorkerPackageError
        If dask_dml is missing on a worker, or is of another version there.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._refused: set[str] = set()
        self._asked: dict[str, futures.Future[Any]] = {}
        self._seen: dict[str, int] = {}
        self._seen_s = -math.inf
        self._bandwidths: list[float] = []
        self.threads: dict[str, int] = self.look()
        if not self.threads:
            raise NoWorkersError(
                f"the cluster at {address_of(client)} has no workers: start some "
                "(cluster.scale(2)), or wait for them with client.wait_for_workers(1)"
            )
        if misfits := _misfits(self._versions(self.threads)):
            raise WorkerPackageError(_misfit_message(misfits))

    def look(self) -> dict[str, int]:
        """Threads of each worker there is now, in a fixed order."""
        return self.seen(0.0)

    def seen(self, within_s: float) -> dict[str, int]:
        """Threads of each worker there was when last looked, if that was not long ago."""
        now_s = time.monotonic()
        if now_s - self._seen_s >= within_s:
            workers = self._identities()
            self._seen = {
                address: int(worker["nthreads"])
                for address, worker in sorted(workers.items())
                if worker.get("status", "running") in _ABLE
            }
            self._seen_s = now_s
            self._bandwidths = [
                float(worker["metrics"]["bandwidth"]["total"])
                for worker in workers.values()
                if "bandwidth" in worker.get("metrics", {})
            ]
        return {worker: n for worker, n in self._seen.items() if worker not in self._refused}

    @property
    def bandwidth(self) -> float:
        """Bytes a second that workers fetch from each other, as Dask has measured it."""
        usual = float(parse_bytes(dask.config.get("distributed.scheduler.bandwidth")))
        return statistics.median(self._bandwidths or [usual])

    @property
    def is_on_this_machine(self) -> bool:
        """Whether all workers can be reached from here without asking a network."""
        return all(get_address_host(worker) in _LOOPBACK for worker in self._seen)

    def admit(self, now: Mapping[str, int]) -> dict[str, str]:
        """Take over who is there now, without newcomers that cannot be used.

        Newcomers that do not say in time what they have are left out, and come in later.

        Returns
        -------
        dict of str to str
            What refused newcomers have in place of this version of the package.
        """
        joined = [worker for worker in now if worker not in self.threads]
        versions = self._versions(joined)
        misfits = _misfits(versions)
        self._refused |= misfits.keys()
        usable = (self.threads.keys() | versions.keys()) - misfits.keys()
        self.threads = {worker: n for worker, n in now.items() if worker in usable}
        return misfits

    def memory_limits(self) -> dict[str, int]:
        """Memory limit of each worker in bytes, 0 for none."""
        return {
            address: int(worker["memory_limit"] or 0)
            for address, worker in self._identities().items()
        }

    def _identities(self) -> dict[str, dict[str, Any]]:
        # Not `client.scheduler_info`: the client refreshes that by itself too, without the workers,
        # and may do so between the question and the answer.
        scheduler: Any = self._client.scheduler
        workers: dict[str, dict[str, Any]] = self._client.sync(scheduler.identity, n_workers=-1)[
            "workers"
        ]
        return workers

    def _versions(self, workers: Iterable[str]) -> dict[str, str]:
        """What each worker has of this package, of those that have answered."""
        for worker in workers:
            if worker not in self._asked:
                self._asked[worker] = in_loop(self._client, self._ask(worker))
        waited_for = {worker: self._asked[worker] for worker in workers}
        futures.wait(waited_for.values(), timeout=_ANSWER_S)
        found = {worker: answer.result() for worker, answer in waited_for.items() if answer.done()}
        for worker, has in found.items():
            if not isinstance(has, str | ImportError):
                del self._asked[worker]  # it may be leaving, or not quite there: ask once more
        return {
            worker: f"missing ({has})" if isinstance(has, ImportError) else has
            for worker, has in found.items()
            if isinstance(has, str | ImportError)
        }

    async def _ask(self, worker: str) -> Any:
        answer = await self._client.run(importer(), *_IMPORTED, workers=[worker], on_error="return")
        return answer.get(worker)


def _misfits(versions: Mapping[str, str]) -> dict[str, str]:
    return {worker: has for worker, has in versions.items() if has != __version__}


def address_of(client: Client) -> str:
    """Address of a client's scheduler."""
    return str(client.scheduler.address if client.scheduler else "a client that is closed")


def _misfit_message(misfits: Mapping[str, str]) -> str:
    listed = "; ".join(f"{worker}: {found}" for worker, found in sorted(misfits.items()))
    return (
        f"the workers need dask_dml {__version__}, as here, and have: {listed}. Install it "
        f"where they run (pip install dask-dml=={__version__}, in their image or by "
        "client.register_plugin(distributed.PipInstall([...])))"
    )
