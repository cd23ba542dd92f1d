"""The executor of a Dask cluster: blocks that stay where they are, rounds by call or by futures.

Blocks that fit in the workers' memory are placed once and stay; a round sends the request to them
and gets sums back, by one call where it is short, and by one future a shard otherwise. Where not
all fit, some stay, and the others are read again every pass, each by the worker that needs it. A
round's ledger says what is to be attempted once more; between rounds blocks are placed anew when
workers have left, joined, fallen silent or become slow.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from distributed import Client

from dask_dml.data.source import ArraySource, DaskSource, Source
from dask_dml.errors import (
    ClusterError,
    DaskDMLError,
    HolderLostError,
    StaleRunError,
    WorkerPackageError,
)
from dask_dml.faults import FaultEvent, FaultPolicy
from dask_dml.objective import Request, Statistics, Survey, TargetKind, TreeSum
from dask_dml.objective.folds import FoldWiseRequest, FoldWiseSums
from dask_dml.objective.survey import Encoder
from dask_dml.runtime.blocks import Blocks, HeldBlocks, Holders, StreamedBlocks
from dask_dml.runtime.calls import Calls
from dask_dml.runtime.core import RoundResult, Stopwatch
from dask_dml.runtime.fault_log import FaultLog
from dask_dml.runtime.holder import HeldRequest, HeldWork, HolderClient
from dask_dml.runtime.keys import new_run_id, run_key
from dask_dml.runtime.monitor import Monitor
from dask_dml.runtime.placement import place, shards
from dask_dml.runtime.relay import Answer
from dask_dml.runtime.roster import Roster
from dask_dml.runtime.rounds import Gathered, Round, Run, Shard, Share
from dask_dml.runtime.shard import READ_AHEAD, FoldWork, RoundWork, SurveyWork
from dask_dml.runtime.speeds import USUAL_ROUNDS, Speeds
from dask_dml.runtime.waiting import sending_promptly
from dask_dml.version import __version__

F = TypeVar("F", bound=FoldWiseSums)

logger = logging.getLogger(__name__)

# Share of the workers' memory up to which blocks stay there; Dask spills to disk above 0.6.
RESIDENT_SHARE = 0.5
# What a worker takes itself, with this package and its compiled sums loaded.
_PROCESS_BYTES = 450_000_000
# Rounds with larger parameters or sums than this go through the parameter holder.
HOLDER_BYTES = 4 * 1024 * 1024
# How often the scheduler is asked for its workers while the monitor has nothing to tell.
_LOOK_S = 0.5
# How many rounds tell how long the next one of their kind is going to take.
_RECENT = 3


class ClusterExecutor:
    """Evaluates blocks on a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        Synchronous, with at least one worker.
    source : Source
    run_id : str, optional
        Goes into the keys of all tasks.
    policy : FaultPolicy, optional
        How workers that fall silent, die or leave are dealt with.
    n_rounds : int
        How many rounds to expect: blocks are moved where that pays in so many.

    Raises
    ------
    NoWorkersError
        If the cluster has no worker.
    WorkerPackageError
        If dask_dml is missing on a worker, or is of another version there.
    ClusterError
        If the client is asynchronous.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        run_id: str | None = None,
        policy: FaultPolicy | None = None,
        n_rounds: int = USUAL_ROUNDS,
    ) -> None:
        if client.asynchronous:
            raise ClusterError(
                "fit needs a synchronous client and got an asynchronous one: "
                "use Client(..., asynchronous=False)"
            )
        self._client = client
        self._source = source
        self._run_id = run_id or new_run_id()
        policy = policy or FaultPolicy()
        self._block_nbytes = [max(nbytes, 1.0) for nbytes in source.block_nbytes]
        self._roster = Roster(client)
        self._speeds = Speeds(self._block_nbytes, n_rounds)
        self._rounds_s: dict[str, list[float]] = {}
        self._n_rounds = 0
        self._away: frozenset[str] = frozenset()
        self._summed_by: dict[str, str] = {}
        resident = self._fits_in_memory()
        with ExitStack() as opened:
            opened.enter_context(sending_promptly(client))
            self._monitor = Monitor(client, policy, self._run_id)
            opened.callback(self._monitor.close)
            self._log = FaultLog(self._monitor, self._run_id)
            n_blocks = len(self._block_nbytes)
            self._holder = HolderClient(client, self._run_id, n_blocks, policy.replicas)
            opened.callback(self._holder.close)
            self._is_holder_refused = False
            self._blocks: Blocks
            key = partial(run_key, self._run_id)
            if resident:
                self._blocks = HeldBlocks(client, source, key, self._monitor, policy.replicas)
            else:
                self._blocks = StreamedBlocks(client, source, key, self._room_bytes)
            opened.callback(self._blocks.release)
            self._run = Run(
                client,
                self._run_id,
                policy,
                self._blocks,
                self._roster,
                self._monitor,
                self._log,
                self._block_nbytes,
                self._holder,
            )
            self._calls = Calls(client, self._run_id, self._monitor, policy, n_blocks)
            self._blocks.place(self._placement, self._away)
            self._opened = opened.pop_all()

    @property
    def is_resident(self) -> bool:
        """Whether blocks stay in the workers' memory; otherwise every pass reads them again."""
        return self._blocks.is_resident

    @property
    def placement(self) -> dict[int, str]:
        """Worker of each block."""
        return dict(self._blocks.placed)

    def survey(
        self, kind: TargetKind, sample_share: float = 0.0, with_moments: bool = False
    ) -> RoundResult[Survey]:
        """Survey of all blocks, which are loaded now if they stay."""
        work = SurveyWork(kind, self._source.feature_names, sample_share, with_moments)
        return self._evaluate(work, "survey")

    def encode(self, encoder: Encoder) -> None:
        """Prepare targets and weights on the workers that hold the blocks."""
        self._blocks.encode(encoder)

    def evaluate(self, request: Request) -> RoundResult[Statistics]:
        """Sums over all blocks."""
        kind = "hessian" if request.order == 2 else "gradient"
        # The holder cuts all sums alike, by the terms; a Gram matrix of some has no such parts.
        is_large = request.columns is None and _answer_nbytes(request) > HOLDER_BYTES
        if is_large and (held := self._held(request)) is not None:
            return self._evaluate(HeldWork(held), kind)
        return self._evaluate(RoundWork(request), kind)

    def evaluate_folds(self, request: FoldWiseRequest[F]) -> RoundResult[F]:
        """Sums over all blocks that tell folds apart."""
        return self._evaluate(FoldWork(request), "folds")

    def publish(self, event: FaultEvent) -> None:
        """Put an event of the fit's own on the Dask topic and in the log."""
        self._monitor.publish(event)

    def close(self) -> None:
        """Let go of all futures; what others hold stays."""
        self._opened.close()

    # -- placement --------------------------------------------------------------------------

    def _fits_in_memory(self) -> bool:
        if isinstance(self._source, DaskSource) and self._source.is_on_cluster:
            return True
        limits = self._roster.memory_limits().values()
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

    def _room_bytes(self, read_nbytes: float) -> dict[str, float]:
        """What the blocks that stay may take of each worker, where not all can stay."""
        # Those that are read ahead also have their encoded bytes, and freed buffers linger.
        in_use = 2 * (READ_AHEAD + 1) * read_nbytes
        return {
            worker: max(RESIDENT_SHARE * (limit - _PROCESS_BYTES) - threads * in_use, 0.0)
            for worker, limit in self._roster.memory_limits().items()
            if (threads := self._roster.threads.get(worker))
        }

    def _able(self) -> dict[str, int]:
        """Threads of the workers that are not suspect; of all if every one is."""
        threads = self._roster.threads
        return {w: n for w, n in threads.items() if w not in self._away} or threads

    def _placement(self, holders: Holders) -> dict[int, str]:
        capacity = self._speeds.capacity(self._able(), self._blocks.placed)
        worth = self._speeds.worth(self._n_rounds, self._roster.bandwidth)
        return place(self._block_nbytes, capacity, holders, worth)

    def _is_even(self) -> bool:
        """Whether blocks are shared evenly, or as evenly as pays."""
        placed = self._blocks.placed
        return (
            not self._speeds.is_uneven(self._able(), placed)
            or self._placement({block: (worker,) for block, worker in placed.items()}) == placed
        )

    def _cut(self) -> list[Shard]:
        """The shards of the next round: worker and blocks of each."""
        placed = self._blocks.placed
        per_worker = self._speeds.shards(self._roster.threads, placed)
        return shards(placed, self._block_nbytes, per_worker, self._blocks.joined)

    # -- rounds -----------------------------------------------------------------------------

    def _evaluate(self, work: Any, kind: str) -> RoundResult[Any]:
        watch = Stopwatch()
        round_ = Round[Any](self._run, work, kind, self._n_rounds - 1)
        self._n_rounds += 1
        cut = self._cut()
        gathered = round_.evaluate(cut, self._call(work, kind, cut))
        if isinstance(work, HeldWork):
            total = self._collected(work.request, round_, gathered)
        else:
            added: TreeSum[Any] = TreeSum(len(self._block_nbytes))
            added.update(gathered.nodes)
            total = added.value
        busy_s: dict[str, float] = {}
        done: dict[str, float] = {}
        for share in gathered.shares:
            worker = share.worker
            busy_s[worker] = busy_s.get(worker, 0.0) + share.busy_s
            nbytes = sum(self._block_nbytes[block] for block in share.blocks)
            done[worker] = done.get(worker, 0.0) + nbytes
        measured = {worker: done[worker] / max(busy_s[worker], 1e-9) for worker in done}
        self._speeds.learn(measured, round_.overtaken, self._roster.threads)
        self._compare_blas(gathered.shares)
        seconds = watch.seconds
        try:
            faults = self._adapt(seconds, kind, round_)
        except DaskDMLError:
            raise
        except Exception as error:
            raise round_.explain(error) from error
        threads = self._roster.threads
        busy_s = {worker: busy / threads.get(worker, 1) for worker, busy in busy_s.items()}
        return RoundResult(total, seconds, busy_s, gathered.nbytes, faults)

    def _call(self, work: Any, kind: str, cut: Sequence[Shard]) -> Callable[[], Answer] | None:
        """How to have a round done by call, if it suits; how long it takes is known from others."""
        times_s = self._rounds_s.get(kind)
        if not times_s or not self._blocks.is_resident or not isinstance(work, RoundWork):
            return None
        usual_s = statistics.median_low(times_s[-_RECENT:])
        if not self._calls.suit(work.nbytes, _answer_nbytes(work.request), usual_s):
            return None
        return self._calls.prepared(work, usual_s, cut, self._blocks.keys())

    def _compare_blas(self, shares: Iterable[Share]) -> None:
        """Tell, once, that sums which BLAS takes are not the same bits on all workers."""
        was_known = len(self._summed_by) > 1
        for share in shares:
            if share.blas:
                self._summed_by.setdefault(share.blas, share.worker)
        if len(self._summed_by) > 1 and not was_known:
            found = "; ".join(f"{blas} on {at}" for blas, at in sorted(self._summed_by.items()))
            action = (
                "none: the last digits of this fit depend on who sums what; start all workers "
                "with the same OPENBLAS_CORETYPE in their environment"
            )
            self._log.note("blas-differs", "", found, action)

    def _held(self, request: Request) -> HeldRequest | None:
        """The request, with its parameters at the holder; None where there can be no holder."""
        if self._is_holder_refused:
            return None
        try:
            return self._holder.publish(self._n_rounds, request)
        except HolderLostError as error:
            logger.info("round %d goes without the holder: %s", self._n_rounds - 1, error)
        except (StaleRunError, WorkerPackageError):
            raise
        except ClusterError as error:
            logger.warning("large parameters and sums go through the client: %s", error)
            self._is_holder_refused = True
        return None

    def _collected(
        self,
        request: HeldRequest,
        round_: Round[Any],
        gathered: Gathered[Any],
    ) -> Statistics:
        """Fetch the total; blocks whose sums were lost with all hosts are done again first."""
        nbytes = _answer_nbytes(request)
        again = 0
        while True:
            total, missing = self._holder.collect(request, nbytes, gathered.nodes)
            for event in self._holder.take_events():
                n_again = len(missing) if event["kind"] == "holder-lost" else 0
                self._log.note(**event, recomputed_blocks=n_again)
            if total is not None:
                return total
            again += 1
            work = self._holder.renewed()
            cut = [
                (worker, tuple(block for block in blocks if block in missing))
                for worker, blocks in self._cut()
            ]
            retry = Round[Any](self._run, work, f"{round_.kind}-again{again}", round_.number)
            more = retry.evaluate([shard for shard in cut if shard[1]])
            gathered.nodes += more.nodes
            gathered.shares += more.shares
            gathered.nbytes += more.nbytes

    # -- workers ----------------------------------------------------------------------------

    def _adapt(self, seconds: float, kind: str, round_: Round[Any]) -> tuple[FaultEvent, ...]:
        """Take note of workers that left, joined or fell silent, and place the blocks anew."""
        earlier = self._rounds_s.setdefault(kind, [])
        extra_s = max(seconds - statistics.median(earlier), 0.0) if earlier else 0.0
        # Suspects first: of those that come after them, the next round hears.
        suspects = self._monitor.suspects
        self._log.hear()
        is_quiet = self._monitor.is_watching and self._log.is_empty
        now = self._roster.seen(_LOOK_S if is_quiet else 0.0)
        away = suspects & now.keys()
        before, threads = dict(self._blocks.placed), dict(self._roster.threads)
        is_calm = now == threads and away == self._away and self._is_even()
        if not now or (is_calm and self._log.is_empty):
            earlier.append(seconds)
            return self._log.take(0.0)
        lost = [worker for worker in threads if worker not in now]
        again = {worker: self._made_again(worker, round_) for worker in lost}
        joined = [worker for worker in now if worker not in threads]
        misfits = self._roster.admit(now)
        moved = 0
        if not is_calm:
            self._away = frozenset(away)
            moved = self._blocks.place(self._placement, self._away)
            if moved and not lost and not joined:
                evidence = f"loads were uneven, or workers were silent: {', '.join(away) or 'none'}"
                self._log.note("blocks-placed", "", evidence, f"{moved} moved or made again")
        for worker in lost:
            n_blocks = sum(1 for at in before.values() if at == worker)
            action = f"its {n_blocks} blocks placed anew; workers now: {len(self._able())}"
            evidence, n_again, is_expected = again[worker]
            lost_kind = "worker-left" if is_expected else "worker-lost"
            self._log.complete(lost_kind, worker, evidence, action, n_again)
        for worker in joined:
            n_blocks = sum(1 for at in self._blocks.placed.values() if at == worker)
            action = f"{n_blocks} blocks given to it ({moved} moved in all)"
            if worker in misfits:
                action = f"given nothing: its dask_dml is {misfits[worker]}, not {__version__}"
            self._log.complete("worker-joined", worker, "new with the scheduler", action, 0)
        return self._log.take(extra_s)

    def _made_again(self, worker: str, round_: Round[Any]) -> tuple[str, int, bool]:
        """How the scheduler saw a worker leave, how many blocks went with it, and if on purpose."""
        removals = [
            event
            for _, event in self._client.get_events(worker)
            if isinstance(event, Mapping) and event.get("action") == "remove-worker"
        ]
        if not removals:
            return "not among the scheduler's running workers any more", 0, False
        if self._blocks.is_resident:
            again = self._blocks.held_in(removals[-1]["lost-computed-tasks"])
        else:
            again = round_.blocks_of(removals[-1]["processing-tasks"])
        if removals[-1]["expected"]:
            return "retired or closed on request", len(again), True
        return "connection to the scheduler lost without notice", len(again), False


def _answer_nbytes(request: Request | HeldRequest) -> int:
    """Bytes of parameters or of the sums that come back, whichever is larger."""
    n_keys = math.prod(request.shape if isinstance(request, HeldRequest) else request.theta.shape)
    return 8 * (n_keys * n_keys if request.order == 2 else n_keys)
