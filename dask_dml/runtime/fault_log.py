"""What happened in a fit since its last round: heard from the monitor, or noticed by the fit."""

from __future__ import annotations

import time
from dataclasses import replace

from dask_dml.faults import FaultEvent
from dask_dml.runtime.monitor import Monitor, Notice

# How a worker may be gone.
_LOSSES = ("worker-lost", "worker-left", "worker-evicted")
# Of these kinds, the first event of a round bears what the round took more than usual.
_COSTLY = ("worker-lost", "worker-left", "worker-evicted", "worker-suspected", "work-duplicated")


class FaultLog:
    """Events of one run, in the order in which they were heard of.

    Parameters
    ----------
    monitor : Monitor
    run_id : str
    """

    def __init__(self, monitor: Monitor, run_id: str) -> None:
        self._monitor = monitor
        self._run_id = run_id
        self._events: list[FaultEvent] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing has happened."""
        return not self._events

    def hear(self) -> list[Notice]:
        """Take in what the monitor has told since the last call."""
        notices = self._monitor.drain_events()
        self._events.extend(notice.event for notice in notices)
        return notices

    def note(
        self, kind: str, worker: str, evidence: str, action: str, recomputed_blocks: int = 0
    ) -> None:
        """Tell of something that the fit has noticed or done, here, on the topic and in the log."""
        event = FaultEvent(
            time.time(), kind, worker, evidence, action, 0.0, recomputed_blocks, self._run_id
        )
        self._events.append(event)
        self._monitor.publish(event)

    def complete(
        self, kind: str, worker: str, evidence: str, action: str, recomputed_blocks: int
    ) -> None:
        """Add what the fit did to what the monitor has told of a worker, or tell of it."""
        kinds = _LOSSES if kind in _LOSSES else (kind,)
        for i, event in enumerate(self._events):
            if event.worker == worker and event.kind in kinds:
                self._events[i] = replace(
                    event,
                    action=f"{event.action}; {action}",
                    recomputed_blocks=event.recomputed_blocks + recomputed_blocks,
                )
                return
        self.note(kind, worker, evidence, action, recomputed_blocks)

    def take(self, extra_s: float) -> tuple[FaultEvent, ...]:
        """Hand over the events since the last call.

        Parameters
        ----------
        extra_s : float
            Seconds that the round took more than usual; the first loss bears them.
        """
        events, self._events = self._events, []
        for i, event in enumerate(events):
            if event.kind in _COSTLY:
                events[i] = replace(event, cost_s=extra_s)
                break
        return tuple(events)
