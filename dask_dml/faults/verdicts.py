"""What a watcher may hold of a worker, what it is told, and what it wants done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple


class Verdict(StrEnum):
    """What a worker is held to be."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DRAINING = "draining"
    DEAD = "dead"


class ProcessView(NamedTuple):
    """What a nanny sees of its worker's process.

    Attributes
    ----------
    state : str
        "running" (busy or not), "stopped" (by a signal), "traced" (stopped by a debugger),
        "swapping", "gone", or "unreachable" where the nanny did not answer.
    cpu_share : float
        CPU seconds that the process spent per second.
    rss_bytes : int
        Resident memory.
    is_same : bool
        Whether it is still the process that was asked about. Another one says nothing about it.
    """

    state: Literal["running", "stopped", "traced", "swapping", "gone", "unreachable"]
    cpu_share: float = 0.0
    rss_bytes: int = 0
    is_same: bool = True


@dataclass(frozen=True, slots=True)
class Probe:
    """Ping the worker: directly (`through` is empty), or through each of these workers.

    Each ping is answered for by one call of `Membership.probed`.
    """

    worker: str
    through: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the worker's nanny what it sees; `Membership.seen` takes the answer, or its absence."""

    worker: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """Give the worker nothing more, and let others do its work as well."""

    worker: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Evict:
    """Take the dead worker off the cluster; then call `Membership.left`."""

    worker: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Rehabilitate:
    """A suspect works again."""

    worker: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Copy the worker's data away and retire it, within `deadline_s` from now."""

    worker: str
    evidence: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class HeartbeatsBlocked:
    """No heartbeats arrive from a worker that answers: probes alone watch it. Said once."""

    worker: str
    evidence: str


Action = Probe | Look | Suspect | Evict | Rehabilitate | Drain | HeartbeatsBlocked
