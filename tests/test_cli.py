"""What the commands print, write and return."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from click.testing import CliRunner
from sklearn import metrics

import dask_dml as dml
from dask_dml.cli import main
from dask_dml.linear_model import (
    ElasticNet,
    LinearRegression,
    LinearSVR,
    LogisticRegression,
    QuantileRegressor,
    Ridge,
)

COMMANDS = ("demo", "ingest", "info", "fit", "predict", "evaluate", "chaos", "faults")
LABELS = np.array(["early", "late", "on time"], dtype=object)


@pytest.fixture(scope="module")
def data():
    """Features, labels of two classes, labels of three, a number, ids."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(600, 4)), columns=list("abcd"))
    score = X.to_numpy() @ [1.0, -2.0, 0.5, 0.0]
    late = np.where(score + rng.logistic(size=600) > 0, "late", "on time")
    three = LABELS[np.digitize(score + rng.normal(size=600), [-1.0, 1.0])]
    return X, late, three, 3.0 + score + rng.normal(size=600), np.arange(1000, 1600)


@pytest.fixture(scope="module")
def stores(data, tmp_path_factory):
    """Datasets and the models fitted on them, by the kind of target."""
    folder = tmp_path_factory.mktemp("stores")
    X, late, three, number, ids = data
    weight = np.random.default_rng(1).uniform(0.5, 2.0, 600)
    dml.write_dataset(folder / "two.zarr", X, late, ids=ids, target="punctual", chunks=150)
    dml.write_dataset(folder / "three.zarr", X, three, chunks=150)
    dml.write_dataset(folder / "number.zarr", X, number, sample_weight=weight, chunks=150)
    for name, model in (
        ("two", LogisticRegression()),
        ("three", LogisticRegression()),
        ("number", LinearRegression()),
    ):
        model.fit(folder / f"{name}.zarr").save(folder / f"{name}-model.zarr")
    return folder


def call(*arguments, status=0):
    """Run a command in this process; its result."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def call_json(*arguments):
    return json.loads(call(*arguments, "--json").stdout)


def dask(*arguments, **settings):
    """Run Dask's own program in a process of its own."""
    program = Path(sys.executable).with_name("dask")
    return subprocess.run(
        [program, "dml", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings},
    )


def assert_one_line(text):
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    assert text.startswith("Error: ")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(command, option):
    text = call(command, option).stdout
    assert text.startswith("Usage:")
    assert "--json" in text


def test_the_commands_are_those():
    assert set(main.list_commands(click.Context(main))) == set(COMMANDS)


