"""What the cluster gives is what this process gives, bit for bit, whatever the data comes as."""

from __future__ import annotations

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster

import dask_dml as dml
from dask_dml.datasets.synthetic import higgs_like
from dask_dml.linear_model import Lasso, LassoCV, LogisticRegression, LogisticRegressionCV, Ridge

pytestmark = pytest.mark.usefixtures("quiet")

MODELS = {
    "binary": (LogisticRegression(), "two"),
    "multinomial": (LogisticRegression(C=0.5), "three"),
    "balanced": (LogisticRegression(class_weight="balanced", solver="lbfgs"), "three"),
    "ridge": (Ridge(alpha=2.0), "number"),
    "absolute values": (LogisticRegression(C=0.1, l1_ratio=1.0), "three"),
    "lasso, cross-validated": (LassoCV(alphas=3, cv=3), "number"),
    "cross-validated": (LogisticRegressionCV(Cs=3, cv=3, scoring="neg_log_loss"), "two"),
}


@pytest.fixture(params=MODELS)
def model_and_target(request, problem):
    model, target = MODELS[request.param]
    return model, getattr(problem, target)


def fit(model, runtime, *data):
    return type(model)(**model.get_params() | {"runtime": runtime}).fit(*data)


@pytest.mark.usefixtures("small_blocks")
def test_numpy_is_sent_to_the_workers(client, problem, local, model_and_target, same_bits):
    model, y = model_and_target
    fitted = fit(model, None, problem.X, y)
    same_bits(fitted, fit(model, local, problem.X, y))
    assert set(fitted.history_["workers"]) == {2}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("persisted", [False, True], ids=["lazy", "persisted"])
def test_dask_arrays(client, problem, local, model_and_target, same_bits, persisted):
    model, y = model_and_target
    data = problem.lazy(problem.X), problem.lazy(y), problem.lazy(problem.weight)
    if persisted:
        data = dask.persist(*data)
    fitted = fit(model, None, *data)
    same_bits(fitted, fit(model, local, problem.X, y, problem.weight))


def test_blocks_that_are_not_aligned(client, problem, local, same_bits):
    columns = [problem.X, problem.three, problem.weight]
    columns[1] = np.unique(columns[1], return_inverse=True)[1].astype(np.float64)
    aligned = [problem.lazy(values) for values in columns]

    def to_odd_address(block):
        buffer = np.empty(block.nbytes + 16, dtype=np.uint8)
        offset = 5 + (-buffer.ctypes.data) % 8
        moved = buffer[offset : offset + block.nbytes].view(block.dtype).reshape(block.shape)
        moved[...] = block
        return moved

    data = client.persist(
        [
            values.map_blocks(to_odd_address, dtype=values.dtype, meta=np.empty((0,) * values.ndim))
            for values in aligned
        ]
    )
    offsets = [
        values.map_blocks(lambda block: block.ctypes.data % 8 + 0 * block) for values in data
    ]
    assert all(np.unique(values.compute()) == [5] for values in offsets)
    fitted = LogisticRegression().fit(*data)
    same_bits(fitted, LogisticRegression(runtime=local).fit(*aligned))


@pytest.mark.usefixtures("small_blocks")
def test_one_form_for_all_memory_orders_and_dtypes(client, problem, local, same_bits):
    X = problem.X.astype(np.float32)
    y = problem.lazy(problem.two)
    expected = LogisticRegression(runtime=local).fit(X, problem.two)
    wide = np.zeros((len(X), 2 * X.shape[1]), dtype=np.float32)
    wide[:, ::2] = X
    forms = {
        "Fortran order": problem.lazy(X).map_blocks(np.asfortranarray),
        "byte-swapped": problem.lazy(X.astype(">f4")),
        "strided": problem.lazy(wide)[:, ::2],
    }
    for name, form in forms.items():
        for data in (form, form.persist()):
            fitted = LogisticRegression().fit(data, y)
            assert np.array_equal(fitted.coef_, expected.coef_), name


