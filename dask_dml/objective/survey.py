"""What has to be known of the data before the first round, in one pass.

Bounds and moments of the columns (for centring, scaling and certificates), the classes or the
moments of the target, the weights, and whether all of it is finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol, Self

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from dask_dml.errors import DataError
from dask_dml.objective.blocks import (
    BlockMatrix,
    dense_pieces,
    design_blocks,
    drawn_rows,
    implicit_rows,
    matrix_nbytes,
)
from dask_dml.objective.categorical import CategoricalBlock
from dask_dml.objective.implicit import column_moments
from dask_dml.objective.losses import Array
from dask_dml.objective.moments import Moments, block_moments

# Rows whose labels are taken for all that there are, and how many labels are worth comparing with.
_FIRST_ROWS = 1024
_MAX_CANDIDATES = 32
# Labels are looked at so many at a time: for larger arrays a process gets new pages of memory,
# which take longer than the looking.
_PIECE_ROWS = 8192
_SAMPLE_SEED = 20091


class TargetKind(Enum):
    """What the target is: labels, or numbers."""

    CLASSES = "classes"
    NUMBERS = "numbers"


class SampledRows(NamedTuple):
    """Rows drawn at random from one block: X (m, p), y (m,), weights (m,) or None."""

    X: BlockMatrix
    y: NDArray[np.generic]
    weight: Array | None


class ClassRun(NamedTuple):
    """The labels of a block, shape (c,), the rows of each, and where in it each first appears."""

    block: int
    classes: NDArray[np.generic]
    rows: Array
    first: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Survey:
    """Sums and bounds over the rows of one block, or of several.

    Attributes
    ----------
    n_rows : int
    weight : float
        Sum of the sample weights.
    moment1, moment2 : ndarray of shape (p,)
        Weighted sums of the columns and of their squares.
    lower, upper : ndarray of shape (p,)
        Smallest and largest values; inf and -inf where there is no row.
    classes : ndarray of shape (c,)
        Labels that occur, sorted; empty for numbers.
    class_rows, class_weight : ndarray of shape (c,)
        Rows and weight of each label.
    target_moment1, target_moment2 : float
        Weighted sums of the target and of its squares; 0 for labels.
    lowest_target : (float, int, int)
        The least target, the block it is in, and its row there; inf for labels.
    sample : tuple of SampledRows
        Rows of each block, in block order; empty when none were asked for.
    class_runs : tuple of ClassRun
        Of each block that has rows, in block order; empty for numbers.
    moments : Moments or None
        Of columns and target, about their means; None when they were not asked for.
    """

    n_rows: int
    weight: float
    moment1: Array
    moment2: Array
    lower: Array
    upper: Array
    classes: NDArray[np.generic]
    class_rows: Array
    class_weight: Array
    target_moment1: float
    target_moment2: float
    lowest_target: tuple[float, int, int] = (math.inf, -1, -1)
    sample: tuple[SampledRows, ...] = ()
    class_runs: tuple[ClassRun, ...] = ()
    moments: Moments | None = None

    def __add__(self, other: Self) -> Self:
        classes = np.union1d(self.classes, other.classes)

        def spread(mine: Array, theirs: Array) -> Array:
            total = np.zeros(len(classes))
            total[np.searchsorted(classes, self.classes)] += mine
            total[np.searchsorted(classes, other.classes)] += theirs
            return total

        return type(self)(
            self.n_rows + other.n_rows,
            self.weight + other.weight,
            self.moment1 + other.moment1,
            self.moment2 + other.moment2,
            np.minimum(self.lower, other.lower),
            np.maximum(self.upper, other.upper),
            classes,
            spread(self.class_rows, other.class_rows),
            spread(self.class_weight, other.class_weight),
            self.target_moment1 + other.target_moment1,
            self.target_moment2 + other.target_moment2,
            min(self.lowest_target, other.lowest_target),
            self.sample + other.sample,
            self.class_runs + other.class_runs,
            None if self.moments is None or other.moments is None else self.moments + other.moments,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        sampled = sum(rows.y.nbytes + matrix_nbytes(rows.X) for rows in self.sample)
        moments = 0 if self.moments is None else self.moments.nbytes
        return self.moment1.nbytes * 4 + self.classes.nbytes * 3 + sampled + moments

    @property
    def mean(self) -> Array:
        """Weighted means of the columns, shape (p,)."""
        return self.moment1 / self.weight if self.weight > 0 else self.moment1

    @property
    def variance(self) -> Array:
        """Weighted variances of the columns, shape (p,), 0 for constant columns.

        About: of columns very far from zero for their spread, those of uniform values.
        """
        if self.weight <= 0:
            return np.zeros_like(self.moment2)
        square = self.moment2 / self.weight
        variance = square - self.mean**2
        spread = self.upper - self.lower
        # What little is left after cancellation is rounding; the range has not lost its digits.
        return np.where((spread > 0.0) & (variance > 1e-12 * square), variance, spread**2 / 12.0)


def survey_block(
    kind: TargetKind,
    feature_names: tuple[str, ...],
    block: int,
    X: BlockMatrix,
    y: NDArray[np.generic],
    sample_weight: NDArray[np.generic] | None,
    sample_share: float = 0.0,
    with_moments: bool = False,
) -> Survey:
    """Survey of one block.

    Parameters
    ----------
    kind : TargetKind
    feature_names : tuple of str
        Names of the columns, for messages.
    block : int
        Number of the block, for messages.
    X : ndarray or CSR matrix of shape (n, p)
    y : ndarray of shape (n,)
    sample_weight : ndarray of shape (n,) or None
    sample_share : float
        Share of the rows to draw as a sample, by a generator seeded with the block's number.
    with_moments : bool
        Whether to bring second moments along, for least squares; for a target of numbers.

    Returns
    -------
    Survey

    Raises
    ------
    DataError
        If lengths differ, a number of columns is unexpected, something is NaN or infinite, or a
        weight is negative. The message names the block, and the column or row.
    """
    n_rows, n_columns = X.shape
    if n_columns != len(feature_names):
        raise DataError(
            f"X has {n_columns} columns in block {block}, expected {len(feature_names)} as in "
            "the other blocks: give all blocks the same columns"
        )
    for name, values in (("y", y), ("sample_weight", sample_weight)):
        if values is not None and len(values) != n_rows:
            raise DataError(
                f"{name} has {len(values)} rows where X has {n_rows} in block {block}: "
                f"give X and {name} the same rows in the same blocks"
            )
    weight = None
    if sample_weight is not None:
        weight = np.require(sample_weight, np.float64, ["C", "A"])
        _check_weight(weight, block)
    lowest = (math.inf, block, -1)
    class_runs: tuple[ClassRun, ...] = ()
    moment1, moment2, lower, upper = _column_moments(X, weight, feature_names, block)
    if kind is TargetKind.CLASSES:
        classes, class_rows, class_weight, first = _class_sums(y, weight, block)
        class_runs = (ClassRun(block, classes, class_rows, first),) if n_rows else ()
        target1 = target2 = 0.0
    else:
        classes, class_rows, class_weight = np.empty(0), np.empty(0), np.empty(0)
        target1, target2 = _target_moments(y, weight, block)
        if n_rows:
            row = int(np.argmin(y))
            lowest = (float(y[row]), block, row)
    sample: tuple[SampledRows, ...] = ()
    if sample_share > 0.0:
        drawn = drawn_rows(n_rows, sample_share, (_SAMPLE_SEED, block))
        rows = X[drawn].to_csr() if isinstance(X, CategoricalBlock) else X[drawn]
        sample = (SampledRows(rows, y[drawn], None if weight is None else weight[drawn]),)
    return Survey(
        n_rows,
        float(n_rows) if weight is None else float(weight.sum()),
        moment1,
        moment2,
        lower,
        upper,
        classes,
        class_rows,
        class_weight,
        target1,
        target2,
        lowest,
        sample,
        class_runs,
        block_moments(X, y, weight) if with_moments else None,
    )


def _check_weight(weight: Array, block: int) -> None:
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0.0)))
    if len(bad):
        raise DataError(
            f"sample_weight[{bad[0]}] of block {block} is {weight[bad[0]]}: "
            "weights must be finite and not negative"
        )


def _column_moments(
    X: BlockMatrix, weight: Array | None, feature_names: tuple[str, ...], block: int
) -> tuple[Array, Array, Array, Array]:
    if not isinstance(X, np.ndarray):
        values = X.numbers if isinstance(X, CategoricalBlock) else X.data
        moments = _implicit_moments(X, weight, block)
        is_finite = bool(np.all(np.isfinite(values)))
    else:
        moments = _dense_moments(X, weight)
        # A sum of what is finite overflows at worst, and then its squares do too.
        is_finite = bool(np.all(np.isfinite(moments[1]))) or bool(np.all(np.isfinite(X)))
    if not is_finite:
        raise DataError(_where_not_finite(X, feature_names, block))
    _, moment2, lower, upper = moments
    if not np.all(np.isfinite(moment2)):
        column = int(np.flatnonzero(~np.isfinite(moment2))[0])
        largest = max(abs(lower[column]), abs(upper[column]))
        raise DataError(
            f"X is too large to be squared in column {column} ({feature_names[column]!r}) of block "
            f"{block}: its largest absolute value is {largest:.3g}; rescale the column"
        )
    return moments


def _implicit_moments(
    X: BlockMatrix, weight: Array | None, block: int
) -> tuple[Array, Array, Array, Array]:
    from dask_dml.objective import sparse

    if isinstance(X, CategoricalBlock):
        form, fault = "matrix of categories", X.fault
    else:
        form, fault = "CSR matrix", sparse.fault_of(X)
    if fault:
        raise DataError(
            f"X of block {block} is not a valid {form}: it has {fault}. Build it anew, for "
            "example from its source"
        )
    return column_moments(implicit_rows(X), weight)


def _dense_moments(
    X: NDArray[np.generic], weight: Array | None
) -> tuple[Array, Array, Array, Array]:
    from dask_dml.objective import kernels

    sums = kernels.ColumnSums(X.shape[1])
    for rows, piece in dense_pieces(X, sums.subblock_rows):
        sums.add(piece, None if weight is None else weight[rows])
    return sums.moment1, sums.moment2, sums.lower, sums.upper


def _where_not_finite(X: BlockMatrix, feature_names: tuple[str, ...], block: int) -> str:
    X = X.to_csr() if isinstance(X, CategoricalBlock) else X
    rows, columns = _not_finite(X)
    first = np.lexsort((rows, columns))[0]
    row, column = int(rows[first]), int(columns[first])
    kind = "NaN" if np.isnan(X[row, column]) else "infinity"
    n_others = len(np.unique(columns)) - 1
    others = f", {n_others} more such columns" if n_others else ""
    return (
        f"Input X contains {kind} in block {block}, column {column} "
        f"({feature_names[column]!r}), first at row {row} of the block"
        f"{others}: fill in or drop such values before fit (NaN and inf cannot be fitted)"
    )


def _not_finite(X: BlockMatrix) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Rows and columns of values that are not finite."""
    if scipy.sparse.issparse(X):
        triplets = X.tocoo()
        bad = ~np.isfinite(triplets.data)
        return triplets.coords[0][bad], triplets.coords[1][bad]
    found, start = [], 0
    for values in design_blocks(X, X.shape[1], None):
        rows, columns = np.nonzero(~np.isfinite(values))
        found.append((start + rows, columns))
        start += len(values)
    return np.concatenate([rows for rows, _ in found]), np.concatenate([c for _, c in found])


