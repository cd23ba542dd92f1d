"""The executor of a Dask cluster: one future a shard, blocks that stay where they are.

Blocks that fit in the workers' memory are placed once and stay; a round sends the request to them
and gets sums back. Blocks that do not fit are read again every pass, each by the worker that needs
it. What Dask can make again after the loss of a worker, Dask makes again; between rounds the blocks
are placed anew when workers have left or joined.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from dask.delayed import Delayed
from distributed import Client, Future, KilledWorker, futures_of, get_worker, wait

from dask_dml.data.source import ArraySource, BlockLoader, DaskSource, RawBlock, Source
from dask_dml.errors import (
    ClusterError,
    DaskDMLError,
    FitError,
    NoWorkersError,
    WorkerPackageError,
)
from dask_dml.faults import FaultEvent
from dask_dml.objective import Request, Statistics, Survey, TargetKind, TreeSum
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime.core import RoundResult, Stopwatch
from dask_dml.runtime.placement import place, shards, shards_a_thread
from dask_dml.runtime.shard import (
    Contribution,
    EncodedBlock,
    RoundWork,
    ShardResult,
    SurveyWork,
    Work,
    encoded,
    read_ahead,
    run_shard,
)
from dask_dml.version import __version__

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Contribution)

# A worker, and the blocks that one task of its does.
Shard = tuple[str, tuple[int, ...]]

# Share of the workers' memory up to which blocks stay there; Dask spills to disk above 0.6.
RESIDENT_SHARE = 0.5
# A request larger than this goes to the workers once, and not with each task.
_INLINE_BYTES = 64 * 1024


@dataclass(frozen=True)
class _Held:
    """Futures of one block on the cluster."""

    X: Future[Any]
    y: Future[Any]
    sample_weight: Future[Any] | None


class ClusterExecutor:
    """Evaluates blocks as futures on a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        Synchronous, with at least one worker.
    source : Source
    run_id : str, optional
        Goes into the keys of all tasks.

    Raises
    ------
    NoWorkersError
        If the cluster has no worker.
    WorkerPackageError
        If dask_dml is missing on a worker, or is of another version there.
    ClusterError
        If the client is asynchronous.
    """

    def __init__(self, client: Client, source: Source, run_id: str | None = None) -> None:
        if client.asynchronous:
            raise ClusterError(
                "fit needs a synchronous client and got an asynchronous one: "
                "use Client(..., asynchronous=False)"
            )
        self._client = client
        self._source = source
        self._run_id = run_id or new_run_id()
        self._block_nbytes = [max(n, 1) * source.row_nbytes for n in source.row_chunks]
        self._refused: set[str] = set()
        self._threads = self._workers()
        if not self._threads:
            raise NoWorkersError(
                f"the cluster at {_address(client)} has no workers: start some "
                "(cluster.scale(2)), or wait for them with client.wait_for_workers(1)"
            )
        if misfits := self._misfits(self._threads):
            raise WorkerPackageError(_misfit_message(misfits))
        self._speed: dict[str, float] = {}
        self._rounds_s: dict[str, list[float]] = {}
        self._n_rounds = 0
        self._encoder = TargetEncoder()
        self._held: list[_Held] = []
        self._own: dict[Hashable, Future[Any]] = {}
        self._targets: list[Future[Any]] = []
        self._loaders: list[BlockLoader] = []
        self._placed: dict[int, str] = {}
        self._resident = self._fits_in_memory()
        if self._resident:
            try:
                self._hold()
            except BaseException:
                self.close()
                raise
        else:
            self._loaders = source.loaders()
            self._place({})

    @property
    def is_resident(self) -> bool:
        """Whether blocks stay in the workers' memory; otherwise every pass reads them again."""
        return self._resident

    @property
    def placement(self) -> dict[int, str]:
        """Worker of each block."""
        return dict(self._placed)

    def survey(self, kind: TargetKind, sample_share: float = 0.0) -> RoundResult[Survey]:
        """Survey of all blocks, which are loaded now if they stay."""
        work = SurveyWork(kind, self._source.feature_names, sample_share)
        return self._evaluate(work, "survey")

    def encode(self, encoder: TargetEncoder) -> None:
        """Prepare targets and weights on the workers that hold the blocks."""
        self._encoder = encoder
        if not self._resident:
            return
        self._targets = [
            self._keep(encoder.encode, held.y, held.sample_weight, name="target", block=block)
            for block, held in enumerate(self._held)
        ]

    def evaluate(self, request: Request) -> RoundResult[Statistics]:
        """Sums over all blocks."""
        return self._evaluate(RoundWork(request), "hessian" if request.order == 2 else "gradient")

    def close(self) -> None:
        """Let go of all futures; what others hold stays."""
        # Not left to the collector: a traceback that somebody keeps would keep them.
        for future in self._own.values():
            future.release()
        self._own, self._targets, self._held = {}, [], []

    # -- cluster ----------------------------------------------------------------------------

    def _workers(self) -> dict[str, int]:
        """Threads of each worker, in a fixed order."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        return {
            address: int(worker["nthreads"])
            for address, worker in sorted(workers.items())
            if worker.get("status", "running") in ("init", "running", "paused")
            and address not in self._refused
        }

    def _misfits(self, workers: Iterable[str]) -> dict[str, str]:
        """Workers without this version of the package, and what they have."""
        # Not a function of ours: where the package is missing, that could not be unpickled.
        code = "__import__('dask_dml').__version__"
        versions = self._client.run(eval, code, workers=list(workers), on_error="return")
        found = {
            worker: f"missing ({version})" if isinstance(version, ImportError) else version
            for worker, version in versions.items()
        }
        # Other errors are those of a worker that is leaving.
        return {
            worker: version
            for worker, version in found.items()
            if version != __version__ and isinstance(version, str)
        }

    def _fits_in_memory(self) -> bool:
        if isinstance(self._source, DaskSource) and self._source.is_on_cluster:
            return True
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        limits = [worker["memory_limit"] for worker in workers]
        need, have = sum(self._block_nbytes), RESIDENT_SHARE * sum(limits)
        if not all(limits) or need <= have:
            return True
        if isinstance(self._source, ArraySource):
            raise ClusterError(
                f"X has {need / 1e9:.3g} GB in this process, and blocks may take {have / 1e9:.3g} "
                "GB of the workers' memory: write it with dask_dml.write_dataset and fit the "
                "dataset, which is read in parts, or fit here with Runtime(client='local')"
            )
        return False

    def _key(self, kind: str, *numbers: int) -> tuple[str | int, ...]:
        return (f"dml-{kind}-{self._run_id}", *numbers)

    # -- blocks -----------------------------------------------------------------------------

    def _hold(self) -> None:
        """Have every block made on its worker, or find it where it already is."""
        if not isinstance(self._source, DaskSource):
            self._place({})
            self._held = [
                self._send(block, loader()) for block, loader in enumerate(self._source.loaders())
            ]
            return
        parts = self._source.parts()
        futures = {future.key: future for future in futures_of(self._source.arrays)}
        self._check_here(futures.values())
        found = {
            block: futures[part[0].key]
            for block, part in enumerate(parts)
            if part[0].key in futures
        }
        graph = dict(parts[0][0].__dask_graph__())
        origins = {
            block: origin
            for block, part in enumerate(parts)
            if (origin := _made_from(graph, part[0].key, futures)) is not None
        }
        self._place(self._holders(origins))
        missing: dict[str, list[Delayed]] = {}
        for block, worker in self._placed.items():
            absent = [part for part in parts[block] if part.key not in futures]
            missing.setdefault(worker, []).extend(absent)
        for worker, absent in missing.items():
            if absent:
                made = self._client.persist(absent, workers=[worker], allow_other_workers=True)
                self._own.update((future.key, future) for future in futures_of(made))
        futures |= self._own
        self._held = [
            _Held(*(futures[part.key] for part in block), *[None] * (3 - len(block)))
            for block in parts
        ]
        self._move_to_place(found)

    def _check_here(self, futures: Iterable[Future[Any]]) -> None:
        here = _address(self._client)
        others = {future.client for future in futures} - {self._client}
        elsewhere = sorted({_address(client) for client in others} - {here})
        if elsewhere:
            raise ClusterError(
                f"the data is held by the cluster at {', '.join(elsewhere)} and the fit runs at "
                f"{here}: give Runtime(client=...) the client that the data was persisted with"
            )

    def _send(self, block: int, raw: RawBlock) -> _Held:
        """Send a block of this process as the argument of a task, which Dask can run again."""

        def send(name: str, value: Any) -> Future[Any]:
            return self._keep(_itself, value, name=f"send-{name}", block=block)

        weight = raw.sample_weight
        return _Held(
            send("X", raw.X), send("y", raw.y), None if weight is None else send("weight", weight)
        )

    def _keep(
        self, function: Callable[..., Any], *arguments: Any, name: str, block: int
    ) -> Future[Any]:
        """Have something made on a block's worker that stays until `close`."""
        future: Future[Any] = self._client.submit(
            function,
            *arguments,
            key=self._key(name, block, self._n_rounds),
            workers=[self._placed[block]],
            allow_other_workers=True,
            pure=False,
        )
        self._own[future.key] = future
        return future

    def _holders(self, blocks: Mapping[int, Future[Any]]) -> dict[int, Sequence[str]]:
        """Workers on which blocks are, once they have been made."""
        if not blocks:
            return {}
        futures = list(blocks.values())
        # One that was lost for good fails the next round, which says which it is.
        with suppress(CancelledError):
            wait(futures)
        who_has = self._client.who_has(futures)
        return {block: who_has.get(future.key, ()) for block, future in blocks.items()}

    def _place(self, holders: dict[int, Sequence[str]]) -> None:
        known = [speed for worker, speed in self._speed.items() if worker in self._threads]
        typical = statistics.median(known) if known else 1.0
        capacity = {
            worker: n_threads * min(max(self._speed.get(worker, typical) / typical, 0.5), 2.0)
            for worker, n_threads in self._threads.items()
        }
        self._placed = place(self._block_nbytes, capacity, holders)

    def _cut(self) -> list[Shard]:
        """The shards of the next round: worker and blocks of each."""
        loads = dict.fromkeys(self._placed.values(), 0.0)
        for block, worker in self._placed.items():
            loads[worker] += self._block_nbytes[block]
        per_worker = {}
        for worker, load in loads.items():
            n_threads = self._threads.get(worker, 1)
            speed = self._speed.get(worker, math.inf)
            per_worker[worker] = n_threads * shards_a_thread(load / (speed * n_threads))
        return shards(self._placed, self._block_nbytes, per_worker)

    def _move_to_place(self, blocks: Mapping[int, Future[Any]]) -> int:
        """Copy blocks to the workers they were given to; the number that had to move."""
        moved = 0
        for block, where in self._holders(blocks).items():
            if self._placed[block] in where:
                continue
            moved += 1
            held = self._held[block]
            X = self._move("X", block, held.X)
            self._held[block] = _Held(X, held.y, held.sample_weight)
            if self._targets:
                self._targets[block] = self._move("target", block, self._targets[block])
        return moved

    def _move(self, name: str, block: int, future: Future[Any]) -> Future[Any]:
        copy = self._keep(_itself, future, name=f"move-{name}", block=block)
        # The scheduler keeps how it was made; the copy alone stays in memory.
        self._own.pop(future.key, None)
        return copy

    # -- rounds -----------------------------------------------------------------------------

    def _evaluate(self, work: Work[Any, C], kind: str) -> RoundResult[C]:
        watch = Stopwatch()
        number = self._n_rounds - 1
        self._n_rounds += 1
        cut = self._cut()
        futures: list[Future[Any]] = []
        with self._explained(number, cut, futures):
            request: Any = work
            if work.nbytes > _INLINE_BYTES:
                request = self._client.submit(
                    _itself, work, key=self._key("request", number), pure=False
                )
            for shard, (worker, numbers) in enumerate(cut):
                future = self._client.submit(
                    _run[kind == "survey", self._resident],
                    len(self._block_nbytes),
                    numbers,
                    request,
                    *self._shard_arguments(kind, numbers),
                    key=self._key(kind, number, shard),
                    workers=[worker],
                    allow_other_workers=True,
                    pure=False,
                )
                futures.append(future)
            results: list[ShardResult[C]] = list(self._client.gather(futures))
        total: TreeSum[C] = TreeSum(len(self._block_nbytes))
        busy_s: dict[str, float] = {}
        done: dict[str, float] = {}
        for (_, numbers), result in zip(cut, results, strict=True):
            total.update(result.nodes)
            worker = result.worker
            busy_s[worker] = busy_s.get(worker, 0.0) + result.busy_s
            nbytes = sum(self._block_nbytes[block] for block in numbers)
            done[worker] = done.get(worker, 0.0) + nbytes
        self._speed |= {worker: done[worker] / max(busy_s[worker], 1e-9) for worker in done}
        nbytes = work.nbytes * len(futures) + sum(result.nbytes for result in results)
        seconds = watch.seconds
        with self._explained(number, cut, []):
            changes = self._adapt(seconds, kind, cut)
        threads = self._threads
        busy_s = {worker: busy / threads.get(worker, 1) for worker, busy in busy_s.items()}
        return RoundResult(total.value, seconds, busy_s, nbytes, changes)

    def _shard_arguments(self, kind: str, numbers: Sequence[int]) -> tuple[Any, ...]:
        if not self._resident:
            loaders = [self._loaders[block] for block in numbers]
            return (loaders,) if kind == "survey" else (loaders, self._encoder)
        held = [self._held[block] for block in numbers]
        X = [block.X for block in held]
        if kind == "survey":
            return X, [block.y for block in held], [block.sample_weight for block in held]
        return X, [self._targets[block] for block in numbers]

    @contextmanager
    def _explained(
        self, number: int, cut: Sequence[Shard], futures: list[Future[Any]]
    ) -> Iterator[None]:
        """Cancel the futures if something goes wrong, and say which run, round and blocks."""
        try:
            yield
        except DaskDMLError:
            self._cancel(futures)
            raise
        except (Exception, CancelledError) as error:
            blocks = tuple(
                block
                for future, (_, numbers) in zip(futures, cut, strict=False)
                if future.status in ("error", "lost", "cancelled")
                for block in numbers
            )
            self._cancel(futures)
            what = "the survey" if number < 0 else f"round {number}"
            which = f"blocks {_some(blocks)} of {len(self._block_nbytes)} failed with "
            lost = (
                ". The cluster was restarted, the client closed, or the data is gone: what was "
                "scattered to a worker that left cannot be made again; persist it from its source"
            )
            raise FitError(
                f"{what} of run {self._run_id} could not be finished: {which if blocks else ''}"
                f"{type(error).__name__}: {error}"
                f"{lost if isinstance(error, CancelledError) else ''}",
                self._run_id,
                number,
                blocks,
                error.last_worker.address if isinstance(error, KilledWorker) else None,
            ) from error
        except BaseException:
            # Ctrl-C: leave nothing running on a cluster that is to be used again.
            self._cancel(futures)
            raise

    def _cancel(self, futures: list[Future[Any]]) -> None:
        if self._client.status == "running":
            self._client.cancel(futures)

    def _adapt(self, seconds: float, kind: str, cut: Sequence[Shard]) -> tuple[FaultEvent, ...]:
        """Notice workers that left or joined, and place the blocks anew."""
        earlier = self._rounds_s.setdefault(kind, [])
        extra_s = max(seconds - statistics.median(earlier), 0.0) if earlier else 0.0
        now = self._workers()
        if not now or now.keys() == self._threads.keys():
            earlier.append(seconds)
            return ()
        lost = [worker for worker in self._threads if worker not in now]
        joined = [worker for worker in now if worker not in self._threads]
        misfits = self._misfits(joined)
        self._refused |= misfits.keys()
        before = self._placed
        made_again = {worker: self._made_again(worker, cut) for worker in lost}
        self._threads = {worker: n for worker, n in now.items() if worker not in misfits}
        moved = self._replace()
        changes = []
        for worker in lost:
            n_blocks = sum(1 for at in before.values() if at == worker)
            evidence, n_again = made_again[worker]
            action = f"its {n_blocks} blocks placed anew; workers now: {len(self._threads)}"
            changes.append(
                FaultEvent(time.time(), "worker-lost", worker, evidence, action, extra_s, n_again)
            )
        for worker in joined:
            n_blocks = sum(1 for at in self._placed.values() if at == worker)
            action = f"{n_blocks} blocks given to it ({moved} moved in all)"
            if worker in misfits:
                action = f"given nothing: its dask_dml is {misfits[worker]}, not {__version__}"
            changes.append(
                FaultEvent(
                    time.time(), "worker-joined", worker, "new with the scheduler", action, 0.0, 0
                )
            )
        for change in changes:
            logger.info("%s %s: %s", change.kind, change.worker, change.action)
        return tuple(changes)

    def _made_again(self, worker: str, cut: Sequence[Shard]) -> tuple[str, int]:
        """How the scheduler saw a worker leave, and how many blocks went with it."""
        removals = [
            event
            for _, event in self._client.get_events(worker)
            if isinstance(event, Mapping) and event.get("action") == "remove-worker"
        ]
        if not removals:
            return "not among the scheduler's running workers any more", 0
        if self._resident:
            lost = set(removals[-1]["lost-computed-tasks"])
            n_again = sum(1 for held in self._held if held.X.key in lost)
        else:
            running = {key[2] for key in removals[-1]["processing-tasks"] if self._is_own(key)}
            n_again = sum(len(cut[shard][1]) for shard in running)
        if removals[-1]["expected"]:
            return "retired or closed on request", n_again
        return "connection to the scheduler lost without notice", n_again

    def _is_own(self, key: Any) -> bool:
        return isinstance(key, tuple) and len(key) == 3 and self._run_id in str(key[0])

    def _replace(self) -> int:
        if not self._resident:
            self._place({})
            return 0
        blocks = {block: held.X for block, held in enumerate(self._held)}
        self._place(self._holders(blocks))
        return self._move_to_place(blocks)


