"""A fit's line to the watcher on the scheduler."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

from distributed import Client
from distributed.protocol.pickle import dumps, loads

from dask_dml.errors import ClusterError
from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.timeline import TOPIC, FaultEvent
from dask_dml.runtime.scheduler_plugin import FEED, NAME, FaultMonitor
from dask_dml.version import __version__

logger = logging.getLogger(__name__)

_PLUGIN = "dask_dml.runtime.scheduler_plugin"
# The plugin may leave the cluster just as a fit comes; then it is sent once more.
_TIMES = 3
# What a scheduler answers that takes no plugin, has no such package, or is not there any more.
# `RuntimeError` stands for the client that was closed.
_REFUSALS = (ImportError, AttributeError, ValueError, TypeError, RuntimeError, OSError)


class FaultMonitorWarning(RuntimeWarning):
    """The scheduler cannot watch the workers: the fit has Dask's own recovery alone."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An event as it came from the scheduler.

    Attributes
    ----------
    event : FaultEvent
    processing : tuple of keys
        Of a worker that is gone: tasks of fits that it had, in the order in which it would run
        them, so that the first are the likeliest to have been running.
    blamed : bool
        Whether the worker is gone without another cause that is known, so that its tasks may be.
    threads : int
        Of a worker that is gone: how many of these tasks it can have been running at once.
    """

    event: FaultEvent
    processing: tuple[Any, ...] = ()
    blamed: bool = False
    threads: int = 1


class _Feed:
    """The events that one client receives, shared by its fits.

    The client holds it as the handler of a topic of its own, so that people's handlers of `TOPIC`
    stay.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._monitors: set[Monitor] = set()

    def add(self, monitor: Monitor) -> None:
        with self._lock:
            self._monitors.add(monitor)

    def discard(self, monitor: Monitor) -> None:
        with self._lock:
            self._monitors.discard(monitor)

    def __call__(self, event: tuple[float, Any]) -> None:
        with self._lock:
            monitors = list(self._monitors)
        for monitor in monitors:
            monitor.receive(event[1])


# A client takes one handler a topic, and does not tell whether it has one.
_feeds: weakref.WeakKeyDictionary[Client, _Feed] = weakref.WeakKeyDictionary()
_feeds_lock = threading.Lock()


def _feed_of(client: Client) -> _Feed:
    with _feeds_lock:
        feed = _feeds.get(client)
        if feed is not None:
            return feed
        feed = _feeds[client] = _Feed()
        client.subscribe_topic(FEED, feed)
    # In a thread of the scheduler's: loading it with the plugin would hold up all others there for
    # seconds. Where that is refused or fails, what happens to the plugin tells why.
    with suppress(*_REFUSALS):
        client.run_on_scheduler(asyncio.to_thread, import_module, _PLUGIN)
    return feed


