"""A fleet without faults, watched for thousands of hours."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.simulation.clock import Noise, VirtualClock
from dask_dml.faults.simulation.cluster import SimulatedCluster

# Before a disturbance, for the clock of the watcher to settle; and after it, for its verdicts.
_BEFORE_S = 2.0
_AFTER_S = 4.0
_WARM_S = 30.0


@dataclass(frozen=True, slots=True)
class FleetFigures:
    """What became of a fleet that had no faults.

    Attributes
    ----------
    worker_h : float
        Hours of watching, times workers.
    simulated_worker_h : float
        Of these, the ones that were played event by event.
    n_holds, n_freezes : int
        GIL holds and standstills of machines that were played.
    longest_hold_s, longest_freeze_s : float
    n_suspected : int
    n_evicted : int
        All of them wrong.
    evidence : tuple of str
        Of these.
    """

    worker_h: float
    simulated_worker_h: float
    n_holds: int
    n_freezes: int
    longest_hold_s: float
    longest_freeze_s: float
    n_suspected: int
    n_evicted: int
    evidence: tuple[str, ...]

    @property
    def evicted_per_10000_h(self) -> float:
        """False evictions in 10,000 worker-hours."""
        return self.n_evicted / self.worker_h * 10_000.0

    def __str__(self) -> str:
        return (
            f"{self.worker_h:,.0f} worker-hours ({self.simulated_worker_h:,.0f} of them event by "
            f"event), {self.n_holds} GIL holds of up to {self.longest_hold_s:.0f} s, "
            f"{self.n_freezes} standstills of up to {self.longest_freeze_s:.1f} s: "
            f"{self.n_suspected} suspected, {self.n_evicted} evicted "
            f"({self.evicted_per_10000_h:.2f} in 10,000 worker-hours)"
        )


def watch_fleet(
    worker_h: float,
    policy: FaultPolicy | None = None,
    noise: Noise | None = None,
    n_workers: int = 8,
    seed: int = 0,
) -> FleetFigures:
    """Watch workers that have no faults, only what is usual, and count false evictions.

    An eviction takes `FaultPolicy.unreachable_s` without an answer. So what lies further than half
    of that from anything that lasts as long is skipped; to the watcher that is a pause of its own.
    All else is played event by event, down to what lasts longer than `FaultPolicy.probe_s`: a
    shorter pause fails no probe, and is below the silence that is acceptable.

    Parameters
    ----------
    worker_h : float
        Hours, times workers.
    policy : FaultPolicy, optional
    noise : Noise, optional
    n_workers : int
    seed : int

    Returns
    -------
    FleetFigures
    """
    policy, noise = policy or FaultPolicy(), noise or Noise()
    rng = random.Random(seed)
    clock = VirtualClock()
    counts = dict.fromkeys(("worker-suspected", "worker-evicted"), 0)
    evidences = []

    def listen(kind: str, worker: str, evidence: str, keys: object, blamed: bool) -> None:
        if kind in counts:
            counts[kind] += 1
        if kind == "worker-evicted":
            evidences.append(evidence)

    # What disturbs is drawn here, and of that only what may matter.
    calm = replace(noise, holds_per_h=0.0, freezes_per_h=0.0)
    cluster = SimulatedCluster(
        clock, rng, calm, policy, n_workers, lambda blocks, held: 0.0, listen
    )
    holds: list[float] = []
    freezes: list[float] = []
    end_s = 0.0

    def disturb(least_s: float, most_s: float) -> None:
        nonlocal end_s
        machine = rng.choice(cluster.machines)
        hold_rate = noise.holds_per_h * noise.hold_share(least_s, most_s)
        rate = hold_rate + noise.freezes_per_h * noise.freeze_share(least_s, most_s)
        is_hold = rng.random() * rate < hold_rate
        draw = noise.draw_hold_s if is_hold else noise.draw_freeze_s
        while not least_s <= (lasts_s := draw(rng)) < most_s:
            continue
        if not is_hold:
            machine.frozen_until_s = max(machine.frozen_until_s, clock.now_s + lasts_s)
            freezes.append(lasts_s)
        elif machine.process is not None:
            process = machine.process
            process.held_until_s = max(process.held_until_s, clock.now_s + lasts_s)
            holds.append(lasts_s)
        end_s = max(end_s, clock.now_s + lasts_s)

    def per_s(least_s: float, most_s: float) -> float:
        holds_per_h = noise.holds_per_h * noise.hold_share(least_s, most_s)
        freezes_per_h = noise.freezes_per_h * noise.freeze_share(least_s, most_s)
        return n_workers * (holds_per_h + freezes_per_h) / 3600.0

    least_s, long_s = policy.probe_s, max(policy.unreachable_s / 2, policy.probe_s)
    rate, long_rate = per_s(least_s, long_s), per_s(long_s, math.inf)

    def disturb_shortly() -> None:
        disturb(least_s, long_s)
        clock.after(rng.expovariate(rate), disturb_shortly)

    def play(until_s: float) -> None:
        while clock.now_s < until_s:
            clock.step()

    if rate > 0.0:
        clock.after(rng.expovariate(rate), disturb_shortly)
    play(_WARM_S)
    length_s = worker_h * 3600.0 / n_workers
    skipped_s = 0.0
    while clock.now_s < length_s:
        next_s = clock.now_s + rng.expovariate(long_rate)
        while clock.now_s < min(end_s + _AFTER_S, next_s):
            play(min(end_s + _AFTER_S, next_s))
        while cluster.membership.suspects and clock.now_s < next_s:
            play(min(clock.now_s + 1.0, next_s))
        if (skip_s := next_s - long_s - _BEFORE_S - clock.now_s) > 0.0:
            clock.skip(skip_s)
            skipped_s += skip_s
        play(next_s)
        disturb(long_s, math.inf)
    return FleetFigures(
        worker_h=clock.now_s * n_workers / 3600.0,
        simulated_worker_h=(clock.now_s - skipped_s) * n_workers / 3600.0,
        n_holds=len(holds),
        n_freezes=len(freezes),
        longest_hold_s=max(holds, default=0.0),
        longest_freeze_s=max(freezes, default=0.0),
        n_suspected=counts["worker-suspected"],
        n_evicted=counts["worker-evicted"],
        evidence=tuple(evidences),
    )
