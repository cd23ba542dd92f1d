"""The scheduler's part in rounds by call: it tells workers their orders, and passes calls on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from distributed import Scheduler

from dask_dml.runtime.crew import Crew
from dask_dml.runtime.relay import Call, passed_on

# How long a worker may take to take an order.
_ORDER_S = 0.5
_DISMISS_S = 10.0
# To how many workers orders go at once.
_AT_ONCE = 64


class Dispatch:
    """Standing orders and calls of the runs on a cluster.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    crew : Crew
        Its plugins on the workers take orders and calls.
    """

    def __init__(self, scheduler: Scheduler, crew: Crew) -> None:
        self._scheduler = scheduler
        self._crew = crew
        self._ordered: dict[str, tuple[str, ...]] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self.n_calls = 0

    async def order(self, run: str, number: int, shards: Mapping[str, bytes]) -> list[str]:
        """Tell workers what they are to do whenever a run calls.

        Parameters
        ----------
        run : str
        number : int
            Of the order.
        shards : mapping of str to bytes
            Of each worker, in the order of their blocks; see `dask_dml.runtime.resident`.

        Returns
        -------
        list of str
            Workers that did not take it.
        """
        before = set(self._ordered.get(run, ()))
        self._ordered[run] = tuple(shards)
        self._dismiss(run, before - shards.keys())

        async def told(worker: str, theirs: bytes) -> bool:
            async with self._turn:
                answer = await self._crew.ask(
                    worker, "dml_order", _ORDER_S, run=run, number=number, shards=theirs
                )
            return answer is True

        able = {worker: theirs for worker, theirs in shards.items() if self._can(worker)}
        took = await asyncio.gather(*(told(*item) for item in able.items()))
        return [w for w in shards if not dict(zip(able, took, strict=True)).get(w, False)]

    async def call(self, call: Call) -> list[dict[str, Any]]:
        """Have all workers of a run's order do their share of a round; their answers, unopened."""
        self.n_calls += 1
        below = tuple(worker for worker in self._ordered.get(call.run, ()) if self._can(worker))
        answers = await passed_on(self._scheduler.rpc, replace(call, below=below))
        return [answer.message for answer in answers]

    def drop(self, run: str) -> None:
        """Have nothing more done for a run."""
        self._dismiss(run, set(self._ordered.pop(run, ())))

    def _dismiss(self, run: str, workers: set[str]) -> None:
        for worker in workers:
            if self._can(worker):
                self._crew.spawn(self._crew.ask(worker, "dml_dismiss", _DISMISS_S, run=run))

    def _can(self, worker: str) -> bool:
        return worker in self._crew.equipped and worker in self._scheduler.workers
