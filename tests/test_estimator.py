from __future__ import annotations

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dask_dml as dml
from dask_dml.data.layout import choose_grid
from dask_dml.errors import DataError, IncompatibleError
from dask_dml.linear_model import LinearRegression, LogisticRegression, Ridge
from dask_dml.report.history import FAULT_COLUMNS, HISTORY_COLUMNS
from dask_dml.runtime import FitEnded, FitStarted, RoundEnded

LOCAL = dml.Runtime(client="local")
N, P = 1000, 4
CHUNKS = (300, 300, 300, 100)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, P))
    y = (X @ [1.0, -2.0, 0.5, 0.0] + rng.logistic(size=N) > 0.3).astype(int)
    return X, y, rng.random(N)


@pytest.fixture
def in_blocks(monkeypatch):
    """NumPy input is cut like the dask arrays of these tests."""

    def cut(n_rows, n_columns, itemsize, *args, **kwargs):
        grid = choose_grid(n_rows, n_columns, itemsize)
        return type(grid)(CHUNKS, grid.column_chunks)

    monkeypatch.setattr("dask_dml.estimator.choose_grid", cut)


def classifier(**arguments):
    return LogisticRegression(runtime=LOCAL, **arguments)


def assert_same_fit(a, b):
    assert a.coef_.tobytes() == b.coef_.tobytes()
    assert np.asarray(a.intercept_).tobytes() == np.asarray(b.intercept_).tobytes()
    assert a.gap_ == b.gap_


def no_computing(dsk, keys, **kwargs):
    raise AssertionError("something was computed")


# -- kinds of input -------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("make", [LogisticRegression, Ridge])
def test_dask_arrays_give_the_bits_of_numpy_in_the_same_blocks(make, rows, in_blocks, weighted):
    X, y, weight = rows
    weight = weight if weighted else None
    plain = make(runtime=LOCAL).fit(X, y, weight)
    lazy = da.from_array(X, chunks=(CHUNKS, (3, 1)))
    other = None if weight is None else da.from_array(weight, chunks=500)
    model = make(runtime=LOCAL).fit(lazy, da.from_array(y, chunks=(CHUNKS,)), other)
    assert_same_fit(model, plain)
    assert_same_fit(make(runtime=LOCAL).fit(lazy, y, weight), plain)


def test_dask_arrays_of_unknown_lengths_are_fitted(rows, in_blocks):
    X, y, _ = rows
    lazy = da.from_array(X, chunks=(CHUNKS, P))
    known = lazy[:, 0] < 10.0
    model = classifier().fit(lazy[known], da.from_array(y, chunks=(CHUNKS,))[known])
    assert_same_fit(model, classifier().fit(X, y))


def test_the_caller_s_dask_array_is_left_as_it_was(rows):
    X, y, _ = rows
    lazy = da.from_array(X, chunks=(CHUNKS, P))
    masked = lazy[lazy[:, 0] < 10.0]
    classifier().fit(masked, da.from_array(y, chunks=(CHUNKS,)))
    assert np.isnan(masked.shape[0])


def test_sparse_input_gives_the_optimum_of_dense_input_whatever_its_form(rows):
    X, y, _ = rows
    X = np.where(np.abs(X) < 0.7, 0.0, X)
    dense = classifier().fit(X, y)
    plain = classifier().fit(scipy.sparse.csr_array(X), y)
    np.testing.assert_allclose(plain.coef_, dense.coef_, rtol=1e-9)
    for form in (scipy.sparse.csc_matrix, scipy.sparse.coo_array):
        model = classifier().fit(form(X), y)
        assert_same_fit(model, plain)
        np.testing.assert_array_equal(model.predict(form(X)), dense.predict(X))


def test_pandas_in_names_kept(rows):
    X, y, weight = rows
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = classifier().fit(frame, pd.Series(y), pd.Series(weight))
    assert list(model.feature_names_in_) == list("abcd")
    assert_same_fit(model, classifier().fit(X, y, weight))
    np.testing.assert_array_equal(model.predict(frame), model.predict(frame.copy()))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[list("dcba")])
    model.fit(X, y)
    assert not hasattr(model, "feature_names_in_")


