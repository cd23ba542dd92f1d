"""The parameter holder on a simulated cluster: hosts on workers, a directory on the scheduler.

`Holder` is the real one, on every host. Played are the messages between them, which come late or
not at all when a host hangs, is cut off or dies, and the directory's rules: a host that does not
answer, leaves, or is suspect is replaced by those that have what it had.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable
from typing import Any

from dask_dml.exchange.holder import (
    Acknowledge,
    Action,
    Holder,
    Nodes,
    Outcome,
    Publish,
    Push,
    Replicate,
    Ticket,
    choose_hosts,
)
from dask_dml.exchange.ranges import KeyRange, NamedArrays
from dask_dml.faults.simulation.clock import VirtualClock
from dask_dml.faults.simulation.cluster import SimulatedCluster
from dask_dml.faults.simulation.machines import Process

REPLY_S = 2.0
_PATIENCE_S = 30.0
_RETRY_S = 0.05
_RESEND_S = 0.5
_SETTLE_S = 1.0

Resume = Callable[[Any], None]
Wait = Callable[[Resume], object]
# A flow yields what it waits for, and is resumed with the answer.
Flow = Generator[Wait, Any, Any]
# What a host does with a message; it answers by calling the second argument, now or later.
Handler = Callable[[Process, Resume], None]


def run(flow: Flow, then: Resume = lambda value: None) -> None:
    """Run a flow on the virtual clock."""

    def resume(value: Any) -> None:
        try:
            wait = flow.send(value)
        except StopIteration as stop:
            result = stop.value
        else:
            wait(resume)
            return
        then(result)

    resume(None)


class SimulatedHolder:
    """Directory and hosts of the holder of one run.

    Parameters
    ----------
    cluster : SimulatedCluster
    clock : VirtualClock
    n_blocks : int
    n_hosts : int
        The primary and its replicas.
    note : callable
        Hears of hosts that were lost or replaced: kind, worker, evidence.
    """

    def __init__(
        self,
        cluster: SimulatedCluster,
        clock: VirtualClock,
        n_blocks: int,
        n_hosts: int,
        note: Callable[[str, str, str], None],
    ) -> None:
        self.epoch = -1
        self.hosts: tuple[str, ...] = ()
        self._cluster = cluster
        self._clock = clock
        self._n_blocks = n_blocks
        self._n_hosts = n_hosts
        self._note = note
        self._run = "simulated"
        self._last_epoch = -1
        self._is_locked = False
        self._queue: list[Resume] = []
        self._avoided: set[str] = set()
        # Also of those that are no workers any more: they may live, and not know.
        self._holders: dict[Process, Holder] = {}
        self._tickets = itertools.count()
        self._waiting: dict[Ticket, Resume] = {}
        self._pulled: dict[Process, tuple[int, NamedArrays]] = {}
        self._places: dict[Process, tuple[int, tuple[str, ...]]] = {}

    # -- what a fit asks --------------------------------------------------------------------

    def publish(self, version: int, values: NamedArrays) -> Flow:
        """Have a round's parameters taken; gives whether they were."""
        message = Publish(self._run, version, self._n_blocks, values)
        for _ in range(3):
            yield from self._reopen()
            reply = yield from self._ask_primary(
                self._ticketed(lambda holder, ticket: holder.publish(ticket, message))
            )
            if reply is not None and reply not in (Outcome.UNKNOWN, Outcome.LATE):
                return True
        return False

    def collect(self, version: int) -> Flow:
        """Fetch the sums of a round, as far as there are any."""

        def sums(process: Process, answer: Resume) -> None:
            holder = self._holders.get(process)
            if holder is None or not holder.is_primary:
                answer(Outcome.MOVED)
            else:
                answer(holder.sums(self._run, version) or [])

        reply = yield from self._ask_primary(sums)
        return reply if isinstance(reply, list) else []

    def noticed(self, kind: str, worker: str) -> None:
        """Hear of what the watcher says, and of workers that come and go."""
        if kind in ("worker-suspected", "worker-draining"):
            self._avoided.add(worker)
            run(self._replace(worker, "suspect or about to be lost", is_lost=False))
        elif kind == "worker-recovered":
            self._avoided.discard(worker)
        elif kind == "worker-joined":
            self._clock.after(_SETTLE_S, lambda: run(self._complete()))
        elif kind in ("worker-lost", "worker-left", "worker-evicted"):
            self._avoided.discard(worker)
            run(self._replace(worker, "left the cluster", is_lost=True))

    # -- what tasks ask ---------------------------------------------------------------------

    def pull(self, process: Process, version: int) -> Flow:
        """Get a round's parameters, once a worker; None when no host has them."""
        if process in self._pulled and self._pulled[process][0] == version:
            return self._pulled[process][1]

        def values(host: Process, answer: Resume) -> None:
            holder = self._holders.get(host)
            found = None if holder is None else holder.values(self._run, version)
            if found is not None:
                answer(found)
            else:
                is_primary = holder is not None and holder.is_primary
                answer(Outcome.UNKNOWN if is_primary else Outcome.MOVED)

        reply = yield from self._ask(process, values)
        if not isinstance(reply, NamedArrays):
            return None
        self._pulled[process] = version, reply
        return reply

    def push(
        self, process: Process, version: int, blocks: tuple[int, ...], attempt: int, nodes: Nodes
    ) -> Flow:
        """Give sums to the holder; gives whether it has them, or has no use for them."""
        message = Push(self._run, version, blocks, attempt, nodes)
        reply = yield from self._ask(
            process, self._ticketed(lambda holder, ticket: holder.push(ticket, message))
        )
        return reply not in (None, Outcome.UNKNOWN)

    def _ask(self, process: Process, handler: Handler) -> Flow:
        """Ask the primary, whoever that is by then; None if there is none for long."""
        until_s = self._clock.now_s + _PATIENCE_S
        place = max(self._places.get(process, (-1, ())), (self.epoch, self.hosts))
        while self._clock.now_s < until_s and place[1]:
            reply = yield self._call(process, place[1][0], handler)
            if reply is not None and reply is not Outcome.MOVED:
                return reply
            answer = yield from self._accused(process, place[0], place[1][0])
            if answer is not None:
                if answer[0] == place[0]:
                    yield self._sleep(_RETRY_S)
                place = self._places[process] = max(place, answer)
        return None

    # -- hosts ------------------------------------------------------------------------------

    def _ticketed(self, receive: Callable[[Holder, Ticket], list[Action]]) -> Handler:
        def handle(process: Process, answer: Resume) -> None:
            holder = self._holders.get(process)
            if holder is None:
                answer(Outcome.MOVED)
                return
            ticket = next(self._tickets)
            self._waiting[ticket] = answer
            self._act(process, holder, receive(holder, ticket))

        return handle

    def _act(self, process: Process, holder: Holder, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Acknowledge):
                self._waiting.pop(action.ticket, lambda outcome: None)(action.outcome)
            else:
                run(self._replicated(process, holder, action))

    def _replicated(self, process: Process, holder: Holder, action: Replicate) -> Flow:
        """Send a copy until the replica answers, or is none any more."""

        def copy(replica: Process, answer: Resume) -> None:
            if replica not in self._holders:
                self._holders[replica] = Holder(self._run, replica.address, KeyRange())
            receive = self._ticketed(lambda there, ticket: there.copy(ticket, action.copy))
            receive(replica, answer)

        while process.is_alive and holder.is_primary and holder.epoch == action.copy.epoch:
            reply = yield self._call(process, action.to, copy)
            if reply is not None:
                self._act(process, holder, holder.confirm(action.to, action.copy, reply))
                return
            yield from self._accused(process, action.copy.epoch, action.to)
            yield self._sleep(_RETRY_S)

    # -- the directory ----------------------------------------------------------------------

    def _accused(self, process: Process, epoch: int, host: str) -> Flow:
        """Tell the directory that a host did not answer; gives who hosts by then."""
        if not process.machine.is_reachable:
            yield self._sleep(REPLY_S)
            return None
        yield self._sleep(2 * self._cluster.network.latency_s)
        yield self._lock
        if epoch > self.epoch:
            # A promotion was heard and its answer was not: a newer one settles who hosts.
            yield from self._promote(self._chosen(self.hosts))
        elif self.epoch == epoch and host in self.hosts:
            reply = yield self._call(None, host, self._ping)
            if reply is None or (reply is False and host == self.hosts[0]):
                is_done = yield from self._hand_over(host, "no answer")
                is_waited_for = reply is None and host not in self._avoided
                if not is_done and not is_waited_for:
                    self._lose(host)
        self._unlock()
        return self.epoch, self.hosts

    def _ping(self, process: Process, answer: Resume) -> None:
        holder = self._holders.get(process)
        answer(holder is not None and holder.is_primary)

    def _replace(self, worker: str, evidence: str, is_lost: bool) -> Flow:
        yield self._lock
        if worker in self.hosts:
            is_done = yield from self._hand_over(worker, evidence)
            if is_lost and not is_done:
                self._lose(worker)
        self._unlock()

    def _complete(self) -> Flow:
        yield self._lock
        if 0 < len(self.hosts) < self._n_hosts:
            hosts = self._chosen(self.hosts)
            if len(hosts) > len(self.hosts):
                yield from self._promote(hosts)
        self._unlock()

    def _reopen(self) -> Flow:
        """Host the range anew, empty, if nobody hosts it."""
        yield self._lock
        failed: set[str] = set()
        while not self.hosts and (hosts := self._chosen((), failed)):
            self._last_epoch += 1
            epoch = self._last_epoch

            def opened(process: Process, answer: Resume) -> None:
                holder = Holder(self._run, process.address, KeyRange())
                self._holders[process] = holder
                self._act(process, holder, holder.configure(epoch, hosts))  # noqa: B023
                answer(True)

            reply = yield self._call(None, hosts[0], opened)
            if reply is None:
                failed.add(hosts[0])
                continue
            self.epoch, self.hosts = epoch, hosts
        self._unlock()

    def _hand_over(self, host: str, evidence: str) -> Flow:
        """Have the other hosts go on without one; gives whether one of them can."""
        left = tuple(other for other in self.hosts if other != host)
        was = self.hosts[0]
        while left:
            hosts = self._chosen(left, {host})
            if (yield from self._promote(hosts)):
                if hosts[0] != was:
                    self._note("holder-promoted", host, f"{evidence}; {hosts[0]} took over")
                return True
            left = left[1:]
        return False

    def _promote(self, hosts: tuple[str, ...]) -> Flow:
        self._last_epoch += 1
        epoch = self._last_epoch

        def promoted(process: Process, answer: Resume) -> None:
            holder = self._holders.get(process)
            if holder is None or not holder.is_installed:
                answer(False)
                return
            self._act(process, holder, holder.configure(epoch, hosts))
            answer(holder.epoch == epoch)

        if not (yield self._call(None, hosts[0], promoted)):
            return False
        self.epoch, self.hosts = epoch, hosts
        return True

    def _lose(self, host: str) -> None:
        self._last_epoch += 1
        self.epoch, self.hosts = self._last_epoch, ()
        self._note("holder-lost", host, "no replica was left")

    def _chosen(self, keep: tuple[str, ...], but: Iterable[str] = ()) -> tuple[str, ...]:
        workers = [w for w in self._cluster.running if w not in set(but)]
        calm = [w for w in workers if w not in self._avoided]
        return choose_hosts({w: w for w in calm or workers}, {}, keep, self._n_hosts)

    def _ask_primary(self, handler: Handler) -> Flow:
        until_s = self._clock.now_s + _PATIENCE_S
        while self.hosts and self._clock.now_s < until_s:
            epoch, host = self.epoch, self.hosts[0]
            reply = yield self._call(None, host, handler)
            if reply is not None and reply is not Outcome.MOVED:
                return reply
            yield self._lock
            if self.epoch == epoch and self.hosts and self.hosts[0] == host:
                reply = yield self._call(None, host, self._ping)
                is_done = reply is True or (yield from self._hand_over(host, "no answer"))
                if not is_done and (reply is False or host in self._avoided):
                    self._lose(host)
            self._unlock()
            yield self._sleep(_RETRY_S)
        return None

    # -- messages ---------------------------------------------------------------------------

    def _sleep(self, seconds: float) -> Wait:
        return lambda resume: self._clock.after(seconds, resume, None)

    def _lock(self, resume: Resume) -> None:
        if self._is_locked:
            self._queue.append(resume)
        else:
            self._is_locked = True
            self._clock.after(0.0, resume, None)

    def _unlock(self) -> None:
        if self._queue:
            self._clock.after(0.0, self._queue.pop(0), None)
        else:
            self._is_locked = False

    def _call(self, source: Process | None, host: str, handler: Handler) -> Wait:
        """Have a host handle a message; the answer, or None if none comes in time.

        The message itself may be handled later, when the one who asked has given up.
        """

        def wait(resume: Resume) -> None:
            is_open = True

            def close(value: Any) -> None:
                nonlocal is_open
                if is_open and (source is None or source.is_alive):
                    is_open = False
                    resume(value)

            self._clock.after(REPLY_S, close, None)
            self._deliver(source, self._cluster.known.get(host), handler, close)

        return wait

    def _deliver(
        self, source: Process | None, to: Process | None, handler: Handler, close: Resume
    ) -> None:
        if to is None or not to.is_alive or (source is not None and not source.is_alive):
            return

        def answer(value: Any) -> None:
            is_there = to is source or (
                to.machine.lets(True) and (source is None or source.machine.lets(False))
            )
            if to.is_alive and is_there:
                self._clock.after(self._cluster.network.latency_s, close, value)

        wait_s = max(to.answers_s - self._clock.now_s, 0.0)
        is_open = to is source or (
            to.machine.lets(False) and (source is None or source.machine.lets(True))
        )
        if not is_open or wait_s > 0.0:
            self._clock.after(
                min(max(wait_s, _RETRY_S), _RESEND_S), self._deliver, source, to, handler, close
            )
        else:
            self._clock.after(self._cluster.network.latency_s, self._handle, to, handler, answer)

    def _handle(self, to: Process, handler: Handler, answer: Resume) -> None:
        if to.is_alive:
            handler(to, answer)
