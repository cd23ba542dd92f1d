"""Categories as codes: stored, and fitted, without their indicator columns."""

from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

import dask_dml as dml
from dask_dml.errors import CorruptChunkError, DataError, IncompatibleError, IngestError
from dask_dml.linear_model import LogisticRegression, PoissonRegressor, Ridge
from dask_dml.objective import (
    LogisticLoss,
    MultinomialLoss,
    Request,
    TargetKind,
    block_statistics,
    survey_block,
)
from dask_dml.objective.blocks import reference_statistics
from dask_dml.objective.categorical import CategoricalBlock

N = 500
SIZES = (3, 5)


def made(n=N, m=2, dtype="f8", seed=0):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(-1, size, n) for size in SIZES], axis=1).astype(np.int32)
    numbers = rng.normal(size=(n, m)).astype(dtype)
    return CategoricalBlock(numbers, codes, SIZES), rng.integers(0, 3, n), rng.uniform(0, 2, n)


@settings(max_examples=30)
@given(
    n=st.integers(0, 80),
    m=st.integers(0, 3),
    order=st.sampled_from([1, 2]),
    loss=st.sampled_from([LogisticLoss(), MultinomialLoss(3)]),
    dtype=st.sampled_from(["f4", "f8"]),
    centred=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_sums_are_those_of_the_indicators(n, m, order, loss, dtype, centred, weighted, seed):
    block, y, weight = made(n, m, dtype, seed)
    target, w = (y if loss.n_outputs > 1 else np.minimum(y, 1)), weight if weighted else None
    p = m + sum(SIZES)
    theta = 0.3 * np.random.default_rng(seed).normal(size=(loss.n_outputs, p + 1))
    asked = Request(loss, theta, np.linspace(-1.0, 1.0, p) * centred, order)
    mine = block_statistics(asked, block, target, w)
    theirs = reference_statistics(asked, block.toarray(), target, w)
    np.testing.assert_allclose(mine.loss, theirs.loss, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(mine.gradient, theirs.gradient, rtol=1e-11, atol=1e-10)
    if order == 2:
        np.testing.assert_allclose(mine.gram, theirs.gram, rtol=1e-11, atol=1e-10)


def test_the_bits_do_not_depend_on_how_a_block_lies_in_memory():
    block, y, weight = made()
    y = np.minimum(y, 1)

    def unaligned(values):
        moved = np.frombuffer(b"\0" + values.tobytes(), np.uint8)[1:].view(values.dtype)
        return moved.reshape(values.shape)

    other = CategoricalBlock(unaligned(block.numbers), unaligned(block.codes), SIZES)
    assert not other.codes.flags.aligned
    theta = np.random.default_rng(0).normal(size=(1, 11))
    asked = Request(LogisticLoss(), theta, np.full(10, 0.2), 2)
    plain, moved = (block_statistics(asked, b, y, weight) for b in (block, other))
    assert plain.loss == moved.loss
    np.testing.assert_array_equal(plain.gram, moved.gram)
    np.testing.assert_array_equal(plain.gradient, moved.gradient)


def test_the_survey_is_that_of_the_indicators():
    block, y, weight = made()
    names = tuple(map(str, range(10)))
    mine, theirs = (
        survey_block(TargetKind.CLASSES, names, 0, X, y, weight, 0.1)
        for X in (block, block.toarray())
    )
    for name in ("moment1", "moment2", "lower", "upper"):
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-12)
    np.testing.assert_array_equal(mine.sample[0].X.toarray(), theirs.sample[0].X)
    block.numbers[7, 1] = np.nan
    with pytest.raises(DataError, match=r"NaN in block 0, column 1 .* row 7"):
        survey_block(TargetKind.CLASSES, names, 0, block, y, weight)
    block.codes[3, 1] = 5
    with pytest.raises(DataError, match="codes from -1 to 5 in group 1, which has 5 categories"):
        survey_block(TargetKind.CLASSES, names, 0, block, y, weight)


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "carrier": rng.choice(["AA", "UA", "WN"], N),
            "distance": rng.normal(size=N),
            "month": rng.integers(1, 8, N),
            "delay": rng.normal(size=N),
        }
    )
    score = frame["distance"] + (frame["carrier"] == "AA") - 0.3 * frame["month"] + 1
    frame["late"] = (score + rng.logistic(size=N) > 0).astype(int)
    frame["count"] = rng.poisson(np.exp(score / 2))
    frame["three"] = np.where(rng.random(N) < 0.3, 2, frame["late"])
    return frame


NAMES = ["distance", "delay", "carrier=AA", "carrier=UA", "carrier=WN"] + [
    f"month={m}" for m in range(1, 8)
]


def indicators(frame):
    parts = [frame[["distance", "delay"]], pd.get_dummies(frame["carrier"])]
    parts.append(pd.get_dummies(frame["month"]))
    return np.hstack([part.to_numpy(dtype=float) for part in parts])