def test_a_dask_dataframe_is_fitted_and_predicted(rows):
    X, y, weight = rows
    frame = pd.DataFrame(X, columns=list("abcd")).assign(late=y, weight=weight)
    lazy = dd.from_pandas(frame, npartitions=4)
    features = lazy[list("abcd")]
    model = classifier().fit(features, lazy["late"], lazy["weight"])
    expected = classifier().fit(frame[list("abcd")], frame["late"], frame["weight"])
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-9)
    assert list(model.feature_names_in_) == list("abcd")
    with dask.config.set(scheduler=no_computing):
        predicted = model.predict(features)
        with pytest.raises(ValueError, match="feature names"):
            model.predict(lazy[list("dcba")])
    np.testing.assert_array_equal(predicted.compute(), expected.predict(frame[list("abcd")]))


def test_a_dataset_and_its_path_are_fitted_with_their_weights_and_names(rows, tmp_path, in_blocks):
    X, y, weight = rows
    labels = np.where(y, "late", "early")
    names = ["dep", "dist", "wind", "age"]
    store = tmp_path / "flights.zarr"
    dataset = dml.write_dataset(
        store, X, labels, chunks=(300, P), feature_names=names, sample_weight=weight
    )
    plain = classifier().fit(X, labels, weight)
    for given in (dataset, store, str(store)):
        model = classifier().fit(given)
        assert_same_fit(model, plain)
        assert list(model.feature_names_in_) == names
        assert model.classes_.tolist() == ["early", "late"]
    predicted = model.predict(store)
    assert isinstance(predicted, da.Array)
    np.testing.assert_array_equal(predicted.compute(), plain.predict(X))
    assert float(model.score(store)) == pytest.approx(plain.score(X, labels, weight), rel=1e-12)
    doubled = classifier().fit(dataset, sample_weight=2.0 * weight)
    assert_same_fit(doubled, classifier().fit(X, labels, 2.0 * weight))


@pytest.mark.parametrize("layout", ["vertical", "hybrid"])
def test_a_dataset_in_parts_of_rows_is_refused_with_the_way_out(rows, tmp_path, layout):
    X, y, _ = rows
    chunks = (N, 2) if layout == "vertical" else (500, 2)
    dataset = dml.write_dataset(tmp_path / "d.zarr", X, y, layout=layout, chunks=chunks)
    with pytest.raises(IncompatibleError, match=rf"'{layout}'.*repartition.*'horizontal'"):
        classifier().fit(dataset)


