"""Who hosts which range of the parameter holders: decided on the scheduler."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from distributed import Scheduler, Status
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps

from dask_dml.exchange.holder import Outcome, choose_hosts
from dask_dml.faults.timeline import TOPIC
from dask_dml.runtime.holder_host import HolderHost, reply_limit_s
from dask_dml.version import __version__

logger = logging.getLogger(__name__)

NAME = "dml-holder-directory"

_PING_S = 2.0
# How long taking the plugin may last, which imports what it needs, and how long those that have it
# wait for others that are slower.
_EQUIP_S = 30.0
_EQUIP_SOON_S = 1.0
# How long a primary is asked that does not answer and that nobody can replace.
_PATIENCE_S = 30.0
# A worker is new for so long before it is made a replica.
_SETTLE_S = 1.0
_RETRY_S = 0.05
_HANDLERS = (
    "dml_holder_begin", "dml_holder_send", "dml_holder_collect", "dml_holder_accuse",
    "dml_holder_where", "dml_holder_wants", "dml_holder_end",
)  # fmt: skip


@dataclass(slots=True)
class _Range:
    """Hosts of one range; one change at a time."""

    index: int
    epoch: int = -1
    hosts: tuple[str, ...] = ()
    last_epoch: int = -1  # that was used, if in vain
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class _Run:
    client: str
    n_hosts: int
    ranges: list[_Range]
    generation: int = 0
    events: list[dict[str, str]] = field(default_factory=list)


class HolderDirectory(SchedulerPlugin):
    """Chooses hosts, promotes replicas of those that are lost, and passes on what clients say.

    It comes with the first run that needs a holder, and takes everything off the workers, itself
    included, when the last one ends.
    """

    name = NAME
    idempotent = True

    # -- coming and going -------------------------------------------------------------------

    async def start(self, scheduler: Scheduler) -> None:
        """Begin to answer. Never yields, so that of two runs that come at once one starts it."""
        self._scheduler = scheduler
        self._runs: dict[str, _Run] = {}
        self._plugin = f"dml-holder-{secrets.token_hex(4)}"
        self._equipping: asyncio.Task[None] | None = None
        self._equipped: set[str] = set()
        self._avoided: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._handlers = {name: getattr(self, name) for name in _HANDLERS}
        scheduler.handlers.update(self._handlers)

    async def before_close(self) -> None:
        """Stop: the scheduler ends."""
        for task in self._tasks:
            task.cancel()

    def _leave(self) -> None:
        """Take everything off the cluster."""
        scheduler = self._scheduler
        if scheduler.plugins.get(self.name) is self:
            scheduler.remove_plugin(self.name)
        for name, handler in self._handlers.items():
            if scheduler.handlers.get(name) == handler:
                del scheduler.handlers[name]
        scheduler.worker_plugins.pop(self._plugin, None)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _equip(self) -> None:
        """Give the workers their part, and wait for as many as can host soon."""
        plugin = dumps(HolderHost(self._plugin))
        # Workers that join get it from here.
        self._scheduler.worker_plugins[self._plugin] = plugin
        pending = {
            asyncio.create_task(self._equip_one(worker, plugin))
            for worker in self._scheduler.workers
        }
        self._tasks |= pending
        for task in pending:
            task.add_done_callback(self._tasks.discard)
        if pending:
            _, pending = await asyncio.wait(pending, timeout=_EQUIP_SOON_S)
        # A second host as well; the rest takes its part when it can.
        while pending and len(self._equipped) < 2:
            _, pending = await asyncio.wait(pending, return_when="FIRST_COMPLETED")

    async def _equip_one(self, worker: str, plugin: bytes) -> None:
        reply = await self._call(worker, "plugin-add", _EQUIP_S, plugin=plugin, name=self._plugin)
        if reply is not None and reply["status"] == "OK":
            await self._complete(worker)
        else:
            logger.info("%s has not taken %s: %s", worker, self._plugin, reply)

    # -- what clients ask -------------------------------------------------------------------

    async def dml_holder_begin(
        self, run: str, client: str, version: str, replicas: int, count: int
    ) -> dict[str, Any]:
        """Choose the hosts of a run."""
        if version != __version__:
            if not self._runs:
                self._leave()
            return _refusal(
                f"the scheduler has dask_dml {__version__} and run {run} comes from {version}: "
                "have the same version on both"
            )
        if client not in self._scheduler.clients:
            if not self._runs:
                self._leave()
            return _refusal(f"run {run} comes from {client}, which is no client of this scheduler")
        ranges = [_Range(index) for index in range(count)]
        self._runs[run] = _Run(client, 1 + replicas, ranges)
        if self._equipping is None:
            self._equipping = asyncio.create_task(self._equip())
        await asyncio.shield(self._equipping)
        await self._reopen(run)
        return {**self.dml_holder_where(run), "plugin": self._plugin}

    async def dml_holder_send(
        self, run: str, generation: int, nbytes: int, messages: list[Any]
    ) -> dict[str, Any]:
        """Pass on parameters, a message a range, to the primaries.

        The answer "anew" tells a client that ranges are hosted anew, and that it has to send all
        parameters.
        """
        known = self._runs.get(run)
        if known is None:
            return self._stale(run)
        await self._reopen(run)
        if known.generation != generation:
            return {**self.dml_holder_where(run), "status": "anew"}
        replies = await asyncio.gather(
            *(
                self._ask(
                    run, known.ranges[index], "dml_holder_publish", nbytes,
                    index=index, message=message,
                )
                for index, message in enumerate(messages)
            )
        )  # fmt: skip
        outcomes = {reply["outcome"] for reply in replies}
        if Outcome.UNKNOWN in outcomes:
            await self._reopen(run)
            return {**self.dml_holder_where(run), "status": "anew"}
        return {**self.dml_holder_where(run), "outcomes": sorted(outcomes)}

    async def dml_holder_collect(self, run: str, version: int, nbytes: int) -> dict[str, Any]:
        """Fetch the sums of each range, as far as there are any."""
        known = self._runs.get(run)
        if known is None:
            return self._stale(run)
        replies = await asyncio.gather(
            *(
                self._ask(
                    run, at, "dml_holder_sums", nbytes, run=run, index=at.index, version=version
                )
                for at in known.ranges
            )
        )
        return {"status": "OK", "ranges": replies, **self._news(known)}

    def dml_holder_where(self, run: str) -> dict[str, Any]:
        """Tell who the hosts of each range are."""
        known = self._runs.get(run)
        if known is None:
            return self._stale(run)
        return {
            "status": "OK",
            "generation": known.generation,
            "places": [(at.epoch, at.hosts) for at in known.ranges],
            **self._news(known),
        }

    async def dml_holder_accuse(
        self, run: str, index: int, epoch: int, host: str
    ) -> dict[str, Any]:
        """Look whether a host that did not answer is one still, and tell who it is by then."""
        known = self._runs.get(run)
        if known is None:
            return self._stale(run)
        at = known.ranges[index]
        await self._doubt(run, at, epoch, host)
        return {"status": "OK", "epoch": at.epoch, "hosts": at.hosts}

    def dml_holder_wants(self, plugin: str) -> bool:
        """Tell a worker that was equipped late whether that is still of use."""
        return plugin == self._plugin

    async def dml_holder_end(self, run: str) -> dict[str, Any]:
        """Have everybody forget a run."""
        if self._runs.pop(run, None) is None:
            return self._stale(run)
        if self._runs:
            await self._tell(self._scheduler.workers, "dml_holder_drop", run=run)
        else:
            self._leave()
            await self._tell(self._scheduler.workers, "plugin-remove", name=self._plugin)
        return {"status": "OK"}

    def _stale(self, run: str) -> dict[str, Any]:
        known = ", ".join(sorted(self._runs)) or "none"
        return _refusal(f"a message of run {run} is refused: the holders are of runs: {known}")

    def _news(self, known: _Run) -> dict[str, Any]:
        events, known.events = known.events, []
        return {"events": events}

    # -- what the scheduler tells -----------------------------------------------------------

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """A worker is new, and may be a replica that was missing."""
        self._spawn(self._settle(worker))

    def remove_worker(
        self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any
    ) -> None:
        """A worker is gone, and what it hosted."""
        self._avoided.discard(worker)
        self._equipped.discard(worker)
        self._spawn(self._replace(worker))

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """A client is gone, and its runs with it."""
        for run in [name for name, known in self._runs.items() if known.client == client]:
            self._spawn(self.dml_holder_end(run))

    def log_event(self, topic: str, msg: Any) -> None:
        """Hear of workers that are suspect or about to be lost, and have others host in time."""
        if topic != TOPIC or not isinstance(msg, dict):
            return
        kind, worker = msg.get("kind"), msg.get("worker", "")
        if kind in ("worker-suspected", "worker-draining"):
            self._avoided.add(worker)
            self._spawn(self._relieve(worker))
        elif kind == "worker-recovered":
            self._avoided.discard(worker)

    # -- hosts ------------------------------------------------------------------------------

    async def _reopen(self, run: str) -> None:
        """Have the ranges that nobody hosts hosted anew, empty."""
        known = self._runs[run]
        for at in known.ranges:
            async with at.lock:
                failed: set[str] = set()
                while not at.hosts and (hosts := self._chosen(known, (), failed)):
                    at.last_epoch += 1
                    reply = await self._call(
                        hosts[0], "dml_holder_open", _PING_S, run=run, index=at.index,
                        count=len(known.ranges), epoch=at.last_epoch, hosts=hosts,
                    )  # fmt: skip
                    if reply is None:
                        failed.add(hosts[0])
                        continue
                    at.epoch, at.hosts = at.last_epoch, hosts
                    known.generation += 1

    def _chosen(
        self, known: _Run, keep: tuple[str, ...], but: Iterable[str] = ()
    ) -> tuple[str, ...]:
        machines = {
            ws.address: ws.host
            for ws in self._scheduler.workers.values()
            if ws.status is Status.running and ws.address in self._equipped.difference(but)
        }
        calm = {host: at for host, at in machines.items() if host not in self._avoided}
        held: dict[str, int] = {}
        for run in self._runs.values():
            for at in run.ranges:
                for host in at.hosts:
                    held[host] = held.get(host, 0) + 1
        return choose_hosts(calm or machines, held, keep, known.n_hosts)

    async def _doubt(self, run: str, at: _Range, epoch: int, host: str) -> None:
        """Replace a host that does not answer, or that should be the primary and is not."""
        async with at.lock:
            if epoch > at.epoch and run in self._runs:
                # A promotion was heard and its answer was not: a newer one settles who hosts.
                await self._promote(run, at, self._chosen(self._runs[run], at.hosts))
                return
            if at.epoch != epoch or host not in at.hosts:
                return
            reply = await self._call(host, "dml_holder_ping", _PING_S, run=run, index=at.index)
            if reply is not None and (reply["is_primary"] or host != at.hosts[0]):
                return
            evidence = f"no answer within {_PING_S:g} s" if reply is None else "not the primary"
            is_waited_for = reply is None and host not in self._avoided
            if not await self._hand_over(run, at, host, evidence) and not is_waited_for:
                self._lose(run, at, host, evidence)

    async def _replace(self, worker: str) -> None:
        for run, at in self._hosted_by(worker):
            async with at.lock:
                if worker in at.hosts:
                    evidence = "left the cluster"
                    if not await self._hand_over(run, at, worker, evidence):
                        self._lose(run, at, worker, evidence)

    async def _relieve(self, worker: str) -> None:
        for run, at in self._hosted_by(worker):
            async with at.lock:
                if worker in at.hosts:
                    await self._hand_over(run, at, worker, "suspect or about to be lost")

    async def _settle(self, worker: str) -> None:
        """Workers that join bring the plugin: the scheduler has given it to them."""
        await asyncio.sleep(_SETTLE_S)
        await self._complete(worker)

    async def _complete(self, worker: str) -> None:
        """Have a worker that can host from now on be the replica that was missing."""
        if worker not in self._scheduler.workers:
            return
        self._equipped.add(worker)
        for run, known in list(self._runs.items()):
            for at in known.ranges:
                async with at.lock:
                    if 0 < len(at.hosts) < known.n_hosts:
                        hosts = self._chosen(known, at.hosts)
                        if len(hosts) > len(at.hosts):
                            await self._promote(run, at, hosts)

    def _hosted_by(self, worker: str) -> list[tuple[str, _Range]]:
        return [
            (run, at)
            for run, known in self._runs.items()
            for at in known.ranges
            if worker in at.hosts
        ]

    def _lose(self, run: str, at: _Range, host: str, evidence: str) -> None:
        at.last_epoch += 1
        at.epoch, at.hosts = at.last_epoch, ()
        self._note(
            run, "holder-lost", host, evidence,
            "no replica was left: parameters are published again, missing blocks done again",
        )  # fmt: skip

    async def _hand_over(self, run: str, at: _Range, host: str, evidence: str) -> bool:
        """Have the other hosts go on without one; whether one of them can."""
        known = self._runs.get(run)
        if known is None:
            return True
        left = tuple(other for other in at.hosts if other != host)
        while left:
            was_primary = left[0] != at.hosts[0]
            hosts = self._chosen(known, left, (host,))
            if await self._promote(run, at, hosts):
                if was_primary:
                    others = ", ".join(hosts[1:]) or "nobody, for want of another worker"
                    action = f"{hosts[0]} took over; copies go to {others}"
                    self._note(run, "holder-promoted", host, evidence, action)
                return True
            left = left[1:]
        return False

    async def _promote(self, run: str, at: _Range, hosts: tuple[str, ...]) -> bool:
        at.last_epoch += 1
        reply = await self._call(
            hosts[0], "dml_holder_promote", _PING_S, run=run, index=at.index,
            epoch=at.last_epoch, hosts=hosts,
        )  # fmt: skip
        if reply is None or reply["status"] != "OK":
            return False
        at.epoch, at.hosts = at.last_epoch, hosts
        return True

    def _note(self, run: str, kind: str, worker: str, evidence: str, action: str) -> None:
        event = {"kind": kind, "worker": worker, "evidence": evidence, "action": action}
        logger.info("%s of run %s: %s %s; %s", kind, run, worker, evidence, action)
        if run in self._runs:
            self._runs[run].events.append(event)

    # -- messages ---------------------------------------------------------------------------

    async def _ask(
        self, run: str, at: _Range, op: str, nbytes: int, /, **message: Any
    ) -> dict[str, Any]:
        """Ask the primary of a range, whoever that is by then; UNKNOWN when there is none."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _PATIENCE_S
        while at.hosts and run in self._runs and loop.time() < until_s:
            epoch, host = at.epoch, at.hosts[0]
            reply = await self._call(host, op, reply_limit_s(2 * nbytes), **message)
            if reply is not None and reply["outcome"] != Outcome.MOVED:
                return reply
            await self._doubt(run, at, epoch, host)
            if at.epoch == epoch:
                await asyncio.sleep(_RETRY_S)
        return {"outcome": Outcome.UNKNOWN.value}

    async def _call(
        self, worker: str, op: str, limit_s: float, /, **message: Any
    ) -> dict[str, Any] | None:
        """Ask a worker; None when it does not answer."""
        try:
            call = getattr(self._scheduler.rpc(worker), op)(**message)
            return await asyncio.wait_for(call, limit_s)
        except (TimeoutError, OSError):
            return None

    async def _tell(self, workers: Iterable[str], op: str, **message: Any) -> None:
        await asyncio.gather(*(self._call(worker, op, _PING_S, **message) for worker in workers))


def _refusal(message: str) -> dict[str, Any]:
    return {"status": "refused", "message": message}
