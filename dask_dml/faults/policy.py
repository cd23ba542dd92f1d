"""How a fit deals with workers that fall silent, die or leave: its thresholds in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dask_dml.faults.prediction import Predictor


class Trainable(Protocol):
    """What a predictor can be fitted on: `dask_dml.faults.training.Records`."""

    def train(self) -> Predictor:
        """Fit a predictor."""
        ...


@dataclass(frozen=True)
class FaultPolicy:
    """Detectors and their thresholds, retries, speculation and replicas.

    A silent worker is first *suspect*: it is given nothing more, and its work is done by others as
    well. It is *dead*, and evicted, when its process is seen to be stopped or gone, or when nobody
    can reach it for long. A worker that is seen to be busy (as one that holds the GIL), swapping or
    in a debugger stays suspect until it speaks again.

    Parameters
    ----------
    monitor : bool
        Watch the workers with a plugin on the scheduler. Without it the fit goes on with what Dask
        itself notices.
    heartbeat_s : float
        Interval of the workers' heartbeats; longer on fleets of more than 250 workers.
    phi : float
        Threshold of the phi-accrual detector.
    pause_s : float
        Silence that is acceptable on top of the usual interval.
    probe_s : float
        How long an answer to a probe may take.
    indirect_probes : int
        Workers through which a silent worker is probed as well.
    confirm_s : float
        Silence after which a worker whose process is seen stopped is dead.
    unreachable_s : float
        Silence after which a worker is dead that nobody can reach, its nanny neither.
    loss_probability : float
        Predicted probability of loss within the next 30 s from which a worker is drained.
    predictor : Predictor, optional
        Another model than the one that comes with the package, such as one that was fitted on a
        site's own records.
    restart : bool
        Have the nanny of an evicted worker start a new one.
    speculation_quorum : float
        Share of a round's blocks that must be done before stragglers are duplicated.
    speculation_factor : float
        How many times the median a task must take to be a straggler; and longer by as much as
        its blocks take to come to it and to another worker, where blocks stay.
    retries : int
        How often the work of a block is submitted anew in one round because workers died or
        failed to answer.
    poison_deaths : int
        Workers that die under a block, one after the other, before the block is held to blame.
    replicas : int
        Copies of data that nothing can make again (scattered by the client); and how many replicas
        the parameter holder has besides its host.
    wait_for_workers_s : float
        How long a fit waits when all workers are gone.

    Raises
    ------
    TypeError
        If a value is not of the kind that it should be.
    ValueError
        If a threshold makes no sense.

    References
    ----------
    Hayashibara et al. 2004 (phi accrual); Das, Gupta & Motivala 2002 (SWIM).
    """

    monitor: bool = True
    heartbeat_s: float = 0.5
    phi: float = 8.0
    pause_s: float = 1.5
    probe_s: float = 1.0
    indirect_probes: int = 3
    confirm_s: float = 3.0
    unreachable_s: float = 15.0
    loss_probability: float = 0.9
    predictor: Predictor | None = None
    restart: bool = True
    speculation_quorum: float = 0.75
    speculation_factor: float = 1.5
    retries: int = 10
    poison_deaths: int = 3
    replicas: int = 1
    wait_for_workers_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("monitor", "restart"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(self._wrong(name, "True or False"))
        for name in (
            "heartbeat_s", "phi", "pause_s", "probe_s", "confirm_s", "unreachable_s",
            "wait_for_workers_s",
        ):  # fmt: skip
            self._check_number(name, 0.0, math.inf)
        self._check_number("loss_probability", 0.0, 1.0)
        self._check_number("speculation_quorum", 0.0, 1.0)
        self._check_number("speculation_factor", 1.0, math.inf)
        for name, least in (
            ("indirect_probes", 0), ("retries", 0), ("poison_deaths", 1), ("replicas", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(self._wrong(name, "an integer"))
            if value < least:
                raise ValueError(self._wrong(name, f"at least {least}"))
        if self.confirm_s > self.unreachable_s:
            raise ValueError(
                f"FaultPolicy(confirm_s={self.confirm_s}, unreachable_s={self.unreachable_s}): a "
                "worker that is seen stopped is surer to be dead than one that nobody can reach: "
                "make confirm_s the smaller one"
            )
        if self.heartbeat_s >= self.confirm_s:
            raise ValueError(
                f"FaultPolicy(heartbeat_s={self.heartbeat_s}, confirm_s={self.confirm_s}): silence "
                "cannot be told from the usual interval, so that heartbeat_s must be smaller"
            )
        if self.predictor is not None and not callable(
            getattr(self.predictor, "probabilities", None)
        ):
            raise TypeError(self._wrong("predictor", "a dask_dml.faults.prediction.Predictor"))

    def _check_number(self, name: str, above: float, below: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(self._wrong(name, "a number"))
        if not (math.isfinite(value) and above < value <= below):
            limits = f"above {above:g}" + ("" if math.isinf(below) else f" and at most {below:g}")
            raise ValueError(self._wrong(name, f"finite, {limits}"))

    def _wrong(self, name: str, expected: str) -> str:
        return f"FaultPolicy({name}=...) must be {expected}, got {getattr(self, name)!r}"

    def retrained(self, records: Trainable) -> FaultPolicy:
        """The same policy with a predictor that is fitted on a site's own records.

        Parameters
        ----------
        records : dask_dml.faults.training.Records

        Raises
        ------
        DataError
            If the records hold no loss of a worker, or nothing else.
        """
        return replace(self, predictor=records.train())

    def most_patient(self, other: FaultPolicy) -> FaultPolicy:
        """Combine the policies of two fits on one cluster: no worker goes sooner than either says.

        Of each threshold the more patient one is taken; the predictor is that of this policy, if
        it has one.
        """
        patient = {
            field.name: max(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
            if field.name not in ("monitor", "restart", "predictor", "heartbeat_s")
        }
        return FaultPolicy(
            monitor=self.monitor or other.monitor,
            heartbeat_s=min(self.heartbeat_s, other.heartbeat_s),
            predictor=self.predictor or other.predictor,
            restart=self.restart and other.restart,
            **patient,
        )