# -- prediction -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
def test_prediction_of_dask_input_is_lazy_and_that_of_numpy(rows, n_classes):
    X, y, _ = rows
    y = np.array(["a", "b", "c"])[y + (n_classes == 3) * (X[:, 0] > 1)]
    model = classifier().fit(X, y)
    lazy = da.from_array(X, chunks=(CHUNKS, 2))
    for name in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        expected = getattr(model, name)(X)
        with dask.config.set(scheduler=no_computing):
            found = getattr(model, name)(lazy)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert found.chunks[0] == CHUNKS
        np.testing.assert_allclose(found.compute(), expected, rtol=1e-12) if (
            expected.dtype.kind == "f"
        ) else np.testing.assert_array_equal(found.compute(), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("make", [LogisticRegression, LinearRegression, Ridge])
def test_score_of_dask_input_is_that_of_numpy(make, rows, weighted):
    X, y, weight = rows
    weight = weight if weighted else None
    model = make(runtime=LOCAL).fit(X, y, weight)
    lazy = da.from_array(X, chunks=(CHUNKS, P))
    expected = model.score(X, y, weight)
    for target in (y, da.from_array(y, chunks=(CHUNKS,))):
        with dask.config.set(scheduler=no_computing):
            found = model.score(lazy, target, weight)
        assert float(found) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("make", [LogisticRegression, LinearRegression, Ridge])
def test_another_number_of_features_is_refused_at_predict(make, rows):
    X, y, _ = rows
    model = make(runtime=LOCAL).fit(X, y)
    message = f"X has 3 features, but {make.__name__} is expecting 4 features"
    for given in (X[:, :3], da.from_array(X[:, :3], chunks=(300, 3))):
        with pytest.raises(ValueError, match=message):
            model.predict(given)


@pytest.mark.parametrize("lazy", [False, True])
def test_prediction_before_fit_is_refused(rows, lazy):
    X = da.from_array(rows[0]) if lazy else rows[0]
    for make in (LogisticRegression, Ridge):
        with pytest.raises(NotFittedError):
            make().predict(X)
    with pytest.raises(NotFittedError):
        LogisticRegression().predict_proba(X)


# -- bad data -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["numpy", "dask", "sparse", "dataset", "dataframe"])
def test_a_value_that_cannot_be_fitted_is_named(rows, tmp_path, in_blocks, kind, value):
    X, y, _ = rows
    X[650, 2] = value
    names = ["a", "b", "wind", "d"]
    given, named = {
        "numpy": lambda: (X, False),
        "dask": lambda: (da.from_array(X, chunks=(CHUNKS, P)), False),
        "sparse": lambda: (scipy.sparse.csr_array(X), False),
        "dataset": lambda: (
            dml.write_dataset(tmp_path / "d.zarr", X, y, chunks=(300, P), feature_names=names),
            True,
        ),
        "dataframe": lambda: (pd.DataFrame(X, columns=names), True),
    }[kind]()
    with pytest.raises(DataError) as caught:
        classifier().fit(given, None if kind == "dataset" else y)
    message = str(caught.value)
    assert ("NaN" if np.isnan(value) else "infinity") in message
    assert "block 2" in message
    assert "column 2" in message
    assert "row 50 of the block" in message
    assert ("'wind'" in message) == named


@pytest.mark.parametrize("lazy", [False, True])
def test_bad_targets_and_weights_are_named(rows, lazy):
    X, y, weight = rows

    def given(values):
        return da.from_array(values, chunks=300) if lazy else values

    features = da.from_array(X, chunks=(300, P)) if lazy else X
    weight[301] = -1.0
    with pytest.raises(DataError, match=r"sample_weight\[\d+\] of block \d is -1.0"):
        classifier().fit(features, given(y), given(weight))
    bad = y.astype(float)
    bad[7] = np.nan
    for make in (LogisticRegression, Ridge):
        with pytest.raises(ValueError, match="NaN"):
            make(runtime=LOCAL).fit(features, given(bad))
    with pytest.raises(ValueError, match=r"inconsistent numbers|rows|samples"):
        classifier().fit(features, given(y[:-1]))
    with pytest.raises(ValueError, match=r"rows|expected \(1000,\)"):
        classifier().fit(features, given(y), given(np.ones(999)))
    with pytest.raises(ValueError, match="target y is None"):
        classifier().fit(features)


def test_columns_that_are_not_numbers_are_refused(rows):
    X, y, _ = rows
    frame = pd.DataFrame(X, columns=list("abcd")).assign(carrier="UA", b=True)
    with pytest.raises(DataError, match="'carrier'") as caught:
        classifier().fit(dd.from_pandas(frame, npartitions=2), y)
    assert "'b'" not in str(caught.value)
    for odd in (X.astype(str), X + 1j):
        with pytest.raises(DataError, match="real numbers are needed"):
            classifier().fit(da.from_array(odd, chunks=(300, P)), y)


def test_a_value_that_cannot_be_predicted_from_is_refused(rows):
    X, y, _ = rows
    model = classifier().fit(X, y)
    X[777, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.predict(X)
    with pytest.raises(DataError, match="first at row 177 of its block"):
        model.predict_proba(da.from_array(X, chunks=(300, P))).compute()


def test_a_failed_fit_leaves_the_fitted_model_usable(rows):
    X, y, _ = rows
    model = classifier().fit(X, y)
    before = model.predict(X)
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(DataError):
        model.fit(bad, y)
    np.testing.assert_array_equal(model.predict(X), before)


def test_inputs_are_not_changed(rows):
    X, y, weight = rows
    copies = [array.copy() for array in (X, y, weight)]
    for array in (X, y, weight):
        array.flags.writeable = False
    classifier(class_weight="balanced").fit(X, y, weight)
    LinearRegression(runtime=LOCAL).fit(X, y, weight)
    for array, copy in zip((X, y, weight), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# -- what a fit leaves behind ---------------------------------------------------------------


@pytest.mark.parametrize("solver", ["newton", "lbfgs", "gd"])
def test_history_tells_the_rounds(rows, solver):
    X, y, _ = rows
    model = classifier(solver=solver).fit(X, y)
    history = model.history_
    assert dict(history.dtypes.items()) == {
        name: np.dtype(dtype) for name, dtype in HISTORY_COLUMNS.items()
    }
    assert history["round"].tolist() == list(range(len(history)))
    # One pass is the survey.
    assert history["passes"].tolist() == [2.0 + k for k in range(len(history))]
    assert model.n_passes_ == 1.0 + len(history)
    assert history["gap"].iloc[-1] == model.gap_
    assert history["n_iter"].iloc[-1] == model.n_iter_
    assert history["objective"].iloc[0] > history["objective"].iloc[-1] > 0.0
    assert set(history["order"]) == ({2} if solver == "newton" else {1, 2})
    assert (history["seconds"] >= 0.0).all()
    assert (history["bytes"] == 0).all()
    assert (history["workers"] == 1).all()
    assert (history["faults"] == 0).all()
    assert tuple(model.faults_.columns) == FAULT_COLUMNS
    assert len(model.faults_) == 0


def test_a_second_run_gives_the_same_bits(rows):
    X, y, weight = rows
    for solver in ("newton", "lbfgs", "gd"):
        fits = [classifier(solver=solver).fit(X, y, weight) for _ in range(2)]
        assert_same_fit(*fits)
        np.testing.assert_array_equal(*(f.history_["objective"] for f in fits))


def test_callbacks_hear_every_event_in_order(rows):
    X, y, _ = rows
    heard = []
    model = classifier(callbacks=[heard.append]).fit(X, y)
    kinds = [type(event) for event in heard]
    assert kinds == [FitStarted, *[RoundEnded] * len(model.history_), FitEnded]
    run = heard[0].run
    assert all(event.run == run for event in heard)
    assert (run.n_rows, run.n_columns, run.solver) == (N, P, "newton")
    other = []
    model.set_params(callbacks=[other.append]).fit(X, y)
    assert other[0].run.run_id != run.run_id


def test_an_error_in_a_callback_ends_the_fit_and_is_not_hidden(rows):
    X, y, _ = rows

    def stop(event):
        if isinstance(event, RoundEnded) and event.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier(callbacks=[stop]).fit(X, y)


# -- as scikit-learn uses estimators --------------------------------------------------------


def test_a_clone_has_the_arguments_and_not_the_fit(rows):
    X, y, _ = rows
    model = LogisticRegression(C=3.0, class_weight={0: 2.0}, runtime=LOCAL).fit(X, y)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert copy.runtime is LOCAL
    assert not hasattr(copy, "coef_")


def test_grid_search_in_a_pipeline(rows):
    X, y, _ = rows
    pipeline = make_pipeline(StandardScaler(), classifier())
    search = GridSearchCV(pipeline, {"logisticregression__C": [1e-4, 1.0]}, cv=3)
    search.fit(pd.DataFrame(X, columns=list("abcd")), y)
    assert search.best_params_ == {"logisticregression__C": 1.0}
    assert search.best_score_ > 0.7
    assert cross_val_score(Ridge(runtime=LOCAL), X, X[:, 0] + y, cv=3).min() > 0.5


def test_sample_weight_is_routed(rows):
    X, y, weight = rows
    with sklearn.config_context(enable_metadata_routing=True):
        step = classifier().set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, step)
        pipeline.fit(X, y, sample_weight=weight)
        scaled = StandardScaler().fit_transform(X)
        assert_same_fit(pipeline[-1], classifier().fit(scaled, y, weight))
        step = classifier().set_fit_request(sample_weight=True)
        step.set_score_request(sample_weight=False)
        GridSearchCV(step, {"C": [1.0]}, cv=2).fit(X, y, sample_weight=weight)


def test_a_scaler_that_gives_frames_passes_the_names_on(rows):
    X, y, _ = rows
    pipeline = make_pipeline(StandardScaler(), classifier()).set_output(transform="pandas")
    pipeline.fit(pd.DataFrame(X, columns=list("abcd")), y)
    assert list(pipeline[-1].feature_names_in_) == list("abcd")


def test_a_runtime_is_a_client_local_or_none():
    with pytest.raises(TypeError, match="'local' or None, got int"):
        dml.Runtime(client=3)
