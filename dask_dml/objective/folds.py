"""Cross-validation in few passes: sums of each fold by itself, and scores of rows held out.

Every row is held out in one fold. So sums that are taken fold by fold, in a pass that costs what
any pass costs, give the sums of all training sets: those of the other folds. Penalties enter after
the sums, so one pass serves every fold and every strength of a penalty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_dml.errors import DataError
from dask_dml.objective.blocks import BlockMatrix, Request, Statistics, block_statistics
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import EncodedTarget, HeldOut, Survey, TargetEncoder

Rows = slice | NDArray[np.intp]


class BlockFolds(Protocol):
    """Says in which fold each row of one block is held out."""

    def of(self, target: NDArray[np.generic]) -> NDArray[np.intp]:
        """Fold numbers of shape (n,), of rows with these encoded targets."""
        ...


class ListedFolds(NamedTuple):
    """Folds that are given row by row, shape (n,)."""

    folds: NDArray[np.intp]

    def of(self, target: NDArray[np.generic]) -> NDArray[np.intp]:
        """What is given."""
        return self.folds


class RunningFolds(NamedTuple):
    """Folds by a row's running number, within all rows or within its class.

    Attributes
    ----------
    edges : ndarray of shape (n_folds + 1,), or (c, n_folds + 1)
        Running numbers at which folds begin, of all rows or for each class.
    before : ndarray of shape (1,) or (c,)
        Rows, or rows of each class, in the blocks before.
    """

    edges: NDArray[np.intp]
    before: NDArray[np.intp]

    def of(self, target: NDArray[np.generic]) -> NDArray[np.intp]:
        """Count the rows."""
        if self.edges.ndim == 1:
            numbers = self.before[0] + np.arange(len(target))
            return self._fold(self.edges, numbers)
        folds = np.empty(len(target), dtype=np.intp)
        for label, edges in enumerate(self.edges):
            rows = np.flatnonzero(target == label)
            numbers = self.before[label] + np.arange(len(rows))
            folds[rows] = self._fold(edges, numbers)
        return folds

    @staticmethod
    def _fold(edges: NDArray[np.intp], numbers: NDArray[np.intp]) -> NDArray[np.intp]:
        return np.asarray(np.searchsorted(edges, numbers, side="right") - 1)


def consecutive_folds(row_chunks: Sequence[int], n_folds: int) -> tuple[RunningFolds, ...]:
    """Folds of consecutive rows: scikit-learn's ``KFold(n_folds)``.

    Parameters
    ----------
    row_chunks : sequence of int
        Rows of each block.
    n_folds : int

    Returns
    -------
    tuple of RunningFolds
        One a block.

    Raises
    ------
    DataError
        If there are fewer rows than folds.
    """
    n_rows = sum(row_chunks)
    if n_folds > n_rows:
        raise DataError(
            f"cv={n_folds} cannot be greater than the number of samples, n_samples={n_rows}: "
            "use fewer folds"
        )
    sizes = np.full(n_folds, n_rows // n_folds)
    sizes[: n_rows % n_folds] += 1
    edges = np.concatenate([[0], np.cumsum(sizes)])
    before = np.concatenate([[0], np.cumsum(row_chunks)[:-1]])
    return tuple(RunningFolds(edges, before[block : block + 1]) for block in range(len(row_chunks)))


def stratified_folds(survey: Survey, n_blocks: int, n_folds: int) -> tuple[RunningFolds, ...]:
    """Folds with equal shares of the classes: scikit-learn's ``StratifiedKFold(n_folds)``.

    Parameters
    ----------
    survey : Survey
        Of all blocks.
    n_blocks, n_folds : int

    Returns
    -------
    tuple of RunningFolds
        One a block.

    Raises
    ------
    DataError
        If every class has fewer rows than there are folds.
    """
    classes = survey.classes
    rows = np.zeros((n_blocks, len(classes)), dtype=np.intp)
    first = np.full(len(classes), np.iinfo(np.intp).max)
    n_before = 0
    for run in survey.class_runs:
        at = np.searchsorted(classes, run.classes)
        rows[run.block, at] = run.rows
        first[at] = np.minimum(first[at], n_before + run.first)
        n_before += int(run.rows.sum())
    counts = rows.sum(axis=0)
    if np.all(n_folds > counts):
        raise DataError(
            f"cv={n_folds} cannot be greater than the number of members in each class: the classes "
            f"have {counts[:10].tolist()} rows; use fewer folds"
        )
    # Rows in order of class, the classes in order of appearance, are dealt out like cards.
    order = np.argsort(first, kind="stable")
    ends = np.cumsum(counts[order])
    edges = np.zeros((len(classes), n_folds + 1), dtype=np.intp)
    for label, (start, stop) in zip(order, pairwise([0, *ends.tolist()]), strict=True):
        dealt = [len(range(start + (k - start) % n_folds, stop, n_folds)) for k in range(n_folds)]
        edges[label, 1:] = np.cumsum(dealt)
    before = np.cumsum(rows, axis=0) - rows
    return tuple(RunningFolds(edges, at) for at in before)


def listed_folds(folds: NDArray[np.intp], row_chunks: Sequence[int]) -> tuple[ListedFolds, ...]:
    """Folds that are given for all rows, shape (n,), cut into blocks."""
    edges = np.concatenate([[0], np.cumsum(row_chunks)])
    return tuple(ListedFolds(folds[start:stop]) for start, stop in pairwise(edges))


class _BlockFoldEncoder(NamedTuple):
    target: TargetEncoder
    folds: BlockFolds

    def encode(
        self, y: NDArray[np.generic], sample_weight: NDArray[np.generic] | None
    ) -> EncodedTarget:
        """Targets, training weights, and where and how heavily rows are held out."""
        target, weight, _ = self.target.encode(y, sample_weight)
        given = None
        if sample_weight is not None:
            given = np.require(sample_weight, np.float64, ["C", "A"])
        return EncodedTarget(target, weight, HeldOut(self.folds.of(target), given))


@dataclass(frozen=True, slots=True)
class FoldEncoder:
    """Encodes targets like `TargetEncoder`, and says in which fold each row is held out.

    Attributes
    ----------
    target : TargetEncoder
    folds : sequence of BlockFolds
        One a block; see `consecutive_folds`, `stratified_folds` and `listed_folds`.

    Notes
    -----
    Held-out rows count in scores with their sample weights, without those of their classes.
    """

    target: TargetEncoder
    folds: Sequence[BlockFolds]

    def of_block(self, number: int) -> _BlockFoldEncoder:
        """What encodes one block."""
        return _BlockFoldEncoder(self.target, self.folds[number])


class FoldWiseSums(Protocol):
    """Sums that tell folds apart: they add up, and know their size."""

    @property
    def nbytes(self) -> int: ...
    def __add__(self, other: Any, /) -> Any: ...


F_co = TypeVar("F_co", bound=FoldWiseSums, covariant=True)


class FoldWiseRequest(Protocol[F_co]):
    """Asks a block for sums that tell its folds apart."""

    def of_block(
        self,
        X: BlockMatrix,
        target: NDArray[np.generic],
        weight: Array | None,
        held_out: HeldOut,
    ) -> F_co:
        """Sums of one block."""
        ...

    @property
    def nbytes(self) -> int: ...


def fold_rows(fold: NDArray[np.intp]) -> Iterator[tuple[int, Rows]]:
    """The folds that occur, in order, with their rows: slices where rows are consecutive."""
    for k in np.flatnonzero(np.bincount(fold)):
        rows = np.flatnonzero(fold == k)
        first, last = int(rows[0]), int(rows[-1])
        is_run = last - first + 1 == len(rows)
        yield int(k), slice(first, last + 1) if is_run else rows


@dataclass(frozen=True, slots=True)
class FoldStatistics:
    """Sums over the rows of each fold.

    Attributes
    ----------
    folds : tuple of Statistics or None
        One a fold; None where no row has been seen.
    weight : ndarray of shape (n_folds,)
        Training weights of the rows.
    """

    folds: tuple[Statistics | None, ...]
    weight: Array

    def __add__(self, other: Self) -> Self:
        folds = tuple(map(_added, self.folds, other.folds))
        return type(self)(folds, self.weight + other.weight)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(fold.nbytes for fold in self.folds if fold is not None)

    @property
    def total(self) -> Statistics:
        """Sums over all rows."""
        return self._sum(tuple(range(len(self.folds))))

    def training(self, held_out: int) -> Statistics:
        """Sums over the rows of all folds but one.

        They are added up, not taken from the total, so that nothing cancels.

        Raises
        ------
        DataError
            If all rows are in that fold.
        """
        return self._sum(tuple(k for k in range(len(self.folds)) if k != held_out))

    def training_weight(self, held_out: int) -> float:
        """Weight of the rows of all folds but one."""
        return float(np.delete(self.weight, held_out).sum())

    def _sum(self, folds: tuple[int, ...]) -> Statistics:
        present = [fold for k in folds if (fold := self.folds[k]) is not None]
        if not present:
            raise DataError(
                f"all rows are held out in one of {len(self.folds)} folds, and none is left to "
                "train on: give cv folds that divide the rows"
            )
        return reduce(add, present)


def _added(mine: Statistics | None, other: Statistics | None) -> Statistics | None:
    if mine is None or other is None:
        return other if mine is None else mine
    return mine + other


@dataclass(frozen=True, slots=True)
class FoldSums:
    """The sums of several requests, each fold by fold: what a `FoldRequest` gives."""

    answers: tuple[FoldStatistics, ...]

    def __add__(self, other: Self) -> Self:
        return type(self)(tuple(map(add, self.answers, other.answers)))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(answer.nbytes for answer in self.answers)


@dataclass(frozen=True, slots=True)
class FoldRequest:
    """Asks every block for the sums of several requests, fold by fold.

    Attributes
    ----------
    requests : tuple of Request
    n_folds : int
    """

    requests: tuple[Request, ...]
    n_folds: int

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(request.nbytes for request in self.requests)

    def of_block(
        self,
        X: BlockMatrix,
        target: NDArray[np.generic],
        weight: Array | None,
        held_out: HeldOut,
    ) -> FoldSums:
        """Sums of one block; see `block_statistics`."""
        answers: list[list[Statistics | None]] = [[None] * self.n_folds for _ in self.requests]
        fold_weight = np.zeros(self.n_folds)
        for k, rows in fold_rows(held_out.fold):
            X_k, target_k = X[rows], target[rows]
            weight_k = None if weight is None else weight[rows]
            fold_weight[k] = len(target_k) if weight_k is None else weight_k.sum()
            for answer, request in zip(answers, self.requests, strict=True):
                answer[k] = block_statistics(request, X_k, target_k, weight_k)
        return FoldSums(tuple(FoldStatistics(tuple(answer), fold_weight) for answer in answers))
