"""The watcher's helpers on workers and nannies: put there, asked, and taken off again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from distributed import Scheduler, Status
from distributed.protocol.pickle import dumps

from dask_dml.runtime.importing import importer
from dask_dml.runtime.relay import asked
from dask_dml.runtime.worker_plugin import HeartbeatPlugin, NannyWatch

logger = logging.getLogger(__name__)

# How long and how often it is tried to give a plugin to a worker or nanny; to how many at once.
_EQUIP_S = 60.0
_EQUIP_TIMES = 3
_RETRY_S = 3.0
_LOOK_S = 0.05
_AT_ONCE = 32


_IMPORT = {
    "function": dumps(importer()),
    "args": dumps(("dask_dml", "dask_dml.runtime.worker_plugin")),
}


class Crew:
    """The plugins on workers and nannies, and the questions that are under way.

    Plugins are not put on the scheduler's own lists, since a newcomer without this package, or with
    another version of it, could then not join at all.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    name : str
        Goes into the names of the plugins: what an earlier watcher still takes off is not this
        one's.
    host, port : str, int
        Where heartbeats go.
    key : bytes
        Secret that signs them.
    interval_s : float
        Between two of a worker's.

    Attributes
    ----------
    equipped : set of str
        Workers and nannies that have their plugin.
    """

    def __init__(
        self, scheduler: Scheduler, name: str, host: str, port: int, key: bytes, interval_s: float
    ) -> None:
        self._scheduler = scheduler
        self._heartbeat = HeartbeatPlugin(f"dml-heartbeat-{name}", host, port, key, interval_s)
        self._watch = NannyWatch(f"dml-nanny-watch-{name}")
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[object]] = set()
        self._adding: set[asyncio.Task[object]] = set()
        self._is_leaving = False
        self.equipped: set[str] = set()

    @property
    def interval_s(self) -> float:
        """Interval of heartbeats."""
        return self._heartbeat.interval_s

    def spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Have something done that nobody waits for; failures are logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def stop(self) -> None:
        """Cancel what is under way: the scheduler ends."""
        for task in self._tasks:
            task.cancel()

    def leave(self) -> None:
        """Cancel what is under way, and take all plugins off."""
        self._is_leaving = True
        # One that is being added would come after its removal, and stay.
        for task in self._tasks - self._adding:
            task.cancel()
        for server in self.equipped:
            self.spawn(self._remove(server))

    async def ask(self, server: str, op: str, limit_s: float, /, **message: Any) -> Any:
        """Ask a worker or nanny; see `dask_dml.runtime.relay.asked`."""
        return await asked(self._scheduler.rpc, server, op, limit_s, **message)

    def equip(self, worker: str, nanny: str | None) -> None:
        """Give a worker and its nanny their plugins."""
        self._adding.add(self.spawn(self._add(worker, worker, "plugin-add", self._heartbeat)))
        if nanny:
            self._adding.add(self.spawn(self._add(worker, nanny, "plugin_add", self._watch)))

    async def pace(self, interval_s: float) -> None:
        """Have heartbeats sent at another interval."""
        self._heartbeat.interval_s = interval_s

        async def told(worker: str) -> None:
            async with self._turn:
                await self.ask(worker, "dml_pace", _EQUIP_S, interval_s=interval_s)

        workers = [worker for worker in self._scheduler.workers if worker in self.equipped]
        await asyncio.gather(*(told(worker) for worker in workers))

    async def _remove(self, server: str) -> None:
        op, plugin = "plugin_remove", self._watch.name
        if server in self._scheduler.workers:
            op, plugin = "plugin-remove", self._heartbeat.name
        answer = await self.ask(server, op, _EQUIP_S, name=plugin)
        if isinstance(answer, BaseException):
            logger.info("%s could not be told to drop %s: %r", server, plugin, answer)

    async def _add(
        self, worker: str, server: str, op: str, plugin: HeartbeatPlugin | NannyWatch
    ) -> None:
        answer: Any = None
        await self._up(worker)
        for _ in range(_EQUIP_TIMES):
            async with self._turn:
                # In a thread: it takes seconds the first time, and the event loop would be silent
                # meanwhile. Where this is not allowed, the plugin itself imports it.
                await self.ask(server, "run", _EQUIP_S, **_IMPORT)
                answer = await self.ask(
                    server, op, _EQUIP_S, plugin=dumps(plugin), name=plugin.name
                )
            if worker not in self._scheduler.workers:
                return
            if isinstance(answer, dict) and answer.get("status") == "OK":
                self.equipped.add(server)
                if self._is_leaving:
                    await self._remove(server)
                return
            if self._is_leaving:
                return
            await asyncio.sleep(_RETRY_S)
        logger.warning(
            "%s took no plugin %s (%r): worker %s is watched by what is left, probes at the least",
            server, plugin.name, answer, worker,
        )  # fmt: skip

    async def _up(self, worker: str) -> None:
        """Wait until a newcomer has started.

        It joins before, and what it imports then and what it is asked to import wait for each other
        now and then; a nanny, and with it a cluster, waits for a start without an end.
        """
        end_s = time.monotonic() + _EQUIP_S
        while (state := self._scheduler.workers.get(worker)) and state.status == Status.init:
            if time.monotonic() > end_s:
                break
            await asyncio.sleep(_LOOK_S)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        self._adding.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the fault monitor failed at %s", task.get_coro(), exc_info=error)