def _class_sums(
    y: NDArray[np.generic], weight: Array | None, block: int
) -> tuple[NDArray[np.generic], Array, Array, NDArray[np.intp]]:
    if y.dtype.kind == "f":
        for start in range(0, len(y), _PIECE_ROWS):
            _check_labels(y[start : start + _PIECE_ROWS], start, block)
    try:
        return _counted(y, weight)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in y.tolist()})
        raise DataError(
            f"Input y of block {block} holds labels of different types, {' and '.join(kinds)}: "
            "make all of them strings or all of them numbers, and drop missing ones"
        ) from error


def _check_labels(y: NDArray[np.generic], start: int, block: int) -> None:
    """Refuse some rows' floating labels that are none; they begin at a row of a block."""
    if len(bad := np.flatnonzero(~np.isfinite(y))):
        raise DataError(
            f"Input y contains NaN or infinity in block {block}, first at row {start + bad[0]} of "
            f"the block ({y[bad[0]]}): a class label must be finite (NaN and inf cannot be fitted)"
        )
    if len(bad := np.flatnonzero(y != np.trunc(y))):
        raise DataError(
            f"Unknown label type: continuous. Input y is {y[bad[0]]} in block {block}, row "
            f"{start + bad[0]} of the block: class labels are whole numbers or strings; use a "
            "regressor for others"
        )


