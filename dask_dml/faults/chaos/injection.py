"""A schedule of faults, let loose on a cluster in a thread."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Self

import psutil
from distributed import Client

from dask_dml.errors import ClusterError
from dask_dml.faults.chaos.hands import FOREIGN_KINDS, ForeignHands
from dask_dml.faults.chaos.harness import ChaosCluster
from dask_dml.faults.schedule import Schedule, Step

_JOIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Injection:
    """A step of a schedule that was taken.

    Attributes
    ----------
    at_s : float
        When, seconds after the start.
    step : Step
    outcome : str
        What was done, or why nothing was.
    """

    at_s: float
    step: Step
    outcome: str


class Chaos:
    """Faults by a schedule, while the block of a ``with`` statement runs.

    When the block ends, steps that have not been taken are left out; what was done stays until
    `ChaosCluster.mend` undoes it.

    Parameters
    ----------
    target : ChaosCluster or distributed.Client
        A cluster that was made for this, or the client of another one.
    schedule : Schedule
    allow_foreign : bool
        Cause faults on a cluster that was started by others, through Dask: those of kind kill,
        hang, slow, memory and retire.

    Attributes
    ----------
    injections : list of Injection
        What was done so far.

    Raises
    ------
    ClusterError
        If the cluster was started by others and `allow_foreign` is false, or the schedule has
        faults that cannot be caused there.
    """

    def __init__(
        self, target: ChaosCluster | Client, schedule: Schedule, allow_foreign: bool = False
    ) -> None:
        self._hands: ChaosCluster | ForeignHands
        if isinstance(target, ChaosCluster):
            self._hands = target
        else:
            if not allow_foreign:
                address = target.scheduler.address if target.scheduler else "a closed client"
                raise ClusterError(
                    f"the cluster at {address} was not started by ChaosCluster, and its workers "
                    "would be killed: give allow_foreign=True if that is what you want"
                )
            kinds = {fault.kind for fault in schedule.faults} - FOREIGN_KINDS
            if kinds:
                raise ClusterError(
                    f"{', '.join(sorted(kinds))} cannot be caused on a cluster that others "
                    f"started: draw the schedule from kinds={sorted(FOREIGN_KINDS)}"
                )
            self._hands = ForeignHands(target)
        self._schedule = schedule
        self._ended = threading.Event()
        self._steps: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="dml-chaos", daemon=True)
        self.injections: list[Injection] = []

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        end_s = time.monotonic() + _JOIN_S
        for step in self._steps:
            step.join(max(end_s - time.monotonic(), 0.0))

    @property
    def is_over(self) -> bool:
        """Whether all steps have been taken."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all steps have been taken; whether that is so."""
        self._thread.join(timeout_s)
        return self.is_over

    def _run(self) -> None:
        for step in self._schedule.steps():
            if self._ended.wait(max(self._started_s + step.at_s - time.monotonic(), 0.0)):
                return
            # Some take long, as to retire a worker; the next ones do not wait for that.
            thread = threading.Thread(
                target=self._take, args=(step,), name="dml-chaos-step", daemon=True
            )
            self._steps.append(thread)
            thread.start()

    def _take(self, step: Step) -> None:
        act = self._hands.begin if step.action == "begin" else self._hands.end
        at_s = time.monotonic() - self._started_s
        try:
            outcome = act(step.fault)
        except (ClusterError, OSError, ValueError, psutil.Error) as error:
            # The one to be hit is gone, or goes while it is being hit.
            outcome = f"nothing: {type(error).__name__}: {error}"
        self.injections.append(Injection(at_s, step, outcome))
