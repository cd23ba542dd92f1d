"""Which fault hits which worker, and when: drawn from a seed, and kept as JSON."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

# What each kind does; there are no others.
KINDS = {
    "kill": "the worker's process gets SIGKILL; its nanny may start another",
    "hang": "the worker's process gets SIGSTOP, and SIGCONT after the duration, if that ever ends",
    "slow": "the worker's process runs a tenth of the time",
    "partition": "packets from and to the worker's machine are dropped",
    "partition-in": "packets to the worker's machine are dropped",
    "partition-out": "packets from the worker's machine are dropped",
    "memory": "the worker's process grows beyond its memory limit within the duration",
    "preempt": "the machine's metadata announce its end; after the duration it is switched off",
    "retire": "the worker is retired: it gives its data away and closes",
    "join": "a new machine joins",
}
PARTITIONS = frozenset({"partition", "partition-in", "partition-out"})
# Those that take a machine away for good.
_LASTING = frozenset({"preempt", "retire"})
# Those that may hit all workers at once; nobody retires the lot.
_SWEEPING = ("kill", "hang", "slow", *sorted(PARTITIONS), "memory", "preempt")
_PATTERNS = ("scattered", "at-once", "all-but-one", "all")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    at_s : float
        When it begins, seconds after the schedule was started.
    duration_s : float
        How long it lasts; infinity for a hang that nothing ends, 0 for what takes no time.
    target : int
        Number of the machine, counted from 0; those that join are counted on from there.

    Raises
    ------
    ValueError
        If a value makes no sense.
    """

    kind: str
    at_s: float
    duration_s: float
    target: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Fault(kind={self.kind!r}) must be one of {', '.join(KINDS)}")
        if not (math.isfinite(self.at_s) and self.at_s >= 0.0):
            raise ValueError(f"Fault(at_s={self.at_s}) must be finite and not negative")
        if not self.duration_s >= 0.0 or (math.isinf(self.duration_s) and self.kind != "hang"):
            raise ValueError(
                f"Fault(kind={self.kind!r}, duration_s={self.duration_s}): durations are not "
                "negative, and only a hang may last for ever"
            )
        if self.target < 0:
            raise ValueError(f"Fault(target={self.target}) must be the number of a machine")

    @property
    def end_s(self) -> float:
        """When it ends, seconds after the schedule was started."""
        return self.at_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do for a fault: to begin it, or to end it."""

    at_s: float
    action: Literal["begin", "end"]
    fault: Fault


@dataclass(frozen=True, slots=True)
class Schedule:
    """Faults in the order of their time.

    Attributes
    ----------
    seed : int
        That they were drawn from.
    n_workers : int
        Machines at the start.
    length_s : float
        When all is over that does not last for ever.
    faults : tuple of Fault
    """

    seed: int
    n_workers: int
    length_s: float
    faults: tuple[Fault, ...]

    def __post_init__(self) -> None:
        if self.n_workers < 1:
            raise ValueError(f"Schedule(n_workers={self.n_workers}) must be at least 1")
        if not (math.isfinite(self.length_s) and self.length_s > 0.0):
            raise ValueError(f"Schedule(length_s={self.length_s}) must be finite and positive")
        n_machines = self.n_workers
        for earlier, fault in zip((None, *self.faults), self.faults, strict=False):
            if earlier is not None and fault.at_s < earlier.at_s:
                raise ValueError(f"Schedule(faults=...): {fault} must not come after {earlier}")
            if fault.kind == "join" and fault.target != n_machines:
                raise ValueError(f"Schedule(faults=...): {fault} must have target={n_machines}")
            if fault.kind != "join" and fault.target >= n_machines:
                raise ValueError(
                    f"Schedule(faults=...): {fault} hits a machine of which there are {n_machines}"
                )
            n_machines += fault.kind == "join"

    def steps(self) -> tuple[Step, ...]:
        """What is to be done and when, in order; ends of what never ends are left out."""
        begins = [Step(fault.at_s, "begin", fault) for fault in self.faults]
        ends = [
            Step(fault.end_s, "end", fault)
            for fault in self.faults
            if 0.0 < fault.duration_s < math.inf
        ]
        return tuple(sorted(begins + ends, key=lambda step: step.at_s))

    def to_json(self) -> str:
        """As JSON; null stands for a duration without an end."""
        faults = [
            {
                **asdict(fault),
                "duration_s": None if math.isinf(fault.duration_s) else fault.duration_s,
            }
            for fault in self.faults
        ]
        return json.dumps(
            {
                "seed": self.seed,
                "n_workers": self.n_workers,
                "length_s": self.length_s,
                "faults": faults,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From what `to_json` gave.

        Raises
        ------
        ValueError
            If the text is something else.
        """
        found: Any = json.loads(text)
        try:
            faults = tuple(
                Fault(
                    str(fault["kind"]),
                    float(fault["at_s"]),
                    math.inf if fault["duration_s"] is None else float(fault["duration_s"]),
                    int(fault["target"]),
                )
                for fault in found["faults"]
            )
            return cls(
                int(found["seed"]), int(found["n_workers"]), float(found["length_s"]), faults
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                "a schedule is an object with seed, n_workers, length_s and faults, each of them "
                f"with kind, at_s, duration_s and target: {type(error).__name__}: {error}"
            ) from error

    def __str__(self) -> str:
        shown = []
        for fault in self.faults:
            span = f" for {fault.duration_s:.1f} s" if 0.0 < fault.duration_s < math.inf else ""
            shown.append(f"{fault.kind} {fault.target} at {fault.at_s:.1f} s{span}")
        return "; ".join(shown)