def new_run_id() -> str:
    """Make an identifier that no other run has."""
    return uuid.uuid4().hex[:12]


def _address(client: Client) -> str:
    return str(client.scheduler.address if client.scheduler else "a client that is closed")


def _made_from(
    graph: Mapping[Any, Any], key: Any, futures: Mapping[Any, Future[Any]]
) -> Future[Any] | None:
    """What is already on the cluster of that from which something is made, or itself."""
    pending = [key]
    # A look at the nearest tasks; whatever is made from more than that is shuffled anyway.
    for _ in range(64):
        if not pending:
            break
        key = pending.pop()
        if key in futures:
            return futures[key]
        pending.extend(getattr(graph.get(key), "dependencies", ()))
    return None


def _misfit_message(misfits: Mapping[str, str]) -> str:
    listed = "; ".join(f"{worker}: {found}" for worker, found in sorted(misfits.items()))
    return (
        f"the workers need dask_dml {__version__}, as here, and have: {listed}. Install it "
        f"where they run (pip install dask-dml=={__version__}, in their image or by "
        "client.register_plugin(distributed.PipInstall([...])))"
    )


def _some(blocks: Sequence[int]) -> str:
    shown = ", ".join(str(block) for block in blocks[:8])
    return shown + (f" and {len(blocks) - 8} more" if len(blocks) > 8 else "")


