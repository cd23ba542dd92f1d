"""What happened to the workers of a fit, a row an event.

The scheduler's plugin publishes its events on the Dask topic `TOPIC`; so does a fit those that it
makes itself. Estimators show them as ``faults_``, `dask dml faults` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

TOPIC = "dml-faults"

# What each kind of event means; there are no others.
KINDS = {
    "worker-joined": "a worker is new",
    "worker-lost": "a worker left without notice",
    "worker-left": "a worker was retired or closed on request",
    "worker-suspected": "a worker is silent: it is given nothing more, others do its work as well",
    "worker-recovered": "a suspect has spoken again",
    "worker-evicted": "a worker is dead and was taken off the cluster",
    "worker-restarted": "the nanny of an evicted worker was told to start a new one",
    "worker-draining": "a worker is about to be lost: its data is copied away, then it is retired",
    "heartbeats-blocked": "no heartbeats arrive from a worker that answers: only probes watch it",
    "work-duplicated": "a task that takes too long was given to another worker as well",
    "work-resubmitted": "a task that failed because its worker died was submitted anew",
    "blocks-placed": "blocks were placed anew: a worker is slow, silent, or has other threads",
    "poison-block": "workers die, one after the other, under the same block",
    "workers-awaited": "all workers are gone and the fit waits for new ones",
    "holder-promoted": "the host of the parameter holder was lost and a replica took over",
    "holder-lost": "all hosts of the parameter holder were lost: parameters are published again",
    "monitor-refused": "the scheduler took no plugin: the fit has Dask's own recovery alone",
    "blas-differs": "kernels of BLAS differ among workers: the last digits depend on who sums what",
    "checkpoint-resumed": "the fit went on from a checkpoint",
}


@dataclass(frozen=True, slots=True)
class FaultEvent:
    """One thing that happened.

    Attributes
    ----------
    time_s : float
        When it was noticed, seconds since the epoch.
    kind : str
        One of `KINDS`.
    worker : str
        Address; empty where no worker is concerned.
    evidence : str
        How it was noticed, with its figures: phi, missed probes, probability.
    action : str
        What was done.
    cost_s : float
        Seconds that it cost the round.
    recomputed_blocks : int
        Blocks that had to be made again.
    run : str
        Run that it belongs to; empty for what concerns the cluster.
    """

    time_s: float
    kind: str
    worker: str
    evidence: str
    action: str
    cost_s: float = 0.0
    recomputed_blocks: int = 0
    run: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"FaultEvent(kind={self.kind!r}) must be one of {', '.join(KINDS)}")

    def as_message(self) -> dict[str, Any]:
        """As plain data, for a topic or a file."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """From what `as_message` gave; entries that are not known are left out."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in message.items() if name in names})