class TestIngest:
    @pytest.fixture
    def csv(self, data, tmp_path):
        X, late, _, number, ids = data
        frame = X.assign(
            carrier=np.where(X["a"] > 0, "AA", "UA"), id=ids, w=1.0 + number**2, late=late
        )
        frame.to_csv(tmp_path / "all.csv", index=False)
        frame[:300].to_csv(tmp_path / "part-1.csv", index=False)
        frame[300:].to_csv(tmp_path / "part-2.csv", index=False)
        return tmp_path

    def test_all_options(self, csv, data):
        found = call_json(
            "ingest", csv / "all.csv", csv / "out.zarr", "--target", "late", "--drop", "d",
            "--one-hot", "carrier", "--ids", "id", "--sample-weight", "w", "--missing", "drop",
            "--dtype", "float32", "--format", "csv", "--layout", "hybrid", "--chunks", "200,2",
        )  # fmt: skip
        assert found["feature_names"] == ["a", "b", "c", "carrier=AA", "carrier=UA"]
        assert (found["n_rows"], found["grid"], found["block"]) == (600, [3, 3], [200, 2])
        assert (found["dtype"], found["layout"]) == ("float32", "hybrid")
        assert found["classes"] == ["late", "on time"]
        assert found["has_ids"]
        assert found["has_sample_weight"]
        ds = dml.open_dataset(csv / "out.zarr")
        np.testing.assert_array_equal(
            ds.X[:, :3].compute(), data[0][["a", "b", "c"]].astype(np.float32)
        )

    def test_categories(self, csv):
        found = call_json(
            "ingest", csv / "all.csv", csv / "codes.zarr", "--target", "late", "--drop", "d",
            "--drop", "id", "--drop", "w", "--categorical", "carrier", "--missing", "keep",
        )  # fmt: skip
        assert (found["storage"], found["values"]) == ("categorical", None)
        assert found["feature_names"][-2:] == ["carrier=AA", "carrier=UA"]
        assert found["bytes"] == 600 * (3 * 8 + 4)

    @pytest.mark.parametrize("sources", [["part-*.csv"], ["part-1.csv", "part-2.csv"]])
    def test_several_files(self, csv, data, sources):
        options = ["--target", "late", "--drop", "carrier", "--chunks", "100"]
        call("ingest", *[csv / source for source in sources], csv / "out.zarr", *options)
        ds = dml.open_dataset(csv / "out.zarr")
        np.testing.assert_array_equal(ds.y.compute(), data[1])
        assert ds.grid.shape == (6, 1)

    def test_progress_goes_to_stderr(self, csv):
        options = ["--target", "late", "--one-hot", "carrier"]
        result = call("ingest", csv / "all.csv", csv / "out.zarr", *options)
        assert f"reading {csv / 'all.csv'}" in result.stderr
        assert "reading" not in result.stdout
        assert "n rows" in result.stdout

    def test_an_existing_store_stays_without_overwrite(self, csv):
        arguments = ["ingest", csv / "all.csv", csv / "out.zarr", "--target", "late"]
        arguments += ["--one-hot", "carrier"]
        call(*arguments)
        failed = call(*arguments, status=1)
        assert "use --overwrite" in failed.stderr
        call(*arguments, "--overwrite")

    def test_an_unknown_target_is_named(self, csv):
        failed = call("ingest", csv / "all.csv", csv / "out.zarr", "--target", "lat", status=1)
        assert "'lat'; did you mean 'late'?" in failed.stderr
        assert not (csv / "out.zarr").exists()

    @pytest.mark.parametrize("chunks", ["many", "1,2,3", "-5", "1.5"])
    def test_bad_chunks_are_bad_usage(self, csv, chunks):
        failed = call("ingest", csv / "all.csv", csv / "o.zarr", f"--chunks={chunks}", status=2)
        assert "is not auto, ROWS or ROWS,COLUMNS" in failed.stderr


class TestInfo:
    def test_a_dataset(self, stores, data):
        found = call_json("info", stores / "two.zarr")
        assert (found["n_rows"], found["n_columns"], found["dtype"]) == (600, 4, "float64")
        assert (found["grid"], found["block_bytes"], found["bytes"]) == ([4, 1], 4800, 19200)
        assert (found["layout"], found["target"]) == ("horizontal", "punctual")
        assert found["sample_rows"] == 600
        assert found["target_shares"]["late"] == pytest.approx(np.mean(data[1] == "late"))
        columns = pd.DataFrame(found["columns"])
        assert columns["column"].tolist() == ["a", "b", "c", "d"]
        np.testing.assert_allclose(columns["mean"], data[0].mean(axis=0))
        np.testing.assert_allclose(columns["std"], data[0].std(ddof=0))
        assert (columns["missing"] == 0).all()

    def test_a_dataset_of_numbers(self, stores, data):
        found = call_json("info", stores / "number.zarr")
        assert found["classes"] is None
        assert found["target_mean"] == pytest.approx(data[3].mean())

    def test_nan_is_null(self, tmp_path):
        X = np.array([[1.0, np.nan], [2.0, np.nan]])
        dml.write_dataset(tmp_path / "a.zarr", X, [0.5, 1.5])
        found = call_json("info", tmp_path / "a.zarr")
        assert found["columns"][1]["mean"] is None
        assert found["columns"][1]["missing"] == 1.0

    def test_a_sparse_dataset(self, tmp_path):
        X = scipy.sparse.csr_array([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, np.nan, 3.0]])
        dml.write_dataset(tmp_path / "a.zarr", X, [0.5, 1.5, 1.0])
        found = call_json("info", tmp_path / "a.zarr")
        assert (found["storage"], found["values"], found["density"]) == ("sparse", 4, 4 / 9)
        assert found["bytes"] == 4 * 12 + 4 * 4
        columns = pd.DataFrame(found["columns"])
        np.testing.assert_allclose(columns["mean"], [0.0, 1.0, 4 / 3])
        np.testing.assert_allclose(columns["std"], [0.0, 1.0, np.std([0, 1, 3])])
        assert columns[["min", "max"]].to_numpy().tolist() == [[0, 0], [0, 2], [0, 3]]
        np.testing.assert_allclose(columns["missing"], [0.0, 1 / 3, 0.0])

    def test_a_model(self, stores):
        found = call_json("info", stores / "two-model.zarr")
        assert found["estimator"] == "LogisticRegression"
        assert found["feature_names"] == ["a", "b", "c", "d"]

    def test_as_text(self, stores):
        lines = call("info", stores / "two.zarr").stdout.splitlines()
        assert "classes            late, on time" in lines
        assert any(line.split()[:2] == ["column", "mean"] for line in lines)

    def test_what_is_not_there(self, tmp_path):
        assert_one_line(call("info", tmp_path / "none.zarr", status=1).stderr)


