"""The executor of this process: the default without a cluster, and the oracle of the tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import chain
from typing import TypeVar

import psutil

from dask_dml.data.source import RawBlock, Source, joined
from dask_dml.faults import FaultEvent
from dask_dml.objective import Request, Statistics, Survey, TargetKind, TreeSum
from dask_dml.objective.folds import FoldWiseRequest, FoldWiseSums
from dask_dml.objective.survey import Encoder, TargetEncoder
from dask_dml.runtime.core import RoundResult, Stopwatch
from dask_dml.runtime.placement import keepable, runs
from dask_dml.runtime.shard import (
    Contribution,
    EncodedBlock,
    FoldWork,
    RoundWork,
    SentWork,
    ShardResult,
    SurveyWork,
    encoded,
    read_ahead,
    run_shard,
)

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Contribution)
B = TypeVar("B", RawBlock, EncodedBlock)
F = TypeVar("F", bound=FoldWiseSums)
T = TypeVar("T")
R = TypeVar("R")

_WORKER = "local"
_SHARDS_A_THREAD = 4


class LocalExecutor:
    """Evaluates blocks on threads of this process.

    Blocks stay in memory when all of them take less than half of what is free; otherwise as many as
    do, and the others are loaded again every pass, while earlier ones are in use.

    Parameters
    ----------
    source : Source
    n_threads : int, optional
        Default: the cores that this process may use.
    memory_bytes : int, optional
        Memory for blocks. Default: half of what is free.
    """

    def __init__(
        self, source: Source, n_threads: int | None = None, memory_bytes: int | None = None
    ) -> None:
        self._source = source
        self._n_blocks = len(source.row_chunks)
        n_threads = n_threads or len(os.sched_getaffinity(0))
        self._n_threads = min(n_threads, self._n_blocks)
        self._pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="dml-block")
        if memory_bytes is None:
            memory_bytes = int(psutil.virtual_memory().available // 2)
        self._loaders = source.loaders()
        placed = dict.fromkeys(range(self._n_blocks), _WORKER)
        self._joined = joined(self._loaders)
        room = {_WORKER: memory_bytes}
        self._stay = sorted(keepable(source.block_nbytes, placed, room, self._joined))
        self._raw: dict[int, RawBlock] = {}
        self._encoded: dict[int, EncodedBlock] = {}
        self._encoder: Encoder = TargetEncoder()

    def survey(
        self, kind: TargetKind, sample_share: float = 0.0, with_moments: bool = False
    ) -> RoundResult[Survey]:
        """Survey of all blocks."""
        self._load()
        work = SurveyWork(kind, self._source.feature_names, sample_share, with_moments)
        return self._evaluate(work, self._raw_blocks)

    def encode(self, encoder: Encoder) -> None:
        """Prepare targets and weights; streamed blocks are encoded as they are read."""
        self._encoder = encoder
        self._load()
        encoders = map(encoder.of_block, self._raw)
        self._encoded = dict(zip(self._raw, encoded(self._raw.values(), encoders), strict=True))
        self._raw = {}

    def evaluate(self, request: Request) -> RoundResult[Statistics]:
        """Sums over all blocks."""
        return self._evaluate(RoundWork(request), self._encoded_blocks)

    def evaluate_folds(self, request: FoldWiseRequest[F]) -> RoundResult[F]:
        """Sums over all blocks that tell folds apart."""
        return self._evaluate(FoldWork(request), self._encoded_blocks)

    def publish(self, event: FaultEvent) -> None:
        """Tell of an event in the log; nobody else is there to hear of it."""
        logger.info("%s: %s; %s", event.kind, event.evidence, event.action)

    def close(self) -> None:
        """Stop the threads and let go of the blocks."""
        self._pool.shutdown(cancel_futures=True)
        self._raw, self._encoded = {}, {}

    def _load(self) -> None:
        """Load the blocks that stay, once."""
        if not self._raw:
            blocks = self._raw_blocks
            loaded = self._map(lambda run: list(blocks(run)), runs(self._stay, self._joined))
            self._raw = dict(zip(self._stay, chain.from_iterable(loaded), strict=True))

    def _map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        # In the caller's context, where a block's own code may look for its client or worker.
        calls = [(copy_context(), item) for item in items]
        return self._pool.map(lambda call: call[0].run(function, call[1]), calls)

    def _raw_blocks(self, numbers: Sequence[int]) -> Iterable[RawBlock]:
        return read_ahead(self._raw.get(number, self._loaders[number]) for number in numbers)

    def _encoded_blocks(self, numbers: Sequence[int]) -> Iterable[EncodedBlock]:
        blocks = read_ahead(self._encoded.get(number, self._loaders[number]) for number in numbers)
        return encoded(blocks, map(self._encoder.of_block, numbers))

    def _evaluate(
        self, work: SentWork[B, C], blocks: Callable[[Sequence[int]], Iterable[B]]
    ) -> RoundResult[C]:
        watch = Stopwatch()
        # What is read is read once; what is there can be shared by all threads.
        together = runs(range(self._n_blocks), self._joined - set(self._stay))
        n_shards = min(len(together), _SHARDS_A_THREAD * self._n_threads)
        edges = [shard * len(together) // n_shards for shard in range(n_shards + 1)]

        def run(shard: int) -> ShardResult[C]:
            numbers = list(chain.from_iterable(together[edges[shard] : edges[shard + 1]]))
            return run_shard(self._n_blocks, numbers, work, blocks(numbers), _WORKER)

        total: TreeSum[C] = TreeSum(self._n_blocks)
        busy_s = 0.0
        for result in self._map(run, range(n_shards)):
            total.update(result.nodes)
            busy_s += result.busy_s
        return RoundResult(total.value, watch.seconds, {_WORKER: busy_s / self._n_threads}, 0)