def _itself(value: Any) -> Any:
    return value


def _survey_resident(
    n_blocks: int,
    numbers: Sequence[int],
    work: SurveyWork,
    X: list[Any],
    y: list[Any],
    sample_weight: list[Any],
) -> ShardResult[Survey]:
    blocks = map(RawBlock, X, y, sample_weight)
    return run_shard(n_blocks, numbers, work, blocks, get_worker().address)


def _round_resident(
    n_blocks: int, numbers: Sequence[int], work: RoundWork, X: list[Any], targets: list[Any]
) -> ShardResult[Statistics]:
    blocks = (EncodedBlock(x, *target) for x, target in zip(X, targets, strict=True))
    return run_shard(n_blocks, numbers, work, blocks, get_worker().address)


def _survey_streamed(
    n_blocks: int, numbers: Sequence[int], work: SurveyWork, loaders: list[BlockLoader]
) -> ShardResult[Survey]:
    return run_shard(n_blocks, numbers, work, read_ahead(loaders), get_worker().address)


def _round_streamed(
    n_blocks: int,
    numbers: Sequence[int],
    work: RoundWork,
    loaders: list[BlockLoader],
    encoder: TargetEncoder,
) -> ShardResult[Statistics]:
    blocks = encoded(read_ahead(loaders), encoder)
    return run_shard(n_blocks, numbers, work, blocks, get_worker().address)


# By whether it is the survey, and whether blocks stay on the workers.
_run: dict[tuple[bool, bool], Callable[..., ShardResult[Any]]] = {
    (True, True): _survey_resident,
    (True, False): _survey_streamed,
    (False, True): _round_resident,
    (False, False): _round_streamed,
}