class TestFit:
    def test_the_model_is_that_of_the_estimator(self, stores, tmp_path):
        found = call_json(
            "fit", stores / "two.zarr", "--model", tmp_path / "m.zarr", "--C", "0.5",
            "--class-weight", "balanced", "--tol", "1e-6", "--max-iter", "50", "--solver", "newton",
        )  # fmt: skip
        model = dml.load_model(tmp_path / "m.zarr")
        expected = LogisticRegression(
            C=0.5, class_weight="balanced", tol=1e-6, max_iter=50, solver="newton"
        ).fit(stores / "two.zarr")
        assert model.coef_.tobytes() == expected.coef_.tobytes()
        assert model.get_params() == expected.get_params()
        assert found["stopped"] == "converged"
        assert found["rounds"] == len(expected.history_)
        assert found["objective"] == expected.history_["objective"].iloc[-1]
        assert found["classes"] == ["late", "on time"]
        assert found["faults"] == []

    def test_the_same_command_goes_on_from_its_checkpoint(self, stores, tmp_path):
        arguments = (
            "fit", stores / "two.zarr", "--model", tmp_path / "m.zarr", "--solver", "lbfgs",
            "--checkpoint", tmp_path / "checkpoint", "--overwrite",
        )  # fmt: skip
        first, again = call_json(*arguments), call_json(*arguments)
        assert first["faults"] == []
        assert [fault["kind"] for fault in again["faults"]] == ["checkpoint-resumed"]
        assert again["objective"] == first["objective"]

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["ridge", "--alpha", "2.5"], Ridge(alpha=2.5)),
            (["linear-regression", "--no-intercept"], LinearRegression(fit_intercept=False)),
            (["elastic-net", "--alpha", "0.1", "--l1-ratio", "0.7"], ElasticNet(0.1, l1_ratio=0.7)),
            (["quantile-regression", "--quantile", "0.3"], QuantileRegressor(quantile=0.3)),
            (["linear-svr", "--C", "0.5", "--epsilon", "0.2"], LinearSVR(C=0.5, epsilon=0.2)),
        ],
    )
    def test_regressors(self, stores, tmp_path, options, expected):
        model = tmp_path / "m.zarr"
        call("fit", stores / "number.zarr", "--model", model, "--estimator", *options)
        found = dml.load_model(model)
        assert type(found) is type(expected)
        np.testing.assert_array_equal(found.coef_, expected.fit(stores / "number.zarr").coef_)

    def test_a_line_a_round_goes_to_stderr(self, stores, tmp_path):
        result = call("fit", stores / "two.zarr", "--model", tmp_path / "m.zarr")
        assert "round 0: objective" in result.stderr
        assert "round 0" not in result.stdout
        assert "stopped" in result.stdout

    @pytest.mark.parametrize(
        ("estimator", "option", "value"),
        [
            ("ridge", "--C", "1"),
            ("logistic-regression", "--alpha", "1"),
            ("linear-regression", "--class-weight", "balanced"),
        ],
    )
    def test_an_option_of_another_estimator_is_bad_usage(
        self, stores, tmp_path, estimator, option, value
    ):
        failed = call(
            "fit", stores / "two.zarr", "--model", tmp_path / "m.zarr",
            "--estimator", estimator, option, value, status=2,
        )  # fmt: skip
        assert f"{option} is not an option of {estimator}" in failed.stderr

    @pytest.mark.parametrize(
        "options",
        [
            ["--C", "0"],
            ["--tol", "-1"],
            ["--max-iter", "0"],
            ["--solver", "magic"],
            ["--workers", "0"],
            ["--scheduler", "tcp://a:1", "--workers", "2"],
            ["--unknown"],
        ],
    )
    def test_bad_usage(self, stores, tmp_path, options):
        call("fit", stores / "two.zarr", "--model", tmp_path / "m.zarr", *options, status=2)

    def test_an_existing_model_is_refused_before_the_fit(self, stores):
        failed = call("fit", stores / "two.zarr", "--model", stores / "two-model.zarr", status=1)
        assert_one_line(failed.stderr)
        assert "use --overwrite" in failed.stderr

    @pytest.mark.filterwarnings("default")
    def test_stopping_early_is_a_warning_of_one_line(self, stores, tmp_path):
        arguments = ["fit", stores / "two.zarr", "--model", tmp_path / "m.zarr", "--max-iter", "1"]
        result = call(*arguments, "--json")
        assert json.loads(result.stdout)["stopped"] != "converged"
        warned = [line for line in result.stderr.splitlines() if line.startswith("Warning:")]
        assert len(warned) == 1
        assert "raise max_iter" in warned[0]

    def test_data_that_cannot_be_fitted(self, tmp_path):
        dml.write_dataset(tmp_path / "a.zarr", np.eye(3), [1, 1, 1])
        failed = call("fit", tmp_path / "a.zarr", "--model", tmp_path / "m.zarr", status=1)
        assert_one_line(failed.stderr)
        assert "one class" in failed.stderr
        assert not (tmp_path / "m.zarr").exists()