class Monitor:
    """Has the scheduler watch the workers while a fit runs.

    Where the scheduler refuses, a `FaultMonitorWarning` says what is lost, and the fit goes on with
    what Dask itself notices.

    Parameters
    ----------
    client : distributed.Client
        Synchronous.
    policy : FaultPolicy
    run_id : str

    Attributes
    ----------
    is_watching : bool
        Whether the scheduler watches.
    """

    def __init__(self, client: Client, policy: FaultPolicy, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._notices: deque[Notice] = deque()
        self._suspects: frozenset[str] = frozenset()
        self.is_watching = False
        if policy.monitor:
            self._open(policy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def suspects(self) -> frozenset[str]:
        """Workers to give nothing to: those that are suspect, and those that are being drained."""
        return self._suspects

    def drain_events(self) -> list[Notice]:
        """Take what was received since the last call, in order."""
        notices = []
        while self._notices:
            notices.append(self._notices.popleft())
        return notices

    def recipe(self, keys: Iterable[Hashable]) -> dict[Any, Mapping[Any, Any]]:
        """Ask from which tasks keys could be made again.

        Parameters
        ----------
        keys : iterable of keys

        Returns
        -------
        dict of key to graph
            Each graph with the key's task and those of all its ancestors. Keys that cannot be made
            again, because they come from scattered data, are missing; all of them, if the
            scheduler does not watch.
        """
        if not self.is_watching:
            return {}
        recipes: dict[Any, Mapping[Any, Any]] = loads(
            self._ask("dml_recipe", run=self._run_id, keys=list(keys))["recipes"]
        )
        return recipes

    def keep(self, keys: Iterable[Hashable], n_replicas: int) -> None:
        """Have keys held so many times until this is closed, if the scheduler watches."""
        if self.is_watching:
            self._ask("dml_keep", run=self._run_id, keys=list(keys), n_replicas=n_replicas)

    def publish(self, event: FaultEvent) -> None:
        """Put an event of this fit on the topic, where others see it."""
        logger.info("%s %s: %s; %s", event.kind, event.worker, event.evidence, event.action)
        try:
            self._client.log_event(TOPIC, event.as_message())
        except _REFUSALS as error:
            logger.info("event %s of run %s not published: %r", event.kind, self._run_id, error)

    def status(self) -> dict[str, Any]:
        """What the watcher says of itself and of the workers; see `FaultMonitor.dml_status`."""
        return self._ask("dml_status")

    def record(self, on: bool) -> None:
        """Have the watcher keep the workers' telemetry, or keep no more."""
        self._ask("dml_record", on=on)

    def records(self) -> dict[str, list[Any]]:
        """Take the telemetry that was kept.

        Returns
        -------
        dict of str to list
            A list for each of `dask_dml.faults.telemetry.COLUMNS`.
        """
        columns: dict[str, list[Any]] = self._ask("dml_records")["columns"]
        return columns

    def close(self) -> None:
        """End the watch for this fit; more than once does no harm."""
        if not self.is_watching:
            return
        self.is_watching = False
        _feed_of(self._client).discard(self)
        if self._client.status != "running":
            return  # the scheduler notices that by itself
        try:
            self._ask("dml_unwatch", run=self._run_id)
        except (ClusterError, *_REFUSALS) as error:
            logger.info("run %s could not be signed off: %r", self._run_id, error)

    def receive(self, message: Mapping[str, Any]) -> None:
        """Take in a message of the watcher's; called in the client's thread."""
        # The event first: whoever sees the suspects can hear of them.
        self._notices.append(
            Notice(
                FaultEvent.from_message(message),
                tuple(message.get("processing", ())),
                bool(message.get("blamed", False)),
                int(message.get("threads", 1)),
            )
        )
        self._suspects = frozenset(message["suspects"]) | frozenset(message["draining"])

    # -- the scheduler ----------------------------------------------------------------------

    def _open(self, policy: FaultPolicy) -> None:
        feed = _feed_of(self._client)
        feed.add(self)
        try:
            answer = self._watched(policy)
        except (ClusterError, *_REFUSALS) as error:
            feed.discard(self)
            self._refused(error)
            return
        self._suspects = frozenset(answer["suspects"]) | frozenset(answer["draining"])
        self.is_watching = True

    def _watched(self, policy: FaultPolicy) -> dict[str, Any]:
        for _ in range(_TIMES):
            # A scheduler that has it already looks at the name alone.
            self._client.register_plugin(FaultMonitor(), name=NAME)
            answer = self._call(
                "dml_watch",
                run=self._run_id,
                client=self._client.id,
                version=__version__,
                policy=dumps(policy),
            )
            if answer is not None:
                return self._checked(answer)
        raise ClusterError("the scheduler took the plugin and does not know it")

    def _refused(self, error: Exception) -> None:
        where = self._client.scheduler.address if self._client.scheduler else "its address"
        reason = f"{type(error).__name__}: {error}"
        evidence = f"the scheduler at {where} does not watch the workers ({reason})"
        self._notices.append(
            Notice(
                FaultEvent(
                    time.time(), "monitor-refused", "", evidence, "Dask's own recovery alone",
                    run=self._run_id,
                )
            )
        )  # fmt: skip
        warnings.warn(
            f"{evidence}. The fit goes on with Dask's own recovery: a worker that hangs or cannot "
            "be reached holds it up until distributed.scheduler.worker-ttl (5 minutes), none is "
            "drained before it is lost, and blocks that live in the cluster's memory alone are "
            "not made again elsewhere. Have the scheduler run dask_dml "
            f"{__version__} and take plugins, or say FaultPolicy(monitor=False).",
            FaultMonitorWarning,
            stacklevel=4,
        )

    def _ask(self, op: str, **message: Any) -> dict[str, Any]:
        answer = self._call(op, **message)
        if answer is None:
            raise ClusterError(
                f"run {self._run_id} asked the scheduler's fault monitor for {op}, and there is "
                "none (any more): it leaves when no fit has needed it for a while"
            )
        return self._checked(answer)

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if answer["status"] != "OK":
            raise ClusterError(answer["message"])
        return answer

    def _call(self, op: str, **message: Any) -> dict[str, Any] | None:
        """The handler's answer; None where the scheduler has no such handler."""
        answer: dict[str, Any] | None = self._client.sync(
            getattr(self._client.scheduler, op), **message
        )
        return answer