def draw_schedule(
    seed: int,
    n_workers: int,
    length_s: float,
    kinds: Collection[str] = tuple(KINDS),
    n_faults: int | None = None,
) -> Schedule:
    """Draw a schedule: faults one by one, several at once, all but one, or all of them.

    Parameters
    ----------
    seed : int
    n_workers : int
        Machines at the start.
    length_s : float
        Faults begin in the first two thirds of this, and are over by its end; a hang may last for
        ever.
    kinds : collection of str
        Which of `KINDS` to draw from.
    n_faults : int, optional
        How many faults, scattered over the time. By default one to three of them, or as many
        as one of the other patterns takes.

    Returns
    -------
    Schedule
        The same for the same arguments. When it is over, at least one machine is left: where the
        faults take all machines away for good, others join after them.

    Raises
    ------
    ValueError
        If there is no worker, no time, no kind, or an unknown one.
    """
    known = [kind for kind in KINDS if kind in kinds]
    if not known or len(known) != len(set(kinds)):
        raise ValueError(
            f"draw_schedule(kinds=...) must be some of {', '.join(KINDS)}, got {list(kinds)}"
        )
    if n_workers < 1 or not (math.isfinite(length_s) and length_s > 0.0):
        raise ValueError(
            f"draw_schedule(n_workers={n_workers}, length_s={length_s}) needs workers and some time"
        )
    if n_faults is not None and n_faults < 0:
        raise ValueError(f"draw_schedule(n_faults={n_faults}) must not be negative")
    rng = random.Random(seed)
    sweeping = [kind for kind in known if kind in _SWEEPING]
    pattern = rng.choices(_PATTERNS, (5, 2, 2, 1))[0]
    if n_faults is not None or not sweeping:
        pattern = "scattered"
    if pattern == "scattered":
        count = rng.randint(1, 3) if n_faults is None else n_faults
        drawn = [
            _draw(rng, rng.choice(known), rng.uniform(0.05, 0.65) * length_s, length_s, target)
            for target in (rng.randrange(n_workers) for _ in range(count))
        ]
    else:
        n_hit = {
            "at-once": rng.randint(min(2, n_workers), n_workers),
            "all-but-one": max(n_workers - 1, 1),
            "all": n_workers,
        }[pattern]
        at_s = rng.uniform(0.1, 0.5) * length_s
        one_kind = rng.choice(sweeping) if rng.random() < 0.5 else None
        drawn = [
            _draw(rng, one_kind or rng.choice(sweeping), at_s, length_s, target)
            for target in sorted(rng.sample(range(n_workers), n_hit))
        ]
    return Schedule(seed, n_workers, length_s, _with_joiners(rng, drawn, n_workers, length_s))


def _draw(rng: random.Random, kind: str, at_s: float, length_s: float, target: int) -> Fault:
    left_s = length_s - at_s
    if kind in ("kill", "retire", "join"):
        duration_s = 0.0
    elif kind == "hang" and rng.random() < 0.5:
        duration_s = math.inf
    elif kind in ("memory", "preempt"):
        duration_s = rng.uniform(0.2, 0.5) * left_s
    else:
        duration_s = rng.uniform(0.3, 1.0) * left_s
    return Fault(kind, round(at_s, 3), round(duration_s, 3), target)


def _with_joiners(
    rng: random.Random, drawn: Sequence[Fault], n_workers: int, length_s: float
) -> tuple[Fault, ...]:
    """Have somebody left in the end, and number those that join."""
    faults = list(drawn)
    lasting = [fault for fault in faults if fault.kind in _LASTING]
    if len({fault.target for fault in lasting}) == n_workers:
        gone_s = max(fault.end_s for fault in lasting)
        for _ in range(rng.randint(1, n_workers)):
            at_s = rng.uniform(gone_s, max(length_s, gone_s))
            faults.append(Fault("join", round(at_s, 3), 0.0, 0))
    faults.sort(key=lambda fault: (fault.at_s, fault.target))
    n_machines = n_workers
    numbered = []
    for fault in faults:
        if fault.kind == "join":
            fault = Fault("join", fault.at_s, 0.0, n_machines)
            n_machines += 1
        numbered.append(fault)
    return tuple(numbered)
