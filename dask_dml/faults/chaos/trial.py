"""The same fit again and again while faults happen: whether it ends, and with the same bits."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client

from dask_dml.errors import ClusterError
from dask_dml.estimator import LinearEstimator
from dask_dml.faults.chaos.harness import ChaosCluster, settled, task_names
from dask_dml.faults.chaos.injection import Chaos, Injection
from dask_dml.faults.schedule import Schedule

Fit = Callable[[Client], LinearEstimator]


@dataclass(frozen=True)
class Trial:
    """What became of the fits under one schedule.

    Attributes
    ----------
    schedule : Schedule
    seconds : float
        Until the schedule was over and the last fit had ended.
    longest_s : float
        Of the fit that took longest.
    n_fits, n_rounds : int
        Fits that ended, and their rounds.
    same_bits : bool
        Whether all of them have the bits of the undisturbed fit.
    error : str
        Of the fit that failed or did not end; empty if none did.
    events : tuple of dict
        Rows of ``faults_`` of all fits.
    injections : tuple of Injection
        What was done to the cluster.
    leftovers : tuple of str
        What the fits left on the cluster.
    """

    schedule: Schedule
    seconds: float
    longest_s: float
    n_fits: int
    n_rounds: int
    same_bits: bool
    error: str
    events: tuple[dict[str, Any], ...]
    injections: tuple[Injection, ...]
    leftovers: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether every fit ended, with the same bits, and nothing is left."""
        return self.same_bits and not self.error and not self.leftovers


def fingerprint(model: LinearEstimator) -> str:
    """Digest of the bits of a fit: coefficients, intercepts, and the objective of every round."""
    digest = hashlib.blake2b(digest_size=16)
    for values in (model.coef_, model.intercept_, model.history_["objective"].to_numpy()):
        digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    return digest.hexdigest()


class _Fits(threading.Thread):
    """Fits one after the other until told to stop, and keeps what came of them."""

    def __init__(self, fit: Fit, client: Client) -> None:
        super().__init__(name="dml-chaos-fits", daemon=True)
        self._fit = fit
        self._client = client
        self.enough = threading.Event()
        self.error = ""
        self.models: list[LinearEstimator] = []
        self.longest_s = 0.0

    def run(self) -> None:
        """Fit at least once."""
        while not (self.error or (self.models and self.enough.is_set())):
            started_s = time.monotonic()
            try:
                self.models.append(self._fit(self._client))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                self.error = f"{type(error).__name__}: {error}"
            self.longest_s = max(self.longest_s, time.monotonic() - started_s)


def run_trial(
    cluster: ChaosCluster | Client,
    schedule: Schedule,
    fit: Fit,
    expected: str,
    limit_s: float,
    allow_foreign: bool = False,
) -> Trial:
    """Fit under a schedule of faults, as often as it takes until the schedule is over.

    Parameters
    ----------
    cluster : ChaosCluster or distributed.Client
        In order. A `ChaosCluster` is mended afterwards.
    schedule : Schedule
    fit : callable
        Makes a fitted estimator on the cluster of a client.
    expected : str
        `fingerprint` of the undisturbed fit.
    limit_s : float
        How long the last fit may take after the schedule is over.
    allow_foreign : bool
        See `Chaos`.

    Returns
    -------
    Trial

    Raises
    ------
    ClusterError
        If the cluster cannot be mended, or may not be disturbed.
    """
    client = cluster.client if isinstance(cluster, ChaosCluster) else cluster
    before = set(client.run_on_scheduler(task_names))
    chaos = Chaos(cluster, schedule, allow_foreign)
    fits = _Fits(fit, client)
    started_s = time.monotonic()
    with chaos:
        fits.start()
        chaos.wait()
        fits.enough.set()
        fits.join(limit_s)
    seconds = time.monotonic() - started_s
    ended = not fits.is_alive()
    leftovers: list[str] = []
    if ended and isinstance(cluster, ChaosCluster):
        cluster.mend()
        leftovers = cluster.leftovers(before)
    elif ended:
        leftovers = settled(lambda: _tasks_of_fits(client, before))
    return Trial(
        schedule,
        seconds,
        fits.longest_s if ended else seconds,
        len(fits.models),
        sum(len(model.history_) for model in fits.models),
        bool(fits.models) and all(fingerprint(model) == expected for model in fits.models),
        fits.error if ended else f"a fit had not ended {limit_s:g} s after the schedule",
        tuple(
            {str(name): value for name, value in row.items()}
            for model in fits.models
            for row in model.faults_.to_dict("records")
        ),
        tuple(chaos.injections),
        tuple(leftovers),
    )


def _tasks_of_fits(client: Client, before: Collection[str]) -> list[str]:
    names = set(client.run_on_scheduler(task_names)).difference(before)
    return sorted(f"task {name}" for name in names if "dml-" in name)


def run_trials(
    make_cluster: Callable[[], ChaosCluster],
    schedules: Iterable[Schedule],
    fit: Fit,
    limit_s: float,
) -> Iterator[Trial]:
    """Fit undisturbed, and then under each schedule, on one cluster.

    Parameters
    ----------
    make_cluster : callable
        A cluster that a fit did not end on, or that cannot be mended, is replaced.
    schedules : iterable of Schedule
    fit : callable
        Makes a fitted estimator on the cluster of a client.
    limit_s : float
        How long the last fit may take after its schedule is over.

    Yields
    ------
    Trial
    """
    cluster = make_cluster()
    try:
        expected = fingerprint(fit(cluster.client))
        for schedule in schedules:
            try:
                trial = run_trial(cluster, schedule, fit, expected, limit_s)
            except ClusterError as error:
                trial = Trial(schedule, 0.0, 0.0, 0, 0, False, str(error), (), (), ())
            if trial.error:
                cluster.close()
                cluster = make_cluster()
            yield trial
    finally:
        cluster.close()


def run_foreign_trials(
    client: Client, schedules: Iterable[Schedule], fit: Fit, limit_s: float
) -> Iterator[Trial]:
    """Fit undisturbed, and then under each schedule, on a cluster that others started.

    Nothing is mended but by those who run the cluster; a fit that does not end ends the trials.

    Parameters
    ----------
    client : distributed.Client
    schedules : iterable of Schedule
    fit : callable
        Makes a fitted estimator on the cluster of a client.
    limit_s : float
        How long the last fit may take after its schedule is over.

    Yields
    ------
    Trial
    """
    expected = fingerprint(fit(client))
    for schedule in schedules:
        client.wait_for_workers(1, timeout=limit_s)
        trial = run_trial(client, schedule, fit, expected, limit_s, allow_foreign=True)
        yield trial
        if trial.error:
            return