def test_many_columns_of_which_few_are_needed(client, local, same_bits):
    rng = np.random.default_rng(5)
    X = da.from_array(rng.normal(size=(400, 170)), chunks=(60, -1))
    y = X[:, :4].sum(axis=1) + da.from_array(rng.normal(size=400), chunks=60)
    for model, target in ((Lasso(0.1), y), (LogisticRegression(0.1, l1_ratio=1.0), y > 0.0)):
        same_bits(fit(model, None, X, target), fit(model, local, X, target))


def test_columns_in_several_chunks_are_joined(client, problem, local, same_bits):
    X = da.from_array(problem.X, chunks=(128, 2))
    y = problem.lazy(problem.two, rows=100)
    whole = problem.lazy(problem.X), problem.lazy(problem.two)
    same_bits(LogisticRegression().fit(X, y), LogisticRegression(runtime=local).fit(*whole))


@pytest.mark.parametrize(
    "rows",
    [(1, 499, 2, 498), (997, 1, 1, 1), (8,) * 125, (1_000,)],
    ids=["ragged", "one large", "many tiny", "one block"],
)
def test_blocks_of_any_sizes(client, problem, local, same_bits, rows):
    data = problem.lazy(problem.X, rows), problem.lazy(problem.two, rows)
    same_bits(LogisticRegression().fit(*data), LogisticRegression(runtime=local).fit(*data))


@pytest.mark.parametrize("partitions", [3, 7])
def test_dataframes_of_unknown_lengths(client, problem, local, same_bits, partitions):
    frame = pd.DataFrame(problem.X, columns=list("abcdef")).assign(
        late=problem.two, weight=problem.weight
    )
    frame = frame[frame["a"] > -0.2]
    # Lengths are not known after a filter.
    lazy = dd.from_pandas(frame, npartitions=partitions)
    lazy = lazy[lazy["b"] > -10.0]
    columns = list("abcdef")
    fitted = LogisticRegression().fit(lazy[columns], lazy["late"], lazy["weight"])
    expected = LogisticRegression(runtime=local).fit(lazy[columns], lazy["late"], lazy["weight"])
    same_bits(fitted, expected)
    assert list(fitted.feature_names_in_) == columns


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("given", ["dataset", "path"])
def test_a_store_is_read_by_the_workers(client, problem, local, same_bits, tmp_path, given):
    dataset = dml.write_dataset(
        tmp_path / "rows.zarr",
        problem.X,
        problem.three,
        chunks=(128, 6),
        sample_weight=problem.weight,
    )
    fitted = LogisticRegression().fit(dataset if given == "dataset" else dataset.url)
    same_bits(
        fitted, LogisticRegression(runtime=local).fit(problem.X, problem.three, problem.weight)
    )
    assert list(fitted.classes_) == ["a", "b", "c"]


@pytest.mark.parametrize(("n_workers", "threads"), [(1, 1), (3, 1), (1, 2)])
def test_any_number_of_workers_and_threads(problem, local, same_bits, n_workers, threads):
    data = problem.lazy(problem.X), problem.lazy(problem.three)
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=threads,
            processes=False,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster),
    ):
        fitted = LogisticRegression().fit(*data)
    same_bits(fitted, LogisticRegression(runtime=local).fit(*data))
    assert set(fitted.history_["workers"]) == {n_workers}


def test_predictions_stay_lazy_and_equal(client, problem, local):
    data = problem.lazy(problem.X), problem.lazy(problem.three)
    fitted = LogisticRegression().fit(*data)
    lazy = fitted.predict_proba(data[0])
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), fitted.predict_proba(problem.X), rtol=1e-14)
    assert fitted.score(*data).compute() == fitted.score(problem.X, problem.three)


def test_many_rows_which_start_from_a_sample(client, local, same_bits):
    X, y = higgs_like(160_000, chunk_rows=20_000)
    X, y = dask.persist(X, y)
    fitted = fit(LogisticRegression(), None, X, y)
    assert any(what.endswith("% of the rows") for what in fitted.history_["what"])
    same_bits(fitted, fit(LogisticRegression(), local, X, y))
