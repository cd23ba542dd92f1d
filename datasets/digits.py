"""Handwritten digits of 8 x 8 pixels, in ten classes, see the card `digits.md`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from dask_dml.data import Dataset, write_dataset

from ._source import held_out

TEST_SHARE = 0.2
ROWS_PER_BLOCK = 180
FEATURE_NAMES = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))


@dataclass(frozen=True)
class Digits:
    """Images and classes, split at random.

    Attributes
    ----------
    train_X, test_X : ndarray of float32 of shape (n, 64)
        Grey levels from 0 to 1, row by row of the image.
    train_y, test_y : ndarray of int8 of shape (n,)
        The digits.
    """

    train_X: NDArray[np.float32]
    train_y: NDArray[np.int8]
    test_X: NDArray[np.float32]
    test_y: NDArray[np.int8]


def load(seed: int = 0) -> Digits:
    """Read the images that come with scikit-learn.

    Parameters
    ----------
    seed : int, default 0
        Chooses the images that are held out.

    Returns
    -------
    Digits
    """
    images, digits = load_digits(return_X_y=True)
    X = (images / 16).astype(np.float32)
    y = digits.astype(np.int8)
    is_test = held_out(len(y), TEST_SHARE, seed)
    return Digits(X[~is_test], y[~is_test], X[is_test], y[is_test])


def write(
    directory: str | os.PathLike[str], seed: int = 0, overwrite: bool = False
) -> tuple[Dataset, Dataset]:
    """Write the training and test images as datasets.

    Parameters
    ----------
    directory : path
        Gets `train.zarr` and `test.zarr`; is created where it does not exist.
    seed : int, default 0
        Chooses the images that are held out.
    overwrite : bool, default False
        Replace datasets that stand there.

    Returns
    -------
    train, test : Dataset

    Raises
    ------
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
            pd.Series(y, name="digit"),
            chunks=ROWS_PER_BLOCK,
            feature_names=FEATURE_NAMES,
            overwrite=overwrite,
        )
        for name, X, y in (
            ("train", data.train_X, data.train_y),
            ("test", data.test_X, data.test_y),
        )
    )
    return train, test
