"""Checkpoints: what a fit knows between two rounds, kept where its next process finds it.

Each checkpoint is one Zarr store under a place, ``round-000012`` after twelve rounds, that is whole
or does not open; the last two are kept. It holds the solver's state to the same bits, the rows of
the history so far, and what the fit was: version, estimator, arguments, and digests of the data.
There is no pickle in it.

The same call on a new cluster surveys the rows again, compares, evaluates the objective once more
at the checkpoint's last point, and goes on only if all bits are those that were kept: rows in
another order, or another target with the same sums, are found out by that evaluation.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_dml.errors import (
    ClusterError,
    CorruptChunkError,
    DaskDMLError,
    FitError,
    IncompatibleError,
    StoreError,
    StoreExistsError,
    StoreFormatError,
    StoreVersionError,
)
from dask_dml.faults.identity import fingerprint
from dask_dml.faults.timeline import FaultEvent
from dask_dml.objective import Survey
from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation
from dask_dml.solvers import Solver, SolverState, StoredState
from dask_dml.solvers.core import state_arrays, state_reasons
from dask_dml.version import __version__

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=SolverState)

CHECKPOINT_FORMAT = 2
_KEPT = 2
# Share of the time since the last checkpoint that writing one may take.
_COST_SHARE = 0.05
_NAME = re.compile(r"round-(\d{6,})")
# Drafts of a writer that was killed; local folders only.
_LEFTOVER = re.compile(r"\.+round-\d{6,}\..+\.(partial|old)")


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit keeps checkpoints, and how often.

    The same call with the same place goes on from the newest one, on any cluster, and ends with the
    bits of a fit that was never interrupted. Checkpoints stay when the fit has ended; give each fit
    a place of its own.

    Parameters
    ----------
    store : str or Path
        Folder or URL (``s3://bucket/nightly-fit``).
    every_rounds : int, optional
        Write after so many rounds.
    every_s : float, optional
        Write when so many seconds have passed. With both, whichever comes first; with neither,
        after the first round and then whenever writing takes less than 5 % of the time since the
        last one. The last round is always written, and so is the last complete one when the fit
        ends by an error or Ctrl-C.

    Raises
    ------
    TypeError
        If an argument is not of the kind that it should be.
    ValueError
        If a number makes no sense, or the place is empty.

    Examples
    --------
    >>> import dask_dml as dml
    >>> from dask_dml.linear_model import LogisticRegression
    >>> model = LogisticRegression(checkpoint=dml.Checkpoint("nightly-fit", every_s=60.0))
    """

    store: str | Path
    every_rounds: int | None = None
    every_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.store, str | Path):
            raise TypeError(self._wrong("store", "a path or a URL"))
        if not str(self.store).strip():
            raise ValueError(self._wrong("store", "a path or a URL"))
        rounds, seconds = self.every_rounds, self.every_s
        if rounds is not None:
            if isinstance(rounds, bool) or not isinstance(rounds, int):
                raise TypeError(self._wrong("every_rounds", "an integer or None"))
            if rounds < 1:
                raise ValueError(self._wrong("every_rounds", "at least 1"))
        if seconds is not None:
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise TypeError(self._wrong("every_s", "a number or None"))
            if not (math.isfinite(seconds) and seconds > 0.0):
                raise ValueError(self._wrong("every_s", "finite and above 0"))

    def _wrong(self, name: str, expected: str) -> str:
        return f"Checkpoint({name}=...) must be {expected}, got {getattr(self, name)!r}"


class Rhythm:
    """When the next checkpoint is due.

    Parameters
    ----------
    every_rounds, every_s
        See `Checkpoint`.
    n_rounds : int
        Rounds that need not be written any more.
    now_s : float
    """

    def __init__(
        self, every_rounds: int | None, every_s: float | None, n_rounds: int, now_s: float
    ) -> None:
        self._every_rounds = every_rounds
        self._every_s = every_s
        self._n_rounds = n_rounds
        self._last_s = now_s
        self._cost_s: float | None = None

    def is_due(self, n_rounds: int, now_s: float) -> bool:
        """Whether to write after so many rounds."""
        since_s = now_s - self._last_s
        if self._every_rounds is None and self._every_s is None:
            return self._cost_s is None or self._cost_s < _COST_SHARE * since_s
        by_rounds = (
            self._every_rounds is not None and n_rounds - self._n_rounds >= self._every_rounds
        )
        return by_rounds or (self._every_s is not None and since_s >= self._every_s)

    def wrote(self, n_rounds: int, begun_s: float, ended_s: float) -> None:
        """Take note of a checkpoint, or of the attempt at one."""
        self._n_rounds = n_rounds
        self._last_s = ended_s
        self._cost_s = ended_s - begun_s