class TestPredict:
    @pytest.fixture
    def model(self, stores):
        return dml.load_model(stores / "two-model.zarr")

    def arguments(self, stores, out, name="two"):
        return ["predict", stores / f"{name}-model.zarr", stores / f"{name}.zarr", "--out", out]

    @pytest.mark.parametrize(
        ("suffix", "read"), [(".csv", pd.read_csv), (".parquet", pd.read_parquet)]
    )
    def test_a_table(self, stores, data, model, tmp_path, suffix, read):
        out = tmp_path / f"p{suffix}"
        found = call_json(*self.arguments(stores, out), "--proba")
        assert found == {"predictions": str(out), "n_rows": 600}
        frame = read(out)
        assert list(frame) == ["id", "prediction", "proba_late", "proba_on time"]
        np.testing.assert_array_equal(frame["id"], data[4])
        np.testing.assert_array_equal(frame["prediction"], model.predict(data[0]))
        np.testing.assert_allclose(
            frame[["proba_late", "proba_on time"]], model.predict_proba(data[0])
        )

    def test_arrays(self, stores, data, model, tmp_path):
        call(*self.arguments(stores, tmp_path / "p.npy"), "--proba")
        np.testing.assert_allclose(np.load(tmp_path / "p.npy"), model.predict_proba(data[0]))
        call(*self.arguments(stores, tmp_path / "n.npy", "number"))
        expected = dml.load_model(stores / "number-model.zarr").predict(data[0])
        np.testing.assert_allclose(np.load(tmp_path / "n.npy"), expected)

    def test_text_does_not_go_to_npy(self, stores, tmp_path):
        failed = call(*self.arguments(stores, tmp_path / "p.npy"), status=1)
        assert "use .csv or .parquet" in failed.stderr
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_file_stays_without_overwrite(self, stores, tmp_path):
        out = tmp_path / "p.csv"
        out.write_text("mine")
        assert_one_line(call(*self.arguments(stores, out), status=1).stderr)
        assert out.read_text() == "mine"
        call(*self.arguments(stores, out), "--overwrite")
        assert len(pd.read_csv(out)) == 600

    def test_a_failure_leaves_the_old_file(self, stores, tmp_path):
        out = tmp_path / "p.npy"
        out.write_text("mine")
        call(*self.arguments(stores, out), "--overwrite", status=1)
        assert [path.name for path in tmp_path.iterdir()] == ["p.npy"]
        assert out.read_text() == "mine"

    def test_an_unknown_suffix_is_bad_usage(self, stores, tmp_path):
        failed = call(*self.arguments(stores, tmp_path / "p.txt"), status=2)
        assert "must end in .csv, .parquet, .npy" in failed.stderr

    def test_a_regressor_has_no_probabilities(self, stores, tmp_path):
        call(*self.arguments(stores, tmp_path / "p.csv", "number"), "--proba", status=2)

    def test_columns_in_another_order_are_refused(self, stores, data, tmp_path):
        dml.write_dataset(tmp_path / "a.zarr", data[0][list("abdc")], data[1])
        arguments = [stores / "two-model.zarr", tmp_path / "a.zarr", "--out", tmp_path / "p.csv"]
        failed = call("predict", *arguments, status=1)
        assert "column 2 of" in failed.stderr
        assert "is 'd', and that of the fit was 'c'" in failed.stderr


