"""The watcher on the scheduler: the edge around `dask_dml.faults.membership`.

It receives heartbeats, sends probes, asks nannies, does what the verdicts say, and publishes every
event on the topics `TOPIC` (for people) and `FEED` (for fits). It watches while there are fits.
When the last one is gone it lingers for the next, and then takes itself off the cluster: plugins
of workers and nannies, handlers, socket and tasks.

How Dask counts deaths
----------------------
Dask gives up on a task when more than ``distributed.scheduler.allowed-failures`` workers have died
while they had it, whoever was to blame. For the tasks of fits, which know better, the count is set
when they begin: a first attempt is tried once more by Dask, a later one is not; what is tried again
then is decided by the client's ledger. Workers that are evicted or drained do not count.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from distributed import Scheduler, Status
from distributed.comm.addressing import get_address_host, parse_address
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps, loads

from dask_dml.faults.membership import (
    TICK_S,
    Action,
    Drain,
    Evict,
    HeartbeatsBlocked,
    Look,
    Membership,
    Probe,
    ProcessView,
    Rehabilitate,
    Suspect,
    heartbeat_interval_s,
)
from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.prediction import Predictor
from dask_dml.faults.timeline import TOPIC, FaultEvent
from dask_dml.runtime.crew import Crew
from dask_dml.runtime.dispatch import Dispatch
from dask_dml.runtime.keys import is_ours
from dask_dml.runtime.receiver import Receiver
from dask_dml.runtime.recorder import Recorder
from dask_dml.runtime.relay import Call
from dask_dml.runtime.replicas import KeepReplicas
from dask_dml.version import __version__

logger = logging.getLogger(__name__)

NAME = "dml-fault-monitor"
# The topic that fits listen to, so that people can have `TOPIC` for handlers of their own.
FEED = "dml-faults-feed"
LINGER_S = 30.0

# Heartbeats are read so often; their times are exact to that, which is little against the interval.
# On fleets of more than 200 workers less often: reading many at once is cheaper.
_READ_S = 0.05
_READ_WORKERS = 4_000
_LOOK_S = 2.0
_RESTART_S = 60.0
_RESTART_TIMES = 20
_RETRY_S = 3.0
# Change of the interval from which on workers are told.
_PACE_CHANGE = 0.2

_GRAVE = frozenset({"worker-lost", "worker-suspected", "worker-evicted", "worker-draining"})
_HANDLERS = (
    "dml_watch", "dml_unwatch", "dml_recipe", "dml_keep", "dml_status", "dml_notice", "dml_record",
    "dml_records", "dml_order", "dml_call",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Run:
    client: str
    policy: FaultPolicy


@dataclass(slots=True)
class _Removal:
    """How Dask removed a worker, from its own event, which precedes the plugins' hooks."""

    expected: bool
    processing: frozenset[Hashable]