@dataclass(frozen=True)
class Progress(Generic[S]):
    """What a fit knows after a round.

    Attributes
    ----------
    state : SolverState
    n_rounds : int
        Complete rounds.
    passes : float
        Passes over the full data so far.
    point : ndarray of shape (d,)
        The last point that was evaluated.
    share : float
        Of the rows it was evaluated on.
    value : float
        Objective there.
    gradient : ndarray of shape (d,)
    """

    state: S
    n_rounds: int
    passes: float
    point: Array
    share: float
    value: float
    gradient: Array


class Log(Protocol):
    """The history of a fit as plain rows."""

    rows: list[dict[str, object]]
    faults: list[dict[str, object]]


@dataclass(frozen=True)
class _Found:
    """A checkpoint that was read.

    Attributes
    ----------
    url : str
    record : dict
        Everything that is not an array.
    numbers : dict of str to ndarray
        The solver's state, and point and gradient of the last evaluation.
    evidence : str
        Where it is, whose it is, and which newer ones cannot be read.
    """

    url: str
    record: dict[str, Any]
    numbers: dict[str, Array]
    evidence: str


class CheckpointKeeper:
    """Writes the checkpoints of one run, and finds that of the run before it.

    As a context it sees how the fit ends: by an error, the state after the last complete round is
    written, and the error says where it is.

    Parameters
    ----------
    checkpoint : Checkpoint
    identity : dict
        See `identity`.
    run_id : str
    log : Log
        Its rows are written, and are replaced by those of the run before.
    clock : callable
        Seconds, monotonic.

    Raises
    ------
    IncompatibleError
        If the checkpoint there is that of another estimator, other arguments, blocks or columns.
    StoreVersionError
        If another version wrote it.
    StoreError
        If the place cannot be used.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        identity: dict[str, Any],
        run_id: str,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from dask_dml.data.store import METADATA_FILES, find_place, list_names

        self._identity = identity
        self._run_id = run_id
        self._log = log
        self._clock = clock
        self._url = find_place(checkpoint.store).url.rstrip("/")
        names = list_names(self._url)
        if not set(names).isdisjoint(METADATA_FILES):
            raise StoreExistsError(
                f"checkpoint={self._url!r} is a Zarr store itself, and checkpoints are stores in a "
                "folder: give them a place of their own"
            )
        # Newest last.
        self._names = sorted(filter(_NAME.fullmatch, names), key=_number)
        self._leftovers = [name for name in names if _LEFTOVER.fullmatch(name)]
        self._found = self._newest()
        self._good = [] if self._found is None else [self._found.url.rsplit("/", 1)[1]]
        self._progress: Progress[Any] | None = None
        n_rounds = 0
        if self._found is not None:
            self._check(self._found.record["identity"], identity)
            n_rounds = int(self._found.record["n_rounds"])
        self._written = n_rounds
        self._rhythm = Rhythm(checkpoint.every_rounds, checkpoint.every_s, n_rounds, clock())

    # -- going on ---------------------------------------------------------------------------

    def check_data(self, survey: Survey) -> None:
        """Compare what the survey found with what the checkpoint says.

        Raises
        ------
        IncompatibleError
            If the data is not that of the checkpoint; the message names what differs.
        """
        data = fingerprint(survey)
        if self._found is not None:
            self._check(self._found.record["identity"], data)
        self._identity = {**self._identity, **data}

    def restored(self, solver: Solver[S]) -> Progress[S] | None:
        """What the run before knew when it wrote the checkpoint; None where there is none."""
        found = self._found
        if found is None:
            return None
        # Late, since workers import this file and have no use for its 65 MB.
        import pandas as pd

        record = found.record
        self._log.rows[:] = record["history"]
        self._log.faults[:] = [
            {**row, "when": pd.Timestamp(row["when"])} for row in record["faults"]
        ]
        arrays = {
            name.removeprefix("state/"): array
            for name, array in found.numbers.items()
            if name.startswith("state/")
        }
        return Progress(
            solver.restore(StoredState(arrays, record["reasons"])),
            int(record["n_rounds"]),
            float(record["passes"]),
            found.numbers["last/point"],
            float(record["share"]),
            float(record["value"]),
            found.numbers["last/gradient"],
        )

    def verified(
        self, progress: Progress[Any], evaluation: Evaluation, time_s: float, cost_s: float
    ) -> FaultEvent:
        """Compare the objective at the checkpoint's last point, and tell that the fit goes on.

        Parameters
        ----------
        progress : Progress
            That of the checkpoint.
        evaluation : Evaluation
            At its point, on the data of this run.
        time_s : float
            Now, seconds since the epoch.
        cost_s : float
            Seconds that the survey and this evaluation took.

        Raises
        ------
        IncompatibleError
            If it has other bits.
        """
        same = evaluation.value == progress.value and np.array_equal(
            evaluation.gradient, progress.gradient
        )
        if not same:
            apart = float(np.abs(evaluation.gradient - progress.gradient).max())
            raise IncompatibleError(
                self._other_fit(
                    f"the objective at its last point is {progress.value!r} there and "
                    f"{evaluation.value!r} here, and gradients are up to {apart:.1e} apart. Sums "
                    "over the columns agree, so that rows, targets or weights are in another order"
                )
            )
        evidence = "" if self._found is None else self._found.evidence
        self._found = None  # its numbers may be many
        action = f"went on after round {progress.n_rounds - 1}"
        if progress.state.reason:
            action = f"nothing left to do: {progress.state.reason} in round {progress.n_rounds - 1}"
        return FaultEvent(
            time_s, "checkpoint-resumed", "", evidence, action, cost_s, run=self._run_id
        )

    # -- writing ----------------------------------------------------------------------------

    def note(self, progress: Progress[Any]) -> None:
        """Take note of a round that is complete."""
        self._progress = progress

    def write_if_due(self) -> None:
        """Write the last complete round, if it is time or the solver has stopped.

        Raises
        ------
        StoreError
            If nothing can be written at all. What fails after a first success is a warning.
        """
        progress = self._progress
        if progress is None or progress.n_rounds <= self._written:
            return
        if progress.state.reason or self._rhythm.is_due(progress.n_rounds, self._clock()):
            self._write(progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            return
        progress = self._progress
        is_new = progress is not None and progress.n_rounds > self._written
        if progress is not None and is_new and not isinstance(error, StoreError):
            try:
                self._write(progress)
            except StoreError as failure:
                error.add_note(str(failure))
        is_interrupted = isinstance(error, FitError | ClusterError)
        if not self._good or (isinstance(error, DaskDMLError) and not is_interrupted):
            return
        hint = (
            f"Its state after {self._written} rounds is kept in {self._path(self._good[-1])}: the "
            "same call goes on from there, on any cluster"
        )
        if is_interrupted:
            error.args = (f"{str(error).rstrip('.')}. {hint}", *error.args[1:])
        else:
            error.add_note(hint)

    def _write(self, progress: Progress[Any]) -> None:
        begun_s = self._clock()
        try:
            self._save(progress)
        except StoreError as error:
            if not self._good:
                raise
            warnings.warn(
                f"{error}. The fit goes on; the last checkpoint is that of round "
                f"{self._written - 1}",
                RuntimeWarning,
                stacklevel=2,
            )
        self._rhythm.wrote(progress.n_rounds, begun_s, self._clock())

    def _save(self, progress: Progress[Any]) -> None:
        from dask_dml.data.store import remove_store, save_arrays

        arrays, attributes = self._content(progress)
        name = f"round-{progress.n_rounds:06d}"
        try:
            if name in self._names:  # one that could not be read
                remove_store(self._path(name))
                self._names.remove(name)
            save_arrays(self._path(name), arrays, attributes, overwrite=True)
            self._names.append(name)
            self._good = [*self._good, name][-_KEPT:]
            self._written = progress.n_rounds
            for old in [name for name in self._names if name not in self._good]:
                remove_store(self._path(old))
                self._names.remove(old)
            while self._leftovers:
                remove_store(self._path(self._leftovers.pop()))
        except Exception as error:
            raise StoreError(
                f"run {self._run_id} cannot write the checkpoint {name} to {self._url}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _content(self, progress: Progress[Any]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Two arrays, whatever the solver: each object of a bucket costs a request.

        All numbers of the state in one, and everything else as JSON in the other, which so is
        checked for flipped bytes as well.
        """
        numbers = {f"state/{name}": a for name, a in state_arrays(progress.state).items()}
        numbers |= {"last/point": progress.point, "last/gradient": progress.gradient}
        record = {
            "numbers": [[name, a.dtype.str, a.shape] for name, a in numbers.items()],
            "reasons": state_reasons(progress.state),
            "share": progress.share,
            "value": progress.value,
            "n_rounds": progress.n_rounds,
            "passes": progress.passes,
            "run": self._run_id,
            "identity": self._identity,
            "history": self._log.rows,
            "faults": [{**row, "when": str(row["when"])} for row in self._log.faults],
        }
        text = json.dumps(record, default=_plain_number)
        arrays = {
            "numbers": np.concatenate(
                [np.asarray(a, np.float64).ravel() for a in numbers.values()]
            ),
            "record": np.frombuffer(text.encode(), dtype=np.uint8),
        }
        attributes = {
            "kind": "checkpoint",
            "format": CHECKPOINT_FORMAT,
            "version": __version__,
            "estimator": self._identity["estimator"],
            "n_rounds": progress.n_rounds,
        }
        return arrays, attributes

    # -- reading ----------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._url}/{name}"

    def _newest(self) -> _Found | None:
        """The newest checkpoint that is whole."""
        from dask_dml.data.store import load_arrays

        passed_over: list[str] = []
        for name in reversed(self._names):
            url = self._path(name)
            try:
                arrays, attributes = load_arrays(url)
            except StoreVersionError as error:
                raise StoreVersionError(f"{error}; or give checkpoint= another place") from error
            except (StoreFormatError, CorruptChunkError) as error:
                logger.warning("passed over a checkpoint: %s", error)
                passed_over.append(name)
                continue
            if attributes.get("kind") != "checkpoint":
                raise StoreFormatError(
                    f"{url} holds a {attributes.get('kind')!r} and not a checkpoint: give "
                    "checkpoint= another place"
                )
            found = attributes["version"], attributes["format"]
            if found != (__version__, CHECKPOINT_FORMAT):
                raise StoreVersionError(
                    f"the checkpoint {url} was written by dask_dml {found[0]} (format {found[1]}), "
                    f"and this is {__version__} (format {CHECKPOINT_FORMAT}), whose sums may have "
                    "other bits: go on with that version, give checkpoint= another place, or "
                    f"remove {self._url}"
                )
            record = json.loads(arrays["record"].tobytes())
            evidence = f"{url} of run {record['run']}"
            if passed_over:
                evidence += f"; passed over, since incomplete: {', '.join(passed_over)}"
            return _Found(url, record, _unpacked(arrays["numbers"], record["numbers"]), evidence)
        return None

    def _check(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        differing = [name for name, value in here.items() if there.get(name) != value]
        if not differing:
            return
        said = "; ".join(
            f"{name} is {there.get(name)!r} there and {here[name]!r} here" for name in differing[:5]
        )
        if all(name.startswith("sum") for name in differing):
            said += " (if it is the same data: another kind of CPU gives sums other last bits)"
        raise IncompatibleError(self._other_fit(said))

    def _other_fit(self, difference: str) -> str:
        return (
            f"the checkpoint in {self._url} is that of another fit: {difference}. Give checkpoint= "
            "another place, or remove that one if nobody needs it"
        )


def _number(name: str) -> int:
    return int(name.removeprefix("round-"))


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be written to a checkpoint")


def _unpacked(numbers: Array, layout: Sequence[tuple[str, str, list[int]]]) -> dict[str, Array]:
    """Arrays by name, from all their values one after the other."""
    arrays, start = {}, 0
    for name, dtype, shape in layout:
        stop = start + math.prod(shape)
        arrays[name] = numbers[start:stop].reshape(shape).astype(dtype)
        start = stop
    return arrays
