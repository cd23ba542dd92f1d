"""The argument `cv`: which row is held out in which fold."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.model_selection import BaseCrossValidator, KFold, StratifiedKFold, check_cv

from dask_dml.data.source import ArraySource, Source
from dask_dml.errors import DataError, IncompatibleError
from dask_dml.objective import Survey
from dask_dml.objective.folds import (
    BlockFolds,
    consecutive_folds,
    listed_folds,
    stratified_folds,
)

DEFAULT_FOLDS = 5


def check_folds(name: str, cv: Any) -> None:
    """Refuse what cannot be a `cv`, before any data is read.

    Parameters
    ----------
    name : str
        Of the estimator, for messages.
    cv : int, splitter, iterable or None

    Raises
    ------
    ValueError
        If it is a number of folds below 2, or neither a number, a splitter nor an iterable.
    """
    if isinstance(cv, Integral) and not isinstance(cv, bool):
        if cv < 2:
            raise ValueError(f"{name}(cv={cv!r}): there must be at least 2 folds")
    elif not (cv is None or hasattr(cv, "split") or np.iterable(cv)) or isinstance(cv, str):
        raise ValueError(
            f"{name}(cv=...) must be a number of folds, a scikit-learn splitter, pairs of training "
            f"and test rows, or None for {DEFAULT_FOLDS} folds; got {cv!r}"
        )


def folds_of(
    name: str, cv: Any, source: Source, survey: Survey
) -> tuple[int, Sequence[BlockFolds]]:
    """The number of folds, and the folds of each block.

    A number of folds means those that scikit-learn makes of it: for numbers as targets, folds of
    consecutive rows (`KFold`), for classes stratified ones (`StratifiedKFold`), neither shuffled.

    Parameters
    ----------
    name : str
        Of the estimator, for messages.
    cv : int, splitter, iterable or None
        None is 5 folds.
    source : Source
    survey : Survey
        Of all blocks.

    Raises
    ------
    DataError
        If the rows do not suffice for the folds, or test rows overlap or leave rows out.
    IncompatibleError
        If splits are listed row by row and the data is not in this process.
    """
    is_stratified = len(survey.classes) > 0
    plain = StratifiedKFold if is_stratified else KFold
    if cv is None or isinstance(cv, Integral):
        cv = plain(DEFAULT_FOLDS if cv is None else int(cv))
    if type(cv) is KFold and not cv.shuffle:
        return cv.n_splits, consecutive_folds(source.row_chunks, cv.n_splits)
    if is_stratified and type(cv) is StratifiedKFold and not cv.shuffle:
        folds = stratified_folds(survey, len(source.row_chunks), cv.n_splits)
        if (least := survey.class_rows.min()) < cv.n_splits:
            warnings.warn(
                f"The least populated class in y has only {least:.0f} members, which is less than "
                f"n_splits={cv.n_splits}.",
                UserWarning,
                stacklevel=2,
            )
        return cv.n_splits, folds
    if not isinstance(source, ArraySource):
        made = type(cv).__name__ if isinstance(cv, BaseCrossValidator) else "an iterable"
        raise IncompatibleError(
            f"{name}(cv={made}) lists splits row by row, and the data is not in this process: use "
            "a number of folds, KFold or StratifiedKFold without shuffling, or NumPy arrays"
        )
    return _listed(name, check_cv(cv, source.y, classifier=is_stratified), source)


def _listed(name: str, cv: Any, source: ArraySource) -> tuple[int, Sequence[BlockFolds]]:
    n_rows = len(source.y)
    folds = np.full(n_rows, -1, dtype=np.intp)
    n_folds = 0
    for training, test in cv.split(source.X, source.y):
        test = np.arange(n_rows)[test]
        others = np.setdiff1d(np.arange(n_rows), test)
        if np.any(folds[test] >= 0) or not np.array_equal(
            np.sort(np.arange(n_rows)[training]), others
        ):
            raise DataError(
                f"{name}(cv=...): split {n_folds} tests rows that another one tests too, or does "
                "not train on all other rows; sums are shared among folds whose test rows divide "
                "the data, as those of KFold and GroupKFold do"
            )
        folds[test] = n_folds
        n_folds += 1
    if np.any(folds < 0):
        raise DataError(
            f"{name}(cv=...): {np.count_nonzero(folds < 0)} of {n_rows} rows are in no test set, "
            f"the first is row {np.flatnonzero(folds < 0)[0]}; every row must be tested once"
        )
    return n_folds, listed_folds(folds, source.row_chunks)
