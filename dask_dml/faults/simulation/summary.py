"""Many simulated fits, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dask_dml.faults.schedule import Schedule
from dask_dml.faults.simulation.fit import SimulatedFit, simulate


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of many fits.

    Attributes
    ----------
    n_fits, n_done, n_same_bits : int
        How many there were, finished all rounds, and gave the undisturbed bits.
    n_disturbed : int
        Those in which something had to be done again, or somebody was evicted.
    n_evicted, n_falsely_evicted : int
    n_resubmitted, n_duplicated : int
    virtual_s : float
    recoveries : dict of str to tuple of float
        By kind of fault, in order: seconds until the work of the worker that it hit was done, or
        was with others.
    failures : tuple of SimulatedFit
        Those that did not end, or not with the same bits.
    """

    n_fits: int
    n_done: int
    n_same_bits: int
    n_disturbed: int
    n_evicted: int
    n_falsely_evicted: int
    n_resubmitted: int
    n_duplicated: int
    virtual_s: float
    recoveries: dict[str, tuple[float, ...]]
    failures: tuple[SimulatedFit, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.n_fits} fits under faults, {self.virtual_s / 3600.0:.1f} virtual hours: "
            f"{self.n_done} ended, {self.n_same_bits} with the undisturbed bits",
            f"{self.n_disturbed} disturbed: {self.n_resubmitted} attempts submitted anew, "
            f"{self.n_duplicated} duplicated; {self.n_evicted} workers evicted, "
            f"{self.n_falsely_evicted} of them wrongly",
        ]
        for kind, times in self.recoveries.items():
            p99 = times[min(int(0.99 * len(times)), len(times) - 1)]
            lines.append(
                f"work of a worker hit by {kind} was with others after {times[len(times) // 2]:.2f}"
                f" s (median of {len(times)}), {p99:.2f} s (99 %), {times[-1]:.2f} s (longest)"
            )
        lines += [f"{fit}: {fit.schedule}" for fit in self.failures]
        return "\n".join(lines)


def simulate_all(
    schedules: Iterable[Schedule | int],
    watch: Callable[[SimulatedFit], object] = lambda fit: None,
    **arguments: Any,
) -> Summary:
    """Simulate a fit for each schedule.

    Parameters
    ----------
    schedules : iterable of Schedule or int
        Schedules, or seeds to draw them from.
    watch : callable
        Called with each fit, as it ends.
    **arguments
        For `simulate`.

    Returns
    -------
    Summary
    """
    recoveries: dict[str, list[float]] = {}
    failures = []
    n_fits = n_done = n_same_bits = n_disturbed = 0
    n_evicted = n_falsely_evicted = n_resubmitted = n_duplicated = 0
    virtual_s = 0.0
    for schedule in schedules:
        fit = simulate(schedule, **arguments)
        watch(fit)
        n_fits += 1
        n_done += fit.ended
        n_same_bits += fit.same_bits
        n_disturbed += bool(fit.n_evicted or fit.n_resubmitted or fit.n_duplicated)
        n_evicted += fit.n_evicted
        n_falsely_evicted += fit.n_falsely_evicted
        n_resubmitted += fit.n_resubmitted
        n_duplicated += fit.n_duplicated
        virtual_s += fit.virtual_s
        for recovery in fit.recoveries:
            recoveries.setdefault(recovery.kind, []).append(recovery.seconds)
        if not (fit.ended and fit.same_bits):
            failures.append(fit)
    return Summary(
        n_fits=n_fits,
        n_done=n_done,
        n_same_bits=n_same_bits,
        n_disturbed=n_disturbed,
        n_evicted=n_evicted,
        n_falsely_evicted=n_falsely_evicted,
        n_resubmitted=n_resubmitted,
        n_duplicated=n_duplicated,
        virtual_s=virtual_s,
        recoveries={kind: tuple(sorted(times)) for kind, times in sorted(recoveries.items())},
        failures=tuple(failures),
    )
