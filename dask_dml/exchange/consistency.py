"""Who may go on, and whose contribution still counts: synchronous, bounded staleness, asynchronous.

A worker's *clock* is the number of steps it has finished, the holder's *version* the number of
times that the parameters changed. Both rules are one number each, the largest difference allowed:
0 when all go in step, a bound, or none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

KINDS = ("sync", "bounded", "async")


@dataclass(frozen=True, slots=True)
class Consistency:
    """How far workers may be apart, and parameters be out of date.

    Parameters
    ----------
    kind : {"sync", "bounded", "async"}
    staleness : int
        The bound, at least 1; for "bounded" only.

    Raises
    ------
    ValueError
        If the kind is not one of these, or it and the bound do not go together.

    References
    ----------
    Ho et al. 2013 (stale synchronous parallel); Li et al. 2014 (bounded delay).
    """

    kind: Literal["sync", "bounded", "async"] = "sync"
    staleness: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Consistency(kind={self.kind!r}) must be one of {', '.join(KINDS)}")
        if (self.kind == "bounded") != (self.staleness >= 1):
            raise ValueError(
                f"Consistency(kind={self.kind!r}, staleness={self.staleness}): a bound of at least "
                "1 goes with kind='bounded' and with no other"
            )

    @property
    def bound(self) -> float:
        """Largest difference that is allowed; infinite when all are."""
        return math.inf if self.kind == "async" else float(self.staleness)

    def admits(self, delay: int) -> bool:
        """Whether a contribution counts that was made from parameters `delay` versions old."""
        return 0 <= delay <= self.bound

    def step_scale(self, delay: int) -> float:
        """Factor of the step of a contribution `delay` versions old.

        A stale one is divided by its delay (Zhang et al. 2016); one that does not count has none.
        """
        return 1.0 / max(delay, 1) if self.admits(delay) else 0.0


SYNC = Consistency()


@dataclass(frozen=True, slots=True)
class VectorClock:
    """Steps that each worker has finished.

    Attributes
    ----------
    steps : mapping of str to int
        Of each worker that takes part.
    """

    steps: Mapping[str, int] = field(default_factory=dict)

    def ticked(self, worker: str) -> VectorClock:
        """After `worker` has finished a step; one that is new starts with the slowest."""
        return VectorClock({**self.steps, worker: self.of(worker) + 1})

    def merged(self, other: Self) -> VectorClock:
        """What two hosts know together."""
        workers = [*self.steps, *(name for name in other.steps if name not in self.steps)]
        return VectorClock(
            {name: max(self.steps.get(name, 0), other.steps.get(name, 0)) for name in workers}
        )

    def without(self, worker: str) -> VectorClock:
        """After `worker` has left: nobody waits for it any more."""
        return VectorClock({name: step for name, step in self.steps.items() if name != worker})

    def of(self, worker: str) -> int:
        """Clock of a worker; of one that is not known, that of the slowest."""
        return self.steps.get(worker, self.slowest)

    @property
    def slowest(self) -> int:
        """Smallest clock; 0 when nobody takes part."""
        return min(self.steps.values(), default=0)

    def may_go_on(self, worker: str, consistency: Consistency) -> bool:
        """Whether a worker at clock c may start a step: the slowest is at c - bound or later."""
        return self.slowest >= self.of(worker) - consistency.bound

    def precedes(self, other: Self) -> bool:
        """Whether `other` has seen all that this has."""
        return all(step <= other.steps.get(name, 0) for name, step in self.steps.items())

    def as_arrays(self) -> dict[str, NDArray[np.generic]]:
        """As plain data: names, and a step for each."""
        return {
            "worker": np.array(list(self.steps), dtype=np.str_),
            "step": np.array(list(self.steps.values()), dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """From what `as_arrays` gave."""
        pairs = zip(arrays["worker"].tolist(), arrays["step"].tolist(), strict=True)
        return cls({str(name): int(step) for name, step in pairs})