def _counted(
    y: NDArray[np.generic], weight: Array | None
) -> tuple[NDArray[np.generic], Array, Array, NDArray[np.intp]]:
    # Labels are nearly always the few that the first rows show: comparing is cheaper than sorting.
    candidates = np.unique(y[:_FIRST_ROWS])
    if len(candidates) <= _MAX_CANDIDATES:
        rows, weights = np.zeros(len(candidates)), np.zeros(len(candidates))
        first = np.zeros(len(candidates), np.intp)
        for start in range(0, len(y), _PIECE_ROWS):
            part = slice(start, start + _PIECE_ROWS)
            for k, label in enumerate(candidates):
                hit = y[part] == label
                n_hits = np.count_nonzero(hit)
                if n_hits and not rows[k]:
                    first[k] = start + hit.argmax()
                rows[k] += n_hits
                weights[k] += n_hits if weight is None else weight[part][hit].sum()
        if rows.sum() == len(y):
            return candidates, rows, weights, first
    classes, first, codes = np.unique(y, return_index=True, return_inverse=True)
    return (
        classes,
        np.bincount(codes, minlength=len(classes)).astype(np.float64),
        np.bincount(codes, weights=weight, minlength=len(classes)).astype(np.float64),
        first,
    )


def _target_moments(
    y: NDArray[np.generic], weight: Array | None, block: int
) -> tuple[float, float]:
    from dask_dml.objective import kernels

    sums = kernels.ColumnSums(1)
    try:
        for rows, piece in dense_pieces(y[:, None], sums.subblock_rows):
            sums.add(piece, None if weight is None else weight[rows])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Input y of block {block} holds {y.dtype} values, and numbers are needed: {error}"
        ) from error
    # A square of what is finite may not be.
    if not np.isfinite(sums.moment2[0]):
        values = np.require(y, np.float64)
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            raise DataError(
                f"Input y contains NaN or infinity in block {block}, first at row {bad[0]} of the "
                f"block ({values[bad[0]]}): fill in or drop such rows before fit"
            )
    return float(sums.moment1[0]), float(sums.moment2[0])


