"""Predictions as files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dask_dml.errors import DataError
from dask_dml.report.predictions import WRITERS, prediction_frame, write_frames

CUTS = [[], [3], [1, 2, 5]]
READERS = {".csv": pd.read_csv, ".parquet": pd.read_parquet}


def frames(cuts, **columns):
    parts = {name: np.split(values, cuts) for name, values in columns.items()}
    for block in zip(*parts.values(), strict=True):
        yield prediction_frame(dict(zip(parts, block, strict=True)), ["p0", "p1"])


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("values", [np.arange(7), np.linspace(0, 1, 7), np.arange(7) > 3])
def test_an_array_of_numbers_is_that_array(tmp_path, cuts, values):
    write_frames(tmp_path / "p.npy", frames(cuts, prediction=values))
    found = np.load(tmp_path / "p.npy")
    np.testing.assert_array_equal(found, values, strict=True)


@pytest.mark.parametrize("cuts", CUTS)
def test_probabilities_alone_are_a_matrix(tmp_path, cuts):
    proba = np.random.default_rng(0).random((7, 2))
    write_frames(tmp_path / "p.npy", frames(cuts, proba=proba))
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), proba, strict=True)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("suffix", READERS)
def test_a_table_keeps_every_value(tmp_path, cuts, suffix):
    proba = np.random.default_rng(0).random((7, 2))
    label = np.array(list("abcabca"), dtype=object)
    path = tmp_path / f"p{suffix}"
    write_frames(path, frames(cuts, id=np.arange(7), prediction=label, proba=proba))
    expected = pd.DataFrame(
        {"id": np.arange(7), "prediction": label, "p0": proba[:, 0], "p1": proba[:, 1]}
    )
    pd.testing.assert_frame_equal(READERS[suffix](path), expected, check_dtype=False)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_failure_half_way_leaves_the_old_file_and_no_other(tmp_path, suffix):
    def broken():
        yield pd.DataFrame({"prediction": [1.0]})
        raise DataError("no more")

    path = tmp_path / f"p{suffix}"
    path.write_text("old")
    with pytest.raises(DataError, match="no more"):
        write_frames(path, broken())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_does_not_go_to_npy(tmp_path):
    with pytest.raises(DataError, match=r"use \.csv or \.parquet"):
        write_frames(tmp_path / "p.npy", frames([], prediction=np.array(["a"], dtype=object)))
