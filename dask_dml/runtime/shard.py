"""What one task does with the blocks of one shard, in whatever process it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_dml.data.source import (
    WHOLE,
    BlockLoader,
    PartLoader,
    RawBlock,
    block_rows,
    follows,
)
from dask_dml.objective import (
    Request,
    Statistics,
    Survey,
    TargetKind,
    TreeSum,
    block_statistics,
    survey_block,
)
from dask_dml.objective.blas import blas_name, blas_uses
from dask_dml.objective.folds import FoldWiseRequest, FoldWiseSums
from dask_dml.objective.summation import Node
from dask_dml.objective.survey import BlockEncoder, HeldOut
from dask_dml.runtime.core import Stopwatch

# Blocks that are read ahead of the one in use.
READ_AHEAD = 2


class EncodedBlock(NamedTuple):
    """One block of rows as the loss sees it."""

    X: Any
    target: NDArray[np.generic]
    weight: NDArray[np.float64] | None
    held_out: HeldOut | None = None


class Contribution(Protocol):
    """What a block contributes: it adds up, and knows its size."""

    @property
    def nbytes(self) -> int: ...
    def __add__(self, other: Any, /) -> Any: ...


C = TypeVar("C", bound=Contribution)
T = TypeVar("T", bound=tuple[Any, ...])
B = TypeVar("B", RawBlock, EncodedBlock)
F = TypeVar("F", bound=FoldWiseSums)
C_co = TypeVar("C_co", bound=Contribution, covariant=True)
B_contra = TypeVar("B_contra", RawBlock, EncodedBlock, contravariant=True)


class Work(Protocol[B_contra, C_co]):
    """What is to be done with every block."""

    def __call__(self, number: int, block: B_contra, /) -> C_co: ...

    @property
    def nbytes(self) -> int: ...


class SentWork(Protocol[B_contra, C_co]):
    """Work as it comes to a task: it may have to fetch something, and keep what was done."""

    def begin(self) -> Work[B_contra, C_co]:
        """Have all that the work needs."""
        ...

    def keep(self, numbers: Sequence[int], nodes: list[tuple[Node, Any]]) -> bool:
        """Put what was done where it is collected; whether it was, or has to be given back."""
        ...

    @property
    def nbytes(self) -> int: ...


class InlineWork:
    """Work that comes whole to its task, which gives back what it did."""

    __slots__ = ()

    def begin(self) -> Self:
        """Nothing is missing."""
        return self

    def keep(self, numbers: Sequence[int], nodes: list[tuple[Node, Any]]) -> bool:
        """Nothing is kept."""
        return False


@dataclass(frozen=True, slots=True)
class SurveyWork(InlineWork):
    """Survey of raw blocks."""

    kind: TargetKind
    feature_names: tuple[str, ...]
    sample_share: float
    with_moments: bool

    def __call__(self, number: int, block: RawBlock, /) -> Survey:
        return survey_block(
            self.kind, self.feature_names, number, *block, self.sample_share, self.with_moments
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the names, about."""
        return sum(len(name) for name in self.feature_names)


@dataclass(frozen=True, slots=True)
class RoundWork(InlineWork):
    """Sums of encoded blocks."""

    request: Request

    def __call__(self, number: int, block: EncodedBlock, /) -> Statistics:
        return block_statistics(self.request, block.X, block.target, block.weight)

    @property
    def nbytes(self) -> int:
        """Bytes of the request."""
        return self.request.nbytes


class FoldWork(InlineWork, Generic[F]):
    """Sums of encoded blocks whose rows are held out in folds."""

    __slots__ = ("request",)

    def __init__(self, request: FoldWiseRequest[F]) -> None:
        self.request = request

    def __call__(self, number: int, block: EncodedBlock, /) -> F:
        if block.held_out is None:
            raise ValueError("FoldWork needs blocks that a FoldEncoder has encoded")
        return self.request.of_block(block.X, block.target, block.weight, block.held_out)

    @property
    def nbytes(self) -> int:
        """Bytes of the request."""
        return self.request.nbytes