def ingested(source, store, target, frame, **options):
    others = [name for name in ("late", "count", "three") if name != target]
    options = {"categorical": ["carrier", "month"], "chunks": (170, -1)} | options
    return dml.ingest(source, store, target, drop=others, **options)


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (LogisticRegression(), "late"),
        (LogisticRegression(solver="lbfgs"), "late"),
        (LogisticRegression(), "three"),
        (PoissonRegressor(alpha=0.1), "count"),
        (Ridge(), "delay"),
    ],
    ids=repr,
)
def test_coefficients_are_those_of_the_indicators(frame, tmp_path, model, target):
    if target == "delay":
        frame = frame.rename(columns={"delay": "late", "late": "delay"}).copy()
        target = "late"
    dataset = ingested(frame, tmp_path / "d.zarr", target, frame)
    X, y = indicators(frame), frame[target].to_numpy()
    assert dataset.storage == "categorical"
    assert dataset.feature_names == NAMES
    expected = type(model)(**model.get_params()).fit(X, y)
    model.fit(dataset)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6, atol=1e-7)
    predicted = model.predict(dataset).compute()
    np.testing.assert_allclose(predicted, expected.predict(X), rtol=1e-6)
    assert list(model.feature_names_in_) == NAMES


def test_indicators_are_written_out_only_where_they_are_asked_for(frame, tmp_path, monkeypatch):
    dataset = ingested(pl.from_pandas(frame), tmp_path / "d.zarr", "late", frame)
    np.testing.assert_array_equal(dataset.X.compute(), indicators(frame))
    np.testing.assert_array_equal(
        dataset.sample.X.toarray(), indicators(frame)[dataset.sample.index]
    )
    assert dataset.block_nbytes == tuple(24 * n for n in dataset.grid.row_chunks)
    for kind in (CategoricalBlock, scipy.sparse.csr_array):
        monkeypatch.setattr(kind, "toarray", None)
    LogisticRegression().fit(dataset).predict(dataset).compute()


def test_a_row_without_a_value_is_in_no_category(frame, tmp_path):
    frame.loc[3, "carrier"] = None
    with pytest.raises(IngestError, match=r"missing values: carrier \(1\)"):
        ingested(frame, tmp_path / "d.zarr", "late", frame)
    dataset = ingested(frame, tmp_path / "d.zarr", "late", frame, missing="keep")
    assert dataset.X[3, 2:5].compute().tolist() == [0.0, 0.0, 0.0]
    LogisticRegression().fit(dataset)


def test_other_categories_than_those_of_the_fit_are_named(frame, tmp_path):
    model = LogisticRegression().fit(ingested(frame, tmp_path / "a.zarr", "late", frame))
    fewer = frame[frame["carrier"] != "UA"]
    other = ingested(fewer, tmp_path / "b.zarr", "late", fewer)
    with pytest.raises(DataError, match="is expecting 12 features"):
        model.predict(other)


def test_rows_of_a_test_get_the_categories_of_the_fit(frame, tmp_path):
    train = ingested(frame, tmp_path / "a.zarr", "late", frame)
    assert train.categories == {"carrier": ["AA", "UA", "WN"], "month": list(range(1, 8))}
    model = LogisticRegression().fit(train)
    fewer = frame[frame["carrier"] != "UA"]
    test = ingested(fewer, tmp_path / "b.zarr", "late", fewer, categorical=train.categories)
    expected = model.predict(train).compute()[frame["carrier"] != "UA"]
    np.testing.assert_array_equal(model.predict(test).compute(), expected)
    unseen = frame.assign(carrier=frame["carrier"].replace("UA", "ZZ"))
    with pytest.raises(IngestError, match=r"'carrier' .* not among its categories: ZZ"):
        ingested(unseen, tmp_path / "c.zarr", "late", unseen, categorical=train.categories)


def test_rows_that_are_all_categories(frame, tmp_path):
    only = frame[["carrier", "month", "late"]]
    dataset = dml.ingest(only, tmp_path / "d.zarr", "late", categorical=["carrier", "month"])
    np.testing.assert_array_equal(dataset.X.compute(), indicators(frame)[:, 2:])
    LogisticRegression().fit(dml.open_dataset(tmp_path / "d.zarr"))


def test_a_damaged_chunk_of_codes_is_named(frame, tmp_path):
    ingested(frame, tmp_path / "d.zarr", "late", frame)
    (tmp_path / "d.zarr" / "X" / "codes" / "c" / "1" / "0").unlink()
    with pytest.raises(CorruptChunkError, match="chunk c/1/0 of array 'X/codes' is missing"):
        LogisticRegression().fit(tmp_path / "d.zarr")


def test_what_cannot_be_categories_is_refused(frame, tmp_path):
    with pytest.raises(IncompatibleError, match="keeps rows whole, and layout='vertical'"):
        ingested(frame, tmp_path / "d.zarr", "late", frame, layout="vertical", chunks="auto")
    with pytest.raises(IngestError, match="in categorical and one_hot"):
        ingested(frame, tmp_path / "d.zarr", "late", frame, one_hot=["month"])
    lazy = dd.from_pandas(frame, npartitions=2)
    with pytest.raises(IngestError, match="source is a dask DataFrame: write it to Parquet"):
        ingested(lazy, tmp_path / "d.zarr", "late", frame)
