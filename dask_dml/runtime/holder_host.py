"""The parameter holder on the workers: as a host of it, and on behalf of tasks that use it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from distributed import Worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol.serialize import to_serialize

from dask_dml.errors import HolderLostError, StaleRunError
from dask_dml.exchange.holder import (
    Acknowledge,
    Action,
    Copy,
    Holder,
    Outcome,
    Publish,
    Push,
    Replicate,
    Ticket,
)
from dask_dml.exchange.ranges import Array, KeyRange, NamedArrays, joined, key_ranges

# How long an answer may take, and how slow the network may be.
REPLY_S = 2.0
_SLOWEST_BYTES_S = 20e6
# How long a task goes on asking who the hosts are, and how often.
_PATIENCE_S = 30.0
_RETRY_S = 0.05
# How long after its coming the plugin asks whether it is still wanted, and how often.
_LATE_S = 1.0
_TIMES = 20
_HANDLERS = (
    "dml_holder_open", "dml_holder_promote", "dml_holder_ping", "dml_holder_publish",
    "dml_holder_push", "dml_holder_pull", "dml_holder_sums", "dml_holder_copy", "dml_holder_drop",
)  # fmt: skip


class Place(NamedTuple):
    """Who hosts one range: the primary first; nobody when all were lost."""

    epoch: int
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HolderAddress:
    """Where the holder of a run was when a task was sent; it may have moved since.

    Attributes
    ----------
    run : str
    plugin : str
        Name of `HolderHost` on the workers.
    places : tuple of Place
        Of each range.
    """

    run: str
    plugin: str
    places: tuple[Place, ...]


@dataclass(slots=True)
class _Pulled:
    """Parameters as this worker last pulled them."""

    version: int = -1
    arrays: dict[str, Array] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def reply_limit_s(nbytes: int) -> float:
    """How long an answer to a message of that size may take."""
    return REPLY_S + nbytes / _SLOWEST_BYTES_S


class HolderHost(WorkerPlugin):
    """Hosts ranges of the parameter holders of runs, and asks other hosts for tasks.

    Everything here runs on the worker's event loop.

    Parameters
    ----------
    name : str
        Of the plugin, another one each time that it is put on a cluster.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def setup(self, worker: Worker) -> None:
        """Begin to answer."""
        self._worker = worker
        self._holders: dict[tuple[str, int], Holder] = {}
        self._pulled: dict[str, _Pulled] = {}
        self._places: dict[tuple[str, int], Place] = {}
        self._tickets = itertools.count()
        self._waiting: dict[Ticket, asyncio.Future[Outcome]] = {}
        self._sending: set[asyncio.Task[Any] | None] = set()
        self._handlers = {name: getattr(self, name) for name in _HANDLERS}
        worker.handlers.update(self._handlers)
        self._spawn(self._leave_if_late())

    def teardown(self, worker: Worker) -> None:
        """Let go of everything."""
        for name, handler in self._handlers.items():
            if worker.handlers.get(name) == handler:
                del worker.handlers[name]
        for run in {run for run, _ in self._holders} | self._pulled.keys():
            self.dml_holder_drop(run)
        for task in self._sending:
            if task is not None:
                task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _leave_if_late(self) -> None:
        """Go, if the last run went while this worker was being equipped and could not be told."""
        for _ in range(_TIMES):
            await asyncio.sleep(_LATE_S)
            try:
                asking = self._worker.scheduler.dml_holder_wants(plugin=self.name)
                is_wanted = await asyncio.wait_for(asking, REPLY_S)
            except (TimeoutError, OSError):
                continue
            if not is_wanted and self._worker.plugins.get(self.name) is self:
                # Not to be cancelled by the teardown that it brings about.
                self._sending.discard(asyncio.current_task())
                await self._worker.plugin_remove(name=self.name)
            return

    # -- as a host --------------------------------------------------------------------------

    def dml_holder_open(
        self, run: str, index: int, count: int, epoch: int, hosts: list[str]
    ) -> dict[str, Any]:
        """Host a range that is empty."""
        holder = Holder(run, self._worker.address, KeyRange(index, count))
        self._holders[run, index] = holder
        self._act(holder, holder.configure(epoch, tuple(hosts)))
        return {"status": "OK"}

    def dml_holder_promote(
        self, run: str, index: int, epoch: int, hosts: list[str]
    ) -> dict[str, Any]:
        """Be the primary of a range with these hosts, if what the last one had is here."""
        holder = self._holders.get((run, index))
        if holder is None or not holder.is_installed:
            return {"status": "empty"}
        self._act(holder, holder.configure(epoch, tuple(hosts)))
        return {"status": "OK" if holder.epoch == epoch else "empty"}

    def dml_holder_ping(self, run: str, index: int) -> dict[str, Any]:
        """Say that this host is alive, and whether it thinks that it is the primary."""
        holder = self._holders.get((run, index))
        return {"is_primary": holder is not None and holder.is_primary}

    async def dml_holder_publish(self, index: int, message: Publish) -> dict[str, Any]:
        """Take parameters."""
        return await self._answered(
            message.run, index, lambda holder, ticket: holder.publish(ticket, message)
        )

    async def dml_holder_push(self, index: int, message: Push) -> dict[str, Any]:
        """Take sums."""
        return await self._answered(
            message.run, index, lambda holder, ticket: holder.push(ticket, message)
        )

    async def dml_holder_copy(self, index: int, count: int, message: Copy) -> dict[str, Any]:
        """Take what the primary sends to its replica."""
        key = message.run, index
        if key not in self._holders:
            self._holders[key] = Holder(message.run, self._worker.address, KeyRange(index, count))
        return await self._answered(
            message.run, index, lambda holder, ticket: holder.copy(ticket, message)
        )

    def dml_holder_pull(self, run: str, index: int, version: int, have: int) -> dict[str, Any]:
        """Give parameters, without those that the asker has."""
        holder = self._holders.get((run, index))
        if holder is None:
            return {"outcome": Outcome.MOVED.value}
        # Also from a replica, or from one that was a primary: a version is never another.
        values = holder.values(run, version, have)
        if values is None:
            outcome = Outcome.UNKNOWN if holder.is_primary else Outcome.MOVED
            return {"outcome": outcome.value}
        return {"outcome": Outcome.ACCEPTED.value, "values": to_serialize(values)}

    def dml_holder_sums(self, run: str, index: int, version: int) -> dict[str, Any]:
        """Give the sums that have come."""
        holder = self._holders.get((run, index))
        if holder is None or not holder.is_primary:
            return {"outcome": Outcome.MOVED.value}
        nodes = holder.sums(run, version)
        if nodes is None:
            return {"outcome": Outcome.UNKNOWN.value}
        return {"outcome": Outcome.ACCEPTED.value, "nodes": to_serialize(nodes)}

    def dml_holder_drop(self, run: str) -> dict[str, Any]:
        """Forget a run."""
        for key in [key for key in self._holders if key[0] == run]:
            holder = self._holders.pop(key)
            self._act(holder, holder.configure(holder.epoch + 1, ()))
        for key in [key for key in self._places if key[0] == run]:
            del self._places[key]
        self._pulled.pop(run, None)
        return {"status": "OK"}

    async def _answered(
        self, run: str, index: int, receive: Callable[[Holder, Ticket], list[Action]]
    ) -> dict[str, Any]:
        """Have the holder receive a message, and wait for what it says to it."""
        holder = self._holders.get((run, index))
        if holder is None:
            return {"outcome": Outcome.MOVED.value}
        ticket = next(self._tickets)
        answer = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._act(holder, receive(holder, ticket))
            return {"outcome": (await answer).value}
        finally:
            del self._waiting[ticket]

    def _act(self, holder: Holder, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Acknowledge):
                answer = self._waiting.get(action.ticket)
                if answer is not None and not answer.done():
                    answer.set_result(action.outcome)
            else:
                self._spawn(self._replicate(holder, action))

    async def _replicate(self, holder: Holder, action: Replicate) -> None:
        """Send a copy until the replica answers, or is none any more."""
        copy, keys = action.copy, holder.keys
        limit_s = reply_limit_s(sum(array.nbytes for array in copy.state.values()))
        while holder.is_primary and holder.epoch == copy.epoch:
            reply = await self._call(
                action.to, "dml_holder_copy", limit_s,
                index=keys.index, count=keys.count, message=copy,
            )  # fmt: skip
            if reply is not None:
                outcome = Outcome(reply["outcome"])
                self._act(holder, holder.confirm(action.to, copy, outcome))
                return
            # Whoever decides about hosts tells this one when there is another replica.
            await self._directory(
                "dml_holder_accuse", run=holder.run, index=keys.index, epoch=copy.epoch,
                host=action.to,
            )  # fmt: skip
            await asyncio.sleep(_RETRY_S)

    # -- for tasks --------------------------------------------------------------------------

    async def pull(self, holder: HolderAddress, version: int, nbytes: int) -> NamedArrays:
        """Parameters of a version; they cross to this worker once, however many tasks ask.

        Parameters
        ----------
        holder : HolderAddress
        version : int
        nbytes : int
            Their size, by which an answer may take longer.

        Raises
        ------
        HolderLostError
            If no host has them.
        StaleRunError
            If the run is over.
        """
        pulled = self._pulled.setdefault(holder.run, _Pulled())
        async with pulled.lock:
            if pulled.version != version:
                parts = await asyncio.gather(
                    *(
                        self._pull_part(holder, keys.index, version, pulled.version, nbytes)
                        for keys in key_ranges(len(holder.places))
                    )
                )
                # Arrays from the wire need not be aligned, and then a product has other bits.
                pulled.arrays |= {
                    name: np.require(array, None, ["C", "A"])
                    for name, array in joined(parts).arrays.items()
                }
                pulled.version = version
            return NamedArrays(dict(pulled.arrays))

    async def _pull_part(
        self, holder: HolderAddress, index: int, version: int, have: int, nbytes: int
    ) -> NamedArrays:
        reply = await self._ask(
            holder, index, "dml_holder_pull", nbytes,
            run=holder.run, index=index, version=version, have=have,
        )  # fmt: skip
        if reply["outcome"] != Outcome.ACCEPTED:
            raise _lost(holder.run, version)
        values = reply["values"]
        # From this worker itself it is wrapped still.
        found: NamedArrays = getattr(values, "data", values)
        return found

    async def push(self, holder: HolderAddress, message: Push) -> bool:
        """Give sums to the holder; whether it has them, or has no use for them.

        Raises
        ------
        StaleRunError
            If the run is over.
        """
        there = await asyncio.gather(
            *(self._push_part(holder, keys, message) for keys in key_ranges(len(holder.places)))
        )
        return all(there)

    async def _push_part(self, holder: HolderAddress, keys: KeyRange, message: Push) -> bool:
        nodes = [(node, sums.of(keys)) for node, sums in message.nodes]
        part = Push(message.run, message.version, message.blocks, message.attempt, nodes)
        nbytes = 2 * sum(sums.nbytes for _, sums in nodes)
        try:
            reply = await self._ask(
                holder, keys.index, "dml_holder_push", nbytes, index=keys.index, message=part
            )
        except HolderLostError:
            return False
        return bool(reply["outcome"] != Outcome.UNKNOWN)

    async def _ask(
        self, holder: HolderAddress, index: int, op: str, nbytes: int, /, **message: Any
    ) -> dict[str, Any]:
        """Ask the primary of a range, whoever that is by now."""
        key = holder.run, index
        self._learn(key, holder.places[index])
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _PATIENCE_S
        while loop.time() < until_s:
            epoch, hosts = self._places[key]
            if not hosts:
                break
            reply = await self._call(hosts[0], op, reply_limit_s(nbytes), **message)
            if reply is not None and reply["outcome"] != Outcome.MOVED:
                return reply
            answer = await self._directory(
                "dml_holder_accuse", run=holder.run, index=index, epoch=epoch, host=hosts[0]
            )
            if answer is None or answer["status"] != "OK":
                why = "the holder is closed" if answer is None else answer["message"]
                raise StaleRunError(f"run {holder.run} is over: {why}")
            self._learn(key, Place(answer["epoch"], tuple(answer["hosts"])))
            if self._places[key].epoch == epoch:
                await asyncio.sleep(_RETRY_S)
        raise _lost(holder.run, None)

    def _learn(self, key: tuple[str, int], place: Place) -> None:
        if place.epoch >= self._places.get(key, Place(-1, ())).epoch:
            self._places[key] = place

    async def _call(
        self, host: str, op: str, limit_s: float, /, **message: Any
    ) -> dict[str, Any] | None:
        """Ask one host; None when it does not answer."""
        if host == self._worker.address:
            reply = getattr(self, op)(**message)
            answer: dict[str, Any] = await reply if asyncio.iscoroutine(reply) else reply
            return answer
        if "message" in message:
            message["message"] = to_serialize(message["message"])
        try:
            call = getattr(self._worker.rpc(host), op)(**message)
            return await asyncio.wait_for(call, limit_s)
        except (TimeoutError, OSError):
            return None

    async def _directory(self, op: str, **message: Any) -> dict[str, Any] | None:
        try:
            call = getattr(self._worker.scheduler, op)(**message)
            return await asyncio.wait_for(call, _PATIENCE_S)
        except (TimeoutError, OSError):
            return None


def _lost(run: str, version: int | None) -> HolderLostError:
    what = f"round {version} of run {run}" if version is not None else f"run {run}"
    return HolderLostError(
        f"no host of the parameter holder has {what}: all of them were lost at once, and the "
        "parameters have to be published again"
    )
