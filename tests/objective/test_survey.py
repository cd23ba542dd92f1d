from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.errors import DataError
from dask_dml.objective import Survey, TargetKind, survey_block
from dask_dml.objective.survey import TargetEncoder

NAMES = ("distance", "speed", "delay")


def survey(X, y, sample_weight=None, kind=TargetKind.CLASSES, block=0):
    return survey_block(kind, NAMES, block, X, y, sample_weight)


def rows(n=5000, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)).astype(dtype), rng.integers(0, 2, n)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_and_bounds_are_those_of_the_columns(weighted, sparse):
    X, y = rows()
    w = np.random.default_rng(1).random(len(X)) if weighted else np.ones(len(X))
    found = survey(scipy.sparse.csr_array(X) if sparse else X, y, w if weighted else None)
    np.testing.assert_allclose(found.moment1, w @ X, rtol=1e-10)
    np.testing.assert_allclose(found.moment2, w @ X**2, rtol=1e-12)
    np.testing.assert_array_equal(found.lower, X.min(axis=0))
    np.testing.assert_array_equal(found.upper, X.max(axis=0))
    np.testing.assert_allclose(found.mean, np.average(X, axis=0, weights=w), rtol=1e-10)
    np.testing.assert_allclose(
        found.variance, np.average((X - found.mean) ** 2, axis=0, weights=w), rtol=1e-10
    )
    assert found.n_rows == len(X)
    assert found.weight == pytest.approx(w.sum(), rel=1e-12)


def test_a_constant_column_has_no_variance():
    X, y = rows()
    X[:, 1] = 0.1
    X[:, 2] = 1e6
    found = survey(X, y)
    assert found.variance[0] > 0.5
    np.testing.assert_array_equal(found.variance[1:], 0.0)


def test_the_variance_of_a_column_far_from_zero_is_of_its_size():
    X, y = rows()
    X[:, 0] = 1.7e9 + 1e3 * X[:, 0]
    X[:, 1] = 1e12 + X[:, 1]
    found = survey(X, y)
    ratio = found.variance[:2] / np.var(X[:, :2], axis=0)
    assert np.all((ratio > 0.1) & (ratio < 10.0))


@pytest.mark.parametrize("form", [np.float32, np.float64, "csr"])
@pytest.mark.parametrize(
    ("value", "called"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]
)
@pytest.mark.parametrize("row", [0, 63, 64, 4999])
def test_what_is_not_finite_is_named_by_block_column_and_row(value, called, row, form):
    X, y = rows(dtype=np.float64 if form == "csr" else form)
    X[row, 1] = value
    with pytest.raises(DataError, match=called) as caught:
        survey(scipy.sparse.csr_array(X) if form == "csr" else X, y, block=7)
    message = str(caught.value)
    assert "block 7" in message
    assert "column 1 ('speed')" in message
    assert f"row {row} of the block" in message
    assert "more such columns" not in message


def test_the_first_row_of_the_first_bad_column_is_named_and_others_are_counted():
    X, y = rows()
    X[4000, 0] = np.nan
    X[300:, 2] = np.nan
    X[10, 2] = np.inf
    with pytest.raises(DataError, match=r"NaN .*column 0 .* row 4000 .*, 1 more such columns"):
        survey(X, y)
    with pytest.raises(DataError, match=r"infinity .*column 2 .* row 10 .*of the block: "):
        survey(X[:4000], y[:4000])


def test_a_value_whose_square_overflows_is_refused_and_the_largest_that_does_not_is_taken():
    X, y = rows()
    X[3, 2] = 1e160
    with pytest.raises(DataError, match=r"too large to be squared in column 2 \('delay'\)"):
        survey(X, y)
    X[3, 2] = 1e150
    assert survey(X, y).upper[2] == 1e150


def test_columns_that_are_missing_are_refused():
    X, y = rows()
    with pytest.raises(DataError, match="2 columns in block 4, expected 3"):
        survey(X[:, :2], y, block=4)


@pytest.mark.parametrize("name", ["y", "sample_weight"])
def test_lengths_that_differ_are_refused(name):
    X, y = rows()
    columns = {"y": y, "sample_weight": np.ones(len(X))}
    columns[name] = columns[name][:-1]
    with pytest.raises(DataError, match=f"{name} has 4999 rows where X has 5000 in block 0"):
        survey(X, **columns)


@pytest.mark.parametrize("bad", [-1e-300, np.nan, np.inf])
def test_a_weight_that_is_negative_or_not_finite_is_named(bad):
    X, y = rows()
    weight = np.ones(len(X), np.float32 if bad == np.inf else np.float64)
    weight[17] = bad
    with pytest.raises(DataError, match=r"sample_weight\[17\] of block 2"):
        survey(X, y, weight, block=2)