@dataclass(frozen=True, slots=True)
class ShardResult(Generic[C]):
    """What a shard gives back.

    Attributes
    ----------
    nodes : list of (node, contribution)
        Nodes of the sum's tree, as few as its blocks allow.
    busy_s : float
        Time it took.
    worker : str
        Who did it.
    kept_nbytes : int
        Bytes of contributions that were put elsewhere.
    blas : str
        Name of the BLAS that took part; empty where none did.
    """

    nodes: list[tuple[Node, C]]
    busy_s: float
    worker: str
    kept_nbytes: int = 0
    blas: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all contributions."""
        return self.kept_nbytes + sum(value.nbytes for _, value in self.nodes)


def run_shard(
    n_blocks: int,
    numbers: Sequence[int],
    work: SentWork[B, C],
    blocks: Iterable[B],
    worker: str,
) -> ShardResult[C]:
    """Do the work on each block of a shard and add up what adds up.

    Parameters
    ----------
    n_blocks : int
        Blocks of the whole source.
    numbers : sequence of int
        Numbers of this shard's blocks.
    work : SentWork
    blocks : iterable of RawBlock or EncodedBlock
        The blocks, one for each number; it may load them as they are needed.
    worker : str
        Who does it.
    """
    ready = work.begin()
    watch, uses = Stopwatch(), blas_uses()
    total: TreeSum[C] = TreeSum(n_blocks)
    for number, block in zip(numbers, blocks, strict=True):
        total.add((0, number), ready(number, block))
    blas = blas_name() if blas_uses() > uses else ""
    result = ShardResult(total.nodes, watch.seconds, worker, blas=blas)
    if work.keep(numbers, total.nodes):
        return replace(result, nodes=[], kept_nbytes=result.nbytes)
    return result


def read_ahead(blocks: Iterable[T | BlockLoader]) -> Iterator[T | RawBlock]:
    """Give blocks one after the other, those that are to be loaded while earlier ones are in use.

    At most three of them are held at a time: the one in use, and two that are read ahead. So a
    store that takes long to answer has two requests, and decoding has two cores if there are any.
    """
    with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="dml-read-ahead") as readers:
        coming: deque[tuple[list[T | BlockLoader], Future[RawBlock] | None]] = deque()
        for block in blocks:
            if coming and follows(block, coming[-1][0][-1]):
                coming[-1][0].append(block)
                continue
            reading = None
            if not isinstance(block, tuple):
                loader = block.whole if isinstance(block, PartLoader) else block
                # In the context of this task, in which a block's own code may ask for its worker.
                reading = readers.submit(copy_context().run, loader)
            if len(coming) > READ_AHEAD - 1:
                yield from _come(*coming.popleft())
            coming.append(([block], reading))
        while coming:
            yield from _come(*coming.popleft())


def _come(
    blocks: Iterable[T | BlockLoader], reading: Future[RawBlock] | None
) -> Iterator[T | RawBlock]:
    """The blocks that come with one reading."""
    for block in blocks:
        if isinstance(block, tuple):
            yield block
        elif reading is not None:
            rows = block.cut.rows if isinstance(block, PartLoader) else WHOLE
            yield block_rows(reading.result(), rows)


def encoded_block(block: RawBlock, encoder: BlockEncoder) -> EncodedBlock:
    """Encode one block."""
    return EncodedBlock(block.X, *encoder.encode(block.y, block.sample_weight))


def encoded(
    blocks: Iterable[EncodedBlock | RawBlock], encoders: Iterable[BlockEncoder]
) -> Iterator[EncodedBlock]:
    """Encode blocks that are not yet, as they come, each by its own encoder."""
    for block, encoder in zip(blocks, encoders, strict=True):
        yield block if isinstance(block, EncodedBlock) else encoded_block(block, encoder)