class HeldOut(NamedTuple):
    """The fold in which each row is held out, and its weight in scores (None: 1), shape (n,)."""

    fold: NDArray[np.intp]
    weight: Array | None


class EncodedTarget(NamedTuple):
    """What the loss sees of the rows' labels and weights, shape (n,) each.

    Attributes
    ----------
    target : ndarray
        int32 class numbers, or float64 values.
    weight : ndarray or None
    held_out : HeldOut or None
        In cross-validation.
    """

    target: NDArray[np.generic]
    weight: Array | None
    held_out: HeldOut | None = None


class BlockEncoder(Protocol):
    """Encodes the target of one block."""

    def encode(
        self, y: NDArray[np.generic], sample_weight: NDArray[np.generic] | None
    ) -> EncodedTarget:
        """What the loss sees of labels and weights as given."""
        ...


class Encoder(Protocol):
    """Has an encoder for each block."""

    def of_block(self, number: int) -> BlockEncoder:
        """That of one block."""
        ...


@dataclass(frozen=True, slots=True)
class TargetEncoder:
    """Turns labels and weights as given into those that the loss sees.

    Attributes
    ----------
    classes : ndarray of shape (c,) or None
        Labels in order; None leaves numbers as they are.
    class_weight : ndarray of shape (c,) or None
        Factors on the weights of each label's rows.
    """

    classes: NDArray[np.generic] | None = None
    class_weight: Array | None = None

    def of_block(self, number: int) -> Self:
        """Itself: all blocks are encoded alike."""
        return self

    def encode(
        self, y: NDArray[np.generic], sample_weight: NDArray[np.generic] | None
    ) -> EncodedTarget:
        """Class numbers or values, and weights or None."""
        weight = (
            None if sample_weight is None else np.require(sample_weight, np.float64, ["C", "A"])
        )
        if self.classes is None:
            return EncodedTarget(np.require(y, np.float64, ["C", "A"]), weight)
        if len(self.classes) == 2:
            codes = (y == self.classes[1]).astype(np.int32)
        else:
            codes = np.searchsorted(self.classes, y).astype(np.int32)
        if self.class_weight is not None:
            factors = self.class_weight[codes]
            weight = factors if weight is None else weight * factors
        return EncodedTarget(codes, weight)