@pytest.mark.parametrize("kind", TargetKind)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_target_that_is_not_finite_is_named(value, kind):
    X, y = rows()
    y = y.astype(float)
    y[42] = value
    with pytest.raises(DataError, match=r"Input y contains NaN or infinity in block 1, .*row 42"):
        survey(X, y, kind=kind, block=1)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["late", "early", "cancelled"]),
        np.array(["late", "early", "cancelled"], dtype=object),
        np.array([-7, 3, 2**40]),
        np.array([5.0, -1.0, 0.0], dtype=np.float32),
        np.array([False, True]),
        np.array([3, 1, 2], dtype=np.uint8),
        np.arange(500),
    ],
    ids=lambda labels: f"{labels.dtype}-{len(labels)}",
)
def test_rows_and_weights_of_classes_are_counted(labels):
    X, _ = rows()
    rng = np.random.default_rng(2)
    y = rng.choice(labels, len(X))
    weight = rng.random(len(X))
    found = survey(X, y, weight)
    expected, codes = np.unique(y, return_inverse=True)
    np.testing.assert_array_equal(found.classes, expected)
    np.testing.assert_array_equal(found.class_rows, np.bincount(codes))
    np.testing.assert_allclose(found.class_weight, np.bincount(codes, weight), rtol=1e-12)
    np.testing.assert_array_equal(survey(X, y).class_weight, np.bincount(codes))


def test_labels_that_are_no_labels_are_refused():
    X, y = rows()
    parts = y.astype(float)
    parts[99] = 0.5
    with pytest.raises(DataError, match=r"continuous.* 0.5 in block 3, row 99 of the block"):
        survey(X, parts, block=3)
    mixed = np.array(["a", None], dtype=object)[y]
    with pytest.raises(DataError, match="different types, NoneType and str"):
        survey(X, mixed)
    with pytest.raises(DataError, match="block 0 holds <U1 values, and numbers are needed"):
        survey(X, np.array(["a", "b"])[y], kind=TargetKind.NUMBERS)


def test_a_class_that_the_first_rows_do_not_show_is_found():
    X, _ = rows()
    y = np.zeros(len(X), int)
    y[-1] = 9
    found = survey(X, y)
    np.testing.assert_array_equal(found.classes, [0, 9])
    np.testing.assert_array_equal(found.class_rows, [4999, 1])


def test_moments_of_a_target_of_numbers():
    X, _ = rows()
    rng = np.random.default_rng(3)
    y, weight = rng.normal(5, 2, len(X)), rng.random(len(X))
    found = survey(X, y, weight, TargetKind.NUMBERS)
    assert found.target_moment1 == pytest.approx(weight @ y, rel=1e-12)
    assert found.target_moment2 == pytest.approx(weight @ y**2, rel=1e-12)
    assert len(found.classes) == 0


def test_an_empty_block_changes_nothing():
    X, y = rows()
    whole = survey(X, y)
    for total in (whole + survey(X[:0], y[:0]), survey(X[:0], y[:0]) + whole):
        assert same(total, whole)


def same(a: Survey, b: Survey) -> bool:
    # Runs of classes are kept block by block, so they tell how rows were cut.
    summed = set(Survey.__dataclass_fields__) - {"class_runs"}
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in summed)


@given(st.permutations(range(6)), st.sampled_from(["strings", "integers"]))
def test_merging_counts_each_block_once_in_any_order(order, kind):
    rng = np.random.default_rng(4)
    parts = []
    for k in range(6):
        # Whole numbers, whose sums are exact; each block has other classes.
        X = rng.integers(-9, 9, (40, 3)).astype(float)
        y = rng.integers(k, k + 3, 40)
        y = np.char.add("class-", (y**3).astype(str)) if kind == "strings" else y
        parts.append((X, y, rng.integers(0, 4, 40).astype(float)))
    whole = survey(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    total = reduce(lambda a, b: a + b, (survey(*parts[k]) for k in order))
    assert same(total, whole)


@pytest.mark.parametrize(
    "labels", [["a", "b"], ["a", "b", "c"], [-3, 8], [1, 5, 9], [False, True], [0.5, 2.5]]
)
def test_labels_become_class_numbers_and_weights_get_their_factors(labels):
    rng = np.random.default_rng(5)
    codes = rng.integers(0, len(labels), 200)
    classes = np.array(labels)
    factors = np.arange(len(labels)) + 0.5
    weight = rng.random(200).astype(np.float32)
    target, none, _ = TargetEncoder(classes).encode(classes[codes], None)
    np.testing.assert_array_equal(target, codes)
    assert none is None
    target, found, _ = TargetEncoder(classes, factors).encode(classes[codes], weight)
    np.testing.assert_array_equal(target, codes)
    np.testing.assert_allclose(found, weight.astype(float) * factors[codes], rtol=1e-15)
    np.testing.assert_array_equal(
        TargetEncoder(classes, factors).encode(classes[codes], None)[1], factors[codes]
    )


def test_numbers_stay_numbers():
    y = np.array([1, 2, 3], dtype=">i4")
    target, weight, _ = TargetEncoder().encode(y, None)
    np.testing.assert_array_equal(target, [1.0, 2.0, 3.0])
    assert target.dtype == np.float64
    assert weight is None
