"""The demo does what it says, on the first days of the year."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import dask_dml as dml
from dask_dml import demo
from dask_dml.cli import main
from dask_dml.errors import StoreExistsError

FILES = {"train.zarr", "test.zarr", "report.json", "model.zarr", "flights.png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def result(folder, lines):
    return demo.run(folder, 20, lines.append)  # few enough to be fitted in one process


def test_a_worker_was_killed_in_mid_fit(result):
    fault = result.fault
    assert fault is not None
    assert 0 < fault.round < result.fit.rounds
    assert 0 < fault.recomputed_blocks <= result.n_blocks
    assert fault.cost_s >= 0


def test_the_coefficients_are_those_of_the_undisturbed_fit(result):
    assert result.n_coefficients == result.n_columns + 1
    assert result.n_same_bits == result.n_coefficients
    assert result.fit.rounds == result.undisturbed.rounds
    assert result.fit.gap == result.undisturbed.gap


def test_the_optimum_is_that_of_scikit_learn(result):
    assert result.fit.gap < 1e-8
    assert result.objective == pytest.approx(result.fit.objective, rel=1e-7)
    assert result.objective <= result.peer.objective * (1 + 1e-8)
    assert result.peer.largest_difference < 1e-4


def test_the_model_beats_the_constant_on_held_out_days(result):
    assert result.held_out["n_rows"] == result.data.rows_test
    assert result.held_out["log_loss"] < result.constant["log_loss"]
    assert result.held_out["accuracy"] > result.constant["accuracy"]
    assert result.held_out["roc_auc"] > 0.8


def test_what_it_leaves(result, folder):
    assert {path.name for path in folder.iterdir()} == FILES
    assert {path.rsplit("/", 1)[-1] for path in result.files} == FILES
    assert (folder / "flights.png").read_bytes().startswith(b"\x89PNG")
    train, test = (dml.open_dataset(folder / f"{name}.zarr") for name in ("train", "test"))
    model = dml.load_model(folder / "model.zarr")
    assert train.feature_names == test.feature_names == list(model.feature_names_in_)
    labels = np.asarray(test.y.compute())
    assert (model.predict(test).compute() == labels).mean() == pytest.approx(
        result.held_out["accuracy"]
    )


def test_it_says_what_it_does(result, lines):
    assert any("killing tcp://" in line for line in lines)


def test_the_table(result):
    text = demo.table(result)
    for word in ("log loss", "ROC AUC", "accuracy", "rounds", "passes", "gap", "seconds", "SIGKILL",
                 "scikit-learn", "bit for bit", "dropped", "flights.png"):  # fmt: skip
        assert word in text
    n = result.n_coefficients
    assert f"yes: {n} of {n} are those of the undisturbed fit, bit for bit" in text
    other = demo.table(replace(result, n_same_bits=n - 1))
    assert f"NO: {n - 1} of {n} are those" in other
    assert "ended before a worker was killed" in demo.table(replace(result, fault=None))


def test_only_what_a_demo_left_is_replaced(tmp_path):
    dml.write_dataset(tmp_path / "train.zarr", np.eye(2), [0, 1])
    with pytest.raises(StoreExistsError):
        demo.run(tmp_path, 5, lambda line: None)
    assert dml.open_dataset(tmp_path / "train.zarr").n_rows == 2


def test_the_command(result, monkeypatch):
    monkeypatch.setattr(
        demo, "run", lambda directory, days, say: say(f"{directory} {days}") or result
    )
    done = CliRunner().invoke(main, ["demo", "--days", "14"])
    assert (done.exit_code, done.stderr) == (0, "demo-output 14\n")
    assert done.stdout == demo.table(result) + "\n"
    done = CliRunner().invoke(main, ["demo", "--json"])
    assert json.loads(done.stdout)["n_same_bits"] == result.n_same_bits
    assert CliRunner().invoke(main, ["demo", "--days", "3"]).exit_code == 2


def test_matplotlib_that_is_missing_is_named_first(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(main, ["demo", "--directory", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert done.stderr == "Error: plots need matplotlib: pip install 'dask-dml[plots]'\n"
    assert not (tmp_path / "out").exists()