class TestEvaluate:
    def evaluate(self, stores, name):
        return call_json("evaluate", stores / f"{name}-model.zarr", stores / f"{name}.zarr")

    def test_two_classes(self, stores, data):
        model = dml.load_model(stores / "two-model.zarr")
        proba = model.predict_proba(data[0])
        assert self.evaluate(stores, "two") == pytest.approx(
            {
                "n_rows": 600,
                "log_loss": metrics.log_loss(data[1], proba),
                "accuracy": metrics.accuracy_score(data[1], model.predict(data[0])),
                "roc_auc": metrics.roc_auc_score(data[1] == "on time", proba[:, 1]),
                "weighted": False,
            }
        )

    def test_three_classes(self, stores, data):
        model = dml.load_model(stores / "three-model.zarr")
        found = self.evaluate(stores, "three")
        assert "roc_auc" not in found
        assert found["log_loss"] == pytest.approx(
            metrics.log_loss(data[2], model.predict_proba(data[0]), labels=LABELS)
        )
        assert found["accuracy"] == pytest.approx(model.score(data[0], data[2]))

    def test_weighted_numbers(self, stores, data):
        model = dml.load_model(stores / "number-model.zarr")
        weight = dml.open_dataset(stores / "number.zarr").sample_weight.compute()
        found = self.evaluate(stores, "number")
        predicted = model.predict(data[0])
        assert found["weighted"] is True
        assert found["r2"] == pytest.approx(
            metrics.r2_score(data[3], predicted, sample_weight=weight)
        )
        assert found["mae"] == pytest.approx(
            metrics.mean_absolute_error(data[3], predicted, sample_weight=weight)
        )

    def test_labels_that_the_model_does_not_know(self, stores):
        failed = call("evaluate", stores / "two-model.zarr", stores / "three.zarr", status=1)
        assert "['early'], which the model does not know" in failed.stderr.splitlines()[-1]

    def test_a_dataset_in_place_of_a_model(self, stores):
        failed = call("evaluate", stores / "two.zarr", stores / "two.zarr", status=1)
        assert_one_line(failed.stderr)


class TestProgram:
    def test_a_whole_path_on_two_workers(self, stores, tmp_path):
        """Dask's own program, with a cluster of its own: the same bits as without."""
        model = tmp_path / "m.zarr"
        done = dask("fit", stores / "two.zarr", "--model", model, "--workers", "2", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["stopped"] == "converged"
        assert "Traceback" not in done.stderr
        coef = dml.load_model(stores / "two-model.zarr").coef_
        assert dml.load_model(model).coef_.tobytes() == coef.tobytes()

    def test_a_failure_is_one_line_and_status_1(self, tmp_path):
        done = dask("info", tmp_path / "none.zarr")
        assert (done.returncode, done.stdout) == (1, "")
        assert_one_line(done.stderr)

    def test_bad_usage_is_status_2(self):
        done = dask("fit")
        assert (done.returncode, done.stdout) == (2, "")
        assert "Usage: dask dml fit" in done.stderr

    def test_a_scheduler_that_is_not_there(self, stores, tmp_path):
        done = dask(
            "fit", stores / "two.zarr", "--model", tmp_path / "m.zarr",
            "--scheduler", "tcp://127.0.0.1:9",
            DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="1s",
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("Error: ")
        assert "tcp://127.0.0.1:9" in done.stderr
        assert "Traceback" not in done.stderr

    def test_an_interrupt_is_status_1(self, monkeypatch, tmp_path):
        def interrupt(store):
            raise KeyboardInterrupt

        monkeypatch.setattr("dask_dml.commands.open_dataset", interrupt)
        result = call("info", tmp_path, status=1)
        assert "Aborted!" in result.stderr