class FaultMonitor(SchedulerPlugin):
    """Watches the workers of a cluster for all fits on it.

    Parameters
    ----------
    linger_s : float
        How long to stay when the last fit is gone.
    """

    name = NAME
    idempotent = True

    def __init__(self, linger_s: float = LINGER_S) -> None:
        self.linger_s = linger_s

    # -- coming and going -------------------------------------------------------------------

    async def start(self, scheduler: Scheduler) -> None:
        """Begin to watch. Never yields, so that of two fits that come at once one starts it."""
        self._scheduler = scheduler
        self._runs: dict[str, _Run] = {}
        self._policy = FaultPolicy()
        self._membership = Membership(self._policy)
        key, host = secrets.token_bytes(32), _host(scheduler.address)
        self._receiver = Receiver(key, host)
        self._crew = Crew(
            scheduler,
            secrets.token_hex(4),
            host,
            self._receiver.port,
            key,
            heartbeat_interval_s(self._policy, len(scheduler.workers)),
        )
        self._dispatch = Dispatch(scheduler, self._crew)
        self._removals: dict[str, _Removal] = {}
        self._closing: set[str] = set()
        self._leaving: dict[str, tuple[str, str]] = {}
        self._noticed: set[str] = set()
        self._paused: set[str] = set()
        self._threads: dict[str, int] = {}
        self._recorder = Recorder()
        self._replicas = KeepReplicas(scheduler)
        self._counts = dict.fromkeys(
            ("looks", "suspected", "evicted", "drained", "recovered", "lost"), 0
        )
        self._handlers = {name: getattr(self, name) for name in _HANDLERS}
        scheduler.handlers.update(self._handlers)
        for worker in scheduler.workers:
            self._join(worker)
        self._set_pace()
        self._crew.spawn(self._watch())
        self._linger()

    async def before_close(self) -> None:
        """Stop: the scheduler ends."""
        self._scheduler.remove_plugin(self.name)
        self._stop()
        self._crew.stop()

    def _linger(self) -> None:
        """Leave after a while, unless a fit comes."""
        self._leave_at = asyncio.get_running_loop().call_later(self.linger_s, self._leave)

    def _leave(self) -> None:
        """Take everything off the cluster."""
        scheduler = self._scheduler
        if scheduler.plugins.get(self.name) is self:
            scheduler.remove_plugin(self.name)
        self._stop()
        self._crew.leave()

    def _stop(self) -> None:
        self._leave_at.cancel()
        for worker in list(self._paused):
            self._unpause(worker, "running")
        for name, handler in self._handlers.items():
            if self._scheduler.handlers.get(name) == handler:
                del self._scheduler.handlers[name]
        self._receiver.close()

    # -- what fits ask ----------------------------------------------------------------------

    def dml_watch(self, run: str, client: str, version: str, policy: bytes) -> dict[str, Any]:
        """Watch for a run, until `dml_unwatch` or until its client is gone."""
        if version != __version__:
            return _refusal(
                f"the scheduler has dask_dml {__version__} and run {run} comes from {version}: "
                "have the same version on both"
            )
        if client not in self._scheduler.clients:
            return _refusal(f"run {run} comes from {client}, which is no client of this scheduler")
        if run in self._runs and self._runs[run].client != client:
            return _refusal(f"run {run} is watched already, for {self._runs[run].client}")
        self._runs[run] = _Run(client, loads(policy))
        self._leave_at.cancel()
        # Here, so that no event is lost between this answer and the client's own message.
        self._scheduler.subscribe_topic(FEED, client)
        self._combine()
        return {"status": "OK", **self._unable()}

    def dml_unwatch(self, run: str) -> dict[str, Any]:
        """Watch no longer for a run."""
        if run not in self._runs:
            return self._stale(run)
        self._drop([run])
        return {"status": "OK"}

    def dml_recipe(self, run: str, keys: Sequence[Any]) -> dict[str, Any]:
        """Tell from which tasks each key could be made again, where that is known.

        Keys with an ancestor that was scattered, which nothing can make again, are left out.
        """
        if run not in self._runs:
            return self._stale(run)
        recipes = {key: tasks for key in keys if (tasks := self._ancestors(key)) is not None}
        return {"status": "OK", "recipes": dumps(recipes)}

    def dml_keep(self, run: str, keys: Sequence[Any], n_replicas: int) -> dict[str, Any]:
        """Hold keys more than once while the run is watched."""
        if run not in self._runs:
            return self._stale(run)
        self._replicas.keep(run, keys, n_replicas)
        return {"status": "OK"}

    async def dml_order(self, run: str, number: int, shards: dict[str, bytes]) -> dict[str, Any]:
        """Tell workers what they are to do whenever the run calls; who did not take it."""
        if run not in self._runs:
            return self._stale(run)
        return {"status": "OK", "refused": await self._dispatch.order(run, number, shards)}

    async def dml_call(self, run: str, call: dict[str, Any]) -> dict[str, Any]:
        """Have a round done by the workers that know their shards; see `Dispatch`."""
        if run not in self._runs:
            return self._stale(run)
        return {"status": "OK", "answers": await self._dispatch.call(Call.of(call))}

    def dml_status(self) -> dict[str, Any]:
        """What is going on, for people."""
        return {
            "status": "OK",
            "version": __version__,
            "runs": {name: run.client for name, run in self._runs.items()},
            "workers": {worker: str(self._membership.verdict(worker)) for worker in self._threads},
            "heartbeat_s": self._crew.interval_s,
            "heartbeats": self._receiver.n_received,
            "datagrams_refused": self._receiver.n_refused,
            "calls": self._dispatch.n_calls,
            **self._counts,
            **self._unable(),
        }

    def dml_notice(self, worker: str, deadline_s: float, source: str, detail: str) -> bool:
        """Take a worker's word that its machine goes at `deadline_s`, seconds since the epoch."""
        if not self._runs or worker not in self._threads:
            return False
        self._noticed.add(worker)
        left_s = max(deadline_s - time.time(), 0.0)
        self._act(self._membership.noticed(worker, left_s, f"{source} ({detail})", _now_s()))
        return True

    def dml_record(self, on: bool) -> dict[str, Any]:
        """Keep telemetry from now on, or no longer; what was kept stays."""
        self._recorder.is_on = on
        return {"status": "OK"}

    def dml_records(self) -> dict[str, Any]:
        """Hand over the telemetry that was kept, which is then no longer kept here."""
        return {"status": "OK", "columns": self._recorder.take()}

    def _stale(self, run: str) -> dict[str, Any]:
        watched = ", ".join(sorted(self._runs)) or "none"
        return _refusal(
            f"run {run} is not watched (any more) by this scheduler, which watches: {watched}"
        )

    def _unable(self) -> dict[str, Any]:
        """Workers that are to be given nothing."""
        return {
            "suspects": sorted(self._membership.suspects),
            "draining": sorted(self._membership.draining),
        }

    def _drop(self, runs: Collection[str]) -> None:
        for run in runs:
            self._replicas.drop(run)
            self._dispatch.drop(run)
        clients = {self._runs.pop(run).client for run in runs}
        for client in clients - {run.client for run in self._runs.values()}:
            self._scheduler.unsubscribe_topic(FEED, client)
        if clients and self._runs:
            self._combine()
        elif clients:
            self._recorder.is_on = False
            for worker in list(self._paused):
                self._unpause(worker, "running")
            self._linger()

    def _combine(self) -> None:
        """Take the most patient of what the runs want."""
        policies = [run.policy for run in self._runs.values()]
        policy = reduce(FaultPolicy.most_patient, policies)
        if policy.predictor is None:
            policy = replace(policy, predictor=Predictor.packaged())
        self._policy = policy
        self._membership.policy = self._policy
        for worker in self._membership.suspects:
            self._pause(worker)
        self._set_pace()

    def _ancestors(self, key: Any) -> dict[Any, Any] | None:
        found: dict[Any, Any] = {}
        pending = [key]
        while pending:
            key = pending.pop()
            if key in found:
                continue
            task = self._scheduler.tasks.get(key)
            if task is None or task.run_spec is None:
                return None
            found[key] = task.run_spec
            pending += [dependency.key for dependency in task.dependencies]
        return found

    # -- what the scheduler tells -----------------------------------------------------------

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """A worker is new."""
        # Where all workers were lost at once, Dask would have tasks wait for the very worker that
        # they were meant for, also those that others may do.
        meant = [ts.key for ts in scheduler.unrunnable if ts.loose_restrictions]
        scheduler.set_restrictions(dict.fromkeys(meant, ()))
        self._join(worker)
        self._set_pace()
        action = "watched from now on" if self._runs else ""
        self._publish("worker-joined", worker, "new with the scheduler", action)

    def _join(self, worker: str) -> None:
        ws = self._scheduler.workers[worker]
        self._threads[worker] = ws.nthreads
        self._receiver.expect(worker)
        self._act(self._membership.joined(worker, _now_s(), has_nanny=bool(ws.nanny)))
        self._crew.equip(worker, ws.nanny)

    def remove_worker(
        self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any
    ) -> None:
        """A worker is gone; its tasks have been dealt with."""
        removal = self._removals.pop(worker, _Removal(False, frozenset()))
        has_notice = worker in self._noticed
        is_closing = worker in self._closing
        leaving = self._leaving.pop(worker, None)
        n_threads = self._threads.pop(worker, 1)
        for known in (self._noticed, self._closing, self._paused, self._crew.equipped):
            known.discard(worker)
        self._receiver.forget(worker)
        self._act(self._membership.left(worker, _now_s()))
        self._set_pace()
        action = "its tasks are done by others"
        blamed = False
        if leaving is not None and removal.expected:
            kind, evidence = leaving
        elif removal.expected:
            kind, evidence = "worker-left", "retired on request"
        elif is_closing:
            kind, evidence = "worker-left", "it said that it was closing"
        else:
            kind, evidence = "worker-lost", _how_lost(stimulus_id)
            blamed = not has_notice
            if has_notice:
                evidence += ", after a notice of preemption"
            self._counts["lost"] += 1
        processing = self._ordered(key for key in removal.processing if is_ours(key))
        self._publish(
            kind, worker, evidence, action,
            processing=processing, blamed=blamed, threads=n_threads,
        )  # fmt: skip

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """A client is gone, and its runs with it."""
        self._drop([name for name, run in self._runs.items() if run.client == client])

    def transition(
        self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any
    ) -> None:
        """Set how many deaths Dask is to forgive a task of ours; see the module's text."""
        if finish != "processing" or type(key) is not tuple or len(key) != 4 or not is_ours(key):
            return
        task = self._scheduler.tasks[key]
        allowed = int(self._scheduler.allowed_failures)
        task.suspicious = max(task.suspicious, allowed if key[3] else allowed - 1)

    def log_event(self, topic: str, msg: Any) -> None:
        """Overhear how workers leave, which the hook for that does not say."""
        if not isinstance(msg, dict):
            return
        what = msg.get("action")
        if what == "remove-worker" and topic == "all":
            processing = frozenset(msg["processing-tasks"])
            self._removals[msg["worker"]] = _Removal(msg["expected"], processing)
        elif what == "worker-status-change" and msg["status"] == "closing":
            self._closing.add(topic)

    def _ordered(self, keys: Iterable[Any]) -> list[Any]:
        """In the order in which a worker runs them, as far as tasks are still known."""
        tasks = self._scheduler.tasks
        return sorted(keys, key=lambda key: (tasks[key].priority or ()) if key in tasks else ())

    # -- watching ---------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Read heartbeats, and judge."""
        tick_s = _now_s()
        while True:
            read_s = min(max(_READ_S, len(self._threads) / _READ_WORKERS), TICK_S)
            await asyncio.sleep(read_s)
            now_s = _now_s()
            self._act(self._membership.heard(self._receiver.receive(), now_s))
            if now_s >= tick_s and self._runs:
                tick_s = now_s + TICK_S - read_s / 2
                self._act(self._membership.tick(now_s))
            if self._recorder.is_due(now_s):
                workers, features = self._membership.features()
                self._recorder.keep(workers, features, self._receiver.heard_since_last())

    def _act(self, actions: Iterable[Action]) -> None:
        """Do what the verdicts say; nothing is done to workers that no fit depends on."""
        if not self._runs:
            return
        for action in actions:
            worker = action.worker
            match action:
                case Probe(through=()):
                    self._crew.spawn(self._probe(worker))
                case Probe(through=through):
                    for relay in through:
                        self._crew.spawn(self._probe_through(worker, relay))
                case Look():
                    self._crew.spawn(self._look(worker))
                case Suspect(evidence=evidence):
                    self._pause(worker)
                    self._counts["suspected"] += 1
                    self._publish(
                        "worker-suspected",
                        worker,
                        evidence,
                        "given nothing more; others do its work",
                    )
                case Rehabilitate(evidence=evidence):
                    self._crew.spawn(self._rehabilitate(worker))
                    self._counts["recovered"] += 1
                    self._publish("worker-recovered", worker, evidence, "given work again")
                case Evict(evidence=evidence):
                    self._counts["evicted"] += 1
                    self._crew.spawn(self._evict(worker, evidence))
                case Drain(evidence=evidence, deadline_s=deadline_s):
                    self._counts["drained"] += 1
                    self._crew.spawn(self._drain(worker, evidence, deadline_s))
                case HeartbeatsBlocked(evidence=evidence) if worker in self._crew.equipped:
                    self._publish("heartbeats-blocked", worker, evidence, "watched by probes alone")

    async def _probe(self, worker: str) -> None:
        answer = await self._crew.ask(worker, "ping", self._policy.probe_s)
        self._act(self._membership.probed(worker, None, answer == b"pong", _now_s()))

    async def _probe_through(self, worker: str, relay: str) -> None:
        if relay not in self._crew.equipped:
            return  # that says nothing about the other one
        limit_s = self._policy.probe_s
        answer = await self._crew.ask(
            relay, "dml_probe", limit_s, address=worker, timeout_s=0.8 * limit_s
        )
        self._act(self._membership.probed(worker, relay, answer is True, _now_s()))

    async def _look(self, worker: str) -> None:
        ws = self._scheduler.workers.get(worker)
        if ws is None:
            return
        self._counts["looks"] += 1
        answer = None
        if ws.nanny in self._crew.equipped:
            answer = await self._crew.ask(ws.nanny, "dml_look", _LOOK_S, worker=worker)
        view = ProcessView(**answer) if isinstance(answer, dict) else ProcessView("unreachable")
        self._act(self._membership.seen(worker, view, _now_s()))

    def _set_pace(self) -> None:
        """Tell workers the interval of their heartbeats, when it has changed much."""
        interval_s = heartbeat_interval_s(self._policy, len(self._threads))
        if abs(interval_s - self._crew.interval_s) > _PACE_CHANGE * self._crew.interval_s:
            self._crew.spawn(self._crew.pace(interval_s))

    # -- acting -----------------------------------------------------------------------------

    async def _evict(self, worker: str, evidence: str) -> None:
        scheduler = self._scheduler
        ws = scheduler.workers.get(worker)
        if ws is None:
            return
        self._leaving[worker] = ("worker-evicted", evidence)
        stream = scheduler.stream_comms.get(worker)
        # Expected: tasks that it had are not to blame.
        await scheduler.remove_worker(
            worker, stimulus_id=f"dml-evict-{time.time()}", expected=True, close=False
        )
        if stream is not None:
            # Otherwise it would be noticed when it closes some day, and remove whichever worker
            # then has this address.
            stream.abort()
        if self._policy.restart and ws.nanny:
            await self._restart(worker, ws.nanny)

    async def _restart(self, worker: str, nanny: str) -> None:
        started_s = _now_s()
        for attempt in range(_RESTART_TIMES):
            answer = await self._crew.ask(nanny, "dml_restart", _RESTART_S, worker=worker)
            if isinstance(answer, str):
                self._publish(
                    "worker-restarted", worker, f"its nanny at {nanny} answered",
                    f"started again as {answer}", cost_s=_now_s() - started_s,
                )  # fmt: skip
                return
            if attempt == 0:
                logger.info("nanny %s cannot start its worker anew yet: %r", nanny, answer)
            await asyncio.sleep(_RETRY_S)
        logger.warning("nanny %s did not start another worker for %s", nanny, worker)

    async def _drain(self, worker: str, evidence: str, deadline_s: float) -> None:
        """Copy away what a worker has, and retire it.

        One whose machine goes is closed; one that was predicted to be lost is started again.
        """
        scheduler = self._scheduler
        ws = scheduler.workers.get(worker)
        if ws is None:
            return
        is_final = worker in self._noticed
        self._publish(
            "worker-draining", worker, evidence,
            f"its data is copied away, then it is retired; {deadline_s:.0f} s are left",
        )  # fmt: skip
        stream = scheduler.stream_comms.get(worker)
        self._leaving[worker] = ("worker-left", f"drained: {evidence}")
        retired = await scheduler.retire_workers(
            workers=[worker], close_workers=is_final, remove=True
        )
        if worker not in retired:
            self._leaving.pop(worker, None)
            if worker in self._threads:
                joined = self._membership.joined(worker, _now_s(), has_nanny=bool(ws.nanny))
                self._publish(
                    "worker-recovered", worker,
                    "it could not be drained: no other worker can take its data", "kept",
                )  # fmt: skip
                self._act(joined)
        elif not is_final:
            if self._policy.restart and ws.nanny:
                # Before it finds that it is cut off: then it would close its nanny as well.
                await self._restart(worker, ws.nanny)
            if stream is not None:
                stream.abort()

    def _pause(self, worker: str) -> None:
        """Have Dask give nothing to a suspect; the worker itself is not told."""
        ws = self._scheduler.workers.get(worker)
        if ws is not None and ws.status == Status.running:
            self._paused.add(worker)
            self._scheduler.handle_worker_status_change(
                Status.paused, ws, f"dml-suspect-{time.time()}"
            )

    async def _rehabilitate(self, worker: str) -> None:
        state = "running"
        if worker in self._crew.equipped:
            # It may have paused itself meanwhile, for want of memory.
            state = await self._crew.ask(worker, "dml_state", self._policy.probe_s)
        if worker not in self._membership.suspects:
            self._unpause(worker, "paused" if state == "paused" else "running")

    def _unpause(self, worker: str, status: str) -> None:
        ws = self._scheduler.workers.get(worker)
        if worker in self._paused and ws is not None and ws.status == Status.paused:
            self._scheduler.handle_worker_status_change(status, ws, f"dml-recovered-{time.time()}")
        self._paused.discard(worker)

    # -- means ------------------------------------------------------------------------------

    def _publish(
        self, kind: str, worker: str, evidence: str, action: str, cost_s: float = 0.0, **more: Any
    ) -> None:
        event = FaultEvent(time.time(), kind, worker, evidence, action, cost_s)
        if self._runs:
            level = logging.WARNING if kind in _GRAVE else logging.INFO
            logger.log(level, "%s %s: %s; %s", kind, worker, evidence, action)
            message = event.as_message() | more | self._unable()
            self._scheduler.log_event([TOPIC, FEED], message)


def _now_s() -> float:
    return time.monotonic()


def _host(address: str) -> str:
    """Where the workers find the scheduler's machine."""
    return "127.0.0.1" if parse_address(address)[0] == "inproc" else get_address_host(address)


def _how_lost(stimulus_id: str) -> str:
    """What made Dask remove a worker."""
    if stimulus_id.startswith("nanny-close"):
        return "its nanny says that the process has ended"
    if stimulus_id.startswith("check-worker-ttl"):
        return "Dask heard nothing of it for distributed.scheduler.worker-ttl"
    if stimulus_id.startswith(("handle-worker-cleanup", "worker-send-comm", "send-all-comm")):
        return "its connection to the scheduler was closed"
    return f"removed by the scheduler ({stimulus_id})"


def _refusal(message: str) -> dict[str, Any]:
    return {"status": "refused", "message": message}
