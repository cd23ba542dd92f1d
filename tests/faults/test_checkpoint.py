"""A fit that was interrupted goes on from its checkpoint, with the bits of one that was not."""

from __future__ import annotations

import io
import json
import logging
import pickletools
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import dask_dml as dml
from dask_dml.data.layout import BlockGrid
from dask_dml.data.store import load_arrays, save_arrays
from dask_dml.errors import (
    FitError,
    IncompatibleError,
    NoWorkersError,
    StoreError,
    StoreExistsError,
    StoreFormatError,
    StoreVersionError,
)
from dask_dml.faults.checkpoint import CheckpointKeeper, Progress, Rhythm
from dask_dml.faults.identity import identity
from dask_dml.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge
from dask_dml.report.history import History
from dask_dml.runtime import RoundEnded
from dask_dml.solvers.line import LineState

LOCAL = dml.Runtime(client="local")
RNG = np.random.default_rng(5)
X = RNG.normal(size=(400, 4)) * np.logspace(-1, 1, 4) + 0.5
SCORES = X @ RNG.normal(size=(4, 3)) / 3 + RNG.gumbel(size=(400, 3))
TWO = (SCORES[:, 0] > SCORES[:, 1]).astype(np.int64)
THREE = np.array(["a", "b", "c"])[SCORES.argmax(axis=1)]
WEIGHT = RNG.uniform(0.1, 3.0, size=400)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 64 rows, so that little data makes several."""

    def choose(n_rows, n_columns, itemsize, **_):
        return BlockGrid.regular(n_rows, n_columns, 64, n_columns)

    monkeypatch.setattr("dask_dml.estimator.choose_grid", choose)


class StopError(Exception):
    """What ends a fit in these tests."""


class StopAt:
    """A callback that raises after a round."""

    def __init__(self, number, error=StopError):
        self.number = number
        self.error = error

    def __call__(self, event):
        if isinstance(event, RoundEnded) and event.round == self.number:
            raise self.error


def interrupt(model, number, *data, error=StopError):
    """Fit until a round is over, and have the fit end there."""
    stopped = clone(model).set_params(callbacks=[StopAt(number, error)])
    with pytest.raises(error if isinstance(error, type) else type(error)) as raised:
        stopped.fit(*data)
    return raised.value


def names(place):
    return sorted(path.name for path in Path(place).iterdir())


def assert_same_fit(fitted, expected):
    assert fitted.coef_.tobytes() == expected.coef_.tobytes()
    assert np.asarray(fitted.intercept_).tobytes() == np.asarray(expected.intercept_).tobytes()
    np.testing.assert_array_equal(fitted.gap_, expected.gap_)
    assert fitted.n_iter_ == expected.n_iter_
    for column in ("round", "objective", "gap", "order", "n_iter"):
        pd.testing.assert_series_equal(fitted.history_[column], expected.history_[column])


MODELS = {
    "newton": (LogisticRegression(solver="newton", tol=1e-10), TWO),
    "newton of three classes": (LogisticRegression(solver="newton", C=0.3), THREE),
    "lbfgs": (LogisticRegression(solver="lbfgs", tol=1e-10), THREE),
    "gd": (LogisticRegression(solver="gd", tol=1e-8), TWO),
    "balanced": (LogisticRegression(solver="lbfgs", class_weight="balanced"), THREE),
    "least squares": (LinearRegression(solver="lbfgs"), SCORES[:, 0]),
    "ridge": (Ridge(0.5, fit_intercept=False), SCORES[:, 0]),
    "lasso": (Lasso(0.02), SCORES[:, 0]),
    "absolute values": (LogisticRegression(C=0.1, l1_ratio=0.7), THREE),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_fit_goes_on_after_any_round_with_the_same_bits(name, tmp_path):
    model, target = MODELS[name]
    model = clone(model).set_params(runtime=LOCAL)
    expected = clone(model).fit(X, target, WEIGHT)
    n_rounds = len(expected.history_)
    for number in {0, n_rounds // 3, n_rounds // 2, n_rounds - 1}:
        place = tmp_path / f"{number}"
        model.set_params(checkpoint=place)
        interrupt(model, number, X, target, WEIGHT)
        resumed = clone(model).fit(X, target, WEIGHT)
        assert_same_fit(resumed, expected)
        # One more survey, and one more evaluation to see that it is the same data; but where the
        # survey is all that was evaluated.
        last = expected.history_["what"].iloc[number]
        spent = 1 if "from the survey" in last else 2
        if name == "least squares" and number == n_rounds - 1:
            # Without a penalty the last round's Hessian is for inference, and is not kept.
            spent += 1
        assert resumed.n_passes_ == expected.n_passes_ + spent
        (event,) = resumed.faults_.to_dict("records")
        assert event["kind"] == "checkpoint-resumed"
        assert event["round"] == number
        assert f"round-{number + 1:06d}" in event["evidence"]
        assert event["cost_s"] > 0.0


@pytest.mark.parametrize("is_logistic", [False, True])
def test_a_fit_with_few_of_many_columns_goes_on_too(is_logistic, tmp_path):
    rng = np.random.default_rng(8)
    wide = rng.normal(size=(300, 160))
    target = wide[:, :3].sum(axis=1) + rng.normal(size=300)
    model = Lasso(0.05, runtime=LOCAL)
    if is_logistic:
        model, target = LogisticRegression(0.1, l1_ratio=1.0, runtime=LOCAL), target > 0.0
    expected = clone(model).fit(wide, target)
    for number in range(len(expected.history_)):
        model.set_params(checkpoint=tmp_path / f"{number}")
        interrupt(model, number, wide, target)
        assert_same_fit(model.fit(wide, target), expected)


@pytest.mark.parametrize("solver", ["lbfgs", "gd"])
def test_a_gradient_method_without_certificate_goes_on_too(solver, tmp_path, monkeypatch):
    monkeypatch.setattr("dask_dml.solvers.choice._HESSIAN_COORDINATES", 0)
    model = LogisticRegression(solver=solver, tol=1e-6, runtime=LOCAL)
    expected = clone(model).fit(X, TWO)
    model.set_params(checkpoint=str(tmp_path / "fit"))
    interrupt(model, 3, X, TWO)
    assert_same_fit(model.fit(X, TWO), expected)


def test_several_interruptions_of_one_fit(tmp_path):
    expected = LogisticRegression(solver="lbfgs", runtime=LOCAL).fit(X, THREE)
    model = LogisticRegression(solver="lbfgs", runtime=LOCAL, checkpoint=tmp_path)
    for number in (1, 4, 5):
        interrupt(model, number, X, THREE)
    model.fit(X, THREE)
    assert_same_fit(model, expected)
    assert model.n_passes_ == expected.n_passes_ + 6
    assert list(model.faults_["kind"]) == ["checkpoint-resumed"] * 3
    assert list(model.faults_["round"]) == [1, 4, 5]
    assert model.faults_["when"].is_monotonic_increasing
    assert model.faults_["when"].dt.tz is not None


@pytest.mark.parametrize("is_sampled", [True, False])
def test_a_sample_is_solved_but_once(is_sampled, tmp_path, monkeypatch):
    monkeypatch.setattr("dask_dml.estimator.sample_share", lambda *_: 0.5)
    monkeypatch.setattr("dask_dml.runtime.sample._ROWS_A_TERM", 10)
    expected = LogisticRegression(runtime=LOCAL).fit(X, TWO)
    assert expected.history_.attrs["why"].endswith("50 % of them are solved first, in this process")
    n_sampled = sum("50 % of the rows" in what for what in expected.history_["what"])
    assert 2 < n_sampled < len(expected.history_) - 2
    number = 1 if is_sampled else n_sampled + 1
    model = LogisticRegression(runtime=LOCAL, checkpoint=tmp_path)
    interrupt(model, number, X, TWO)
    assert_same_fit(model.fit(X, TWO), expected)
    # The survey again, with the sample in it, and the last round to compare.
    assert model.n_passes_ == expected.n_passes_ + (1.5 if is_sampled else 2.0)


def test_a_finished_fit_is_returned_as_it_is(tmp_path):
    first = LogisticRegression(runtime=LOCAL, checkpoint=tmp_path).fit(X, THREE)
    assert len(first.faults_) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for _ in range(2):
        again = LogisticRegression(runtime=LOCAL, checkpoint=tmp_path).fit(X, THREE)
        assert_same_fit(again, first)
        assert again.n_passes_ == first.n_passes_ + 2
        assert "nothing left to do: converged" in again.faults_["action"].iloc[0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_model_that_was_fitted_with_checkpoints_is_saved_without_them(tmp_path):
    model = Ridge(runtime=LOCAL, checkpoint=dml.Checkpoint(tmp_path / "fit"))
    model.fit(X, SCORES[:, 0]).save(tmp_path / "model.zarr")
    assert dml.load_model(tmp_path / "model.zarr").checkpoint is None


def test_a_fit_that_ran_out_of_iterations_says_so_again(tmp_path):
    model = LogisticRegression(runtime=LOCAL, max_iter=1, checkpoint=tmp_path)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        coef = model.fit(X, TWO).coef_
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        assert model.fit(X, TWO).coef_.tobytes() == coef.tobytes()


def test_a_warm_start_yields_to_a_checkpoint(tmp_path):
    cold = LogisticRegression(solver="lbfgs", runtime=LOCAL).fit(X, TWO)
    warm = clone(cold).set_params(warm_start=True).fit(X, TWO, WEIGHT)
    expected = clone(warm)
    for model in (warm, expected):
        model.fit(X, TWO, WEIGHT)  # warm's second fit is a warm one
    begun = clone(cold).set_params(warm_start=True)
    begun.fit(X, TWO, WEIGHT)
    begun.set_params(checkpoint=tmp_path, callbacks=[StopAt(0)])
    with pytest.raises(StopError):
        begun.fit(X, TWO)
    undisturbed = clone(cold).set_params(warm_start=True).fit(X, TWO, WEIGHT).fit(X, TWO)
    # In a process that knows of no fit before.
    fresh = clone(begun).set_params(callbacks=()).fit(X, TWO)
    assert_same_fit(fresh, undisturbed)
    # An estimator with coefficients of another fit does not start from those.
    other = clone(fresh).set_params(checkpoint=None).fit(X, TWO, WEIGHT)
    assert_same_fit(other.set_params(checkpoint=tmp_path).fit(X, TWO), undisturbed)


# -- what is refused ------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """A place with a checkpoint of a fit, and the fit's arguments."""
    arguments = {"solver": "lbfgs", "runtime": LOCAL, "checkpoint": tmp_path / "fit"}
    interrupt(LogisticRegression(**arguments), 2, X, TWO, WEIGHT)
    return arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"C": 2.0}, "argument 'C' is 1.0 there and 2.0 here"),
        ({"tol": 1e-3}, "argument 'tol' is 1e-08 there and 0.001 here"),
        ({"solver": "newton"}, "argument 'solver' is 'lbfgs' there and 'newton' here"),
        ({"max_iter": 7}, "argument 'max_iter' is 100 there and 7 here"),
        ({"fit_intercept": False}, "argument 'fit_intercept' is True there and False here"),
        ({"class_weight": {0: 2.0}}, "argument 'class_weight' is None there"),
        ({"warm_start": True}, "argument 'warm_start' is False there and True here"),
    ],
)
def test_other_arguments_are_refused_by_name(begun, arguments, said, monkeypatch):
    # Before anything is read.
    monkeypatch.setattr("dask_dml.runtime.Runtime.executor", None)
    with pytest.raises(IncompatibleError, match="another place, or remove") as raised:
        LogisticRegression(**{**begun, **arguments}).fit(X, TWO, WEIGHT)
    assert said in str(raised.value)
    assert str(begun["checkpoint"]) in str(raised.value)


def test_another_estimator_is_refused_by_name(begun):
    with pytest.raises(IncompatibleError, match="'LogisticRegression' there and 'Ridge' here"):
        Ridge(**begun).fit(X, TWO, WEIGHT)


def nudged(values):
    out = values.copy()
    out[17] += 1e-9
    return out


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((nudged(X), TWO, WEIGHT), "sums of the columns is 'digest"),
        ((X[:-1], TWO[:-1], WEIGHT[:-1]), "blocks is '7 of 16-64 rows"),
        ((X[:, :3], TWO, WEIGHT), "columns is \"4, 'x0' to 'x3'"),
        ((X, 1 - TWO, WEIGHT), "rows and weights of the classes is"),
        ((X, TWO.astype(str), WEIGHT), "classes is '2, digest"),
        ((X, TWO, nudged(WEIGHT)), "sum of the weights is"),
        ((X, TWO), "sum of the weights is"),
        ((X, THREE, WEIGHT), "classes is '2, digest"),
    ],
)
def test_other_data_is_refused_by_name(begun, data, said):
    with pytest.raises(IncompatibleError, match="another place, or remove") as raised:
        LogisticRegression(**begun).fit(*data)
    assert said in str(raised.value)
    # The checkpoint is still there for the right data.
    assert_same_fit(
        LogisticRegression(**begun).fit(X, TWO, WEIGHT),
        LogisticRegression(solver="lbfgs", runtime=LOCAL).fit(X, TWO, WEIGHT),
    )


@pytest.mark.parametrize("moved", ["rows", "target"])
def test_data_in_another_order_is_refused_though_all_sums_are_the_same(moved, tmp_path):
    rows = RNG.integers(0, 5, size=(400, 3)).astype(float)
    order = RNG.permutation(400)
    model = LogisticRegression(runtime=LOCAL, checkpoint=tmp_path)
    model.fit(rows, TWO)
    data = (rows[order], TWO) if moved == "rows" else (rows, TWO[order])
    with pytest.raises(IncompatibleError, match="the objective at its last point is"):
        model.fit(*data)


def test_other_blocks_and_names_are_refused(begun, monkeypatch):
    with pytest.raises(IncompatibleError, match=r"columns is .* there and .*'a' to 'd'"):
        LogisticRegression(**begun).fit(pd.DataFrame(X, columns=list("abcd")), TWO, WEIGHT)
    monkeypatch.setattr(
        "dask_dml.estimator.choose_grid", lambda n, p, *_, **__: BlockGrid.regular(n, p, 100, p)
    )
    with pytest.raises(IncompatibleError, match=r"'7 of 16-64 rows.*there and '4 of 100 rows"):
        LogisticRegression(**begun).fit(X, TWO, WEIGHT)


def rewrite(place, change):
    """Change a checkpoint's attributes as if another version had written them."""
    (path,) = place.glob("round-*")
    arrays, attributes = load_arrays(path)
    save_arrays(path, arrays, {**attributes, **change}, overwrite=True)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [({"version": "0.0.1"}, "dask_dml 0.0.1"), ({"format": 99}, "format 99")],
)
def test_another_version_is_refused_by_name(tmp_path, change, said):
    arguments = {"runtime": LOCAL, "checkpoint": tmp_path}
    interrupt(LogisticRegression(**arguments), 0, X, TWO)
    rewrite(tmp_path, change)
    with pytest.raises(StoreVersionError, match="go on with that version") as raised:
        LogisticRegression(**arguments).fit(X, TWO)
    assert said in str(raised.value)
    assert dml.__version__ in str(raised.value)


def test_a_newer_store_format_is_refused_and_not_passed_over(tmp_path):
    arguments = {"runtime": LOCAL, "checkpoint": tmp_path}
    interrupt(LogisticRegression(**arguments), 0, X, TWO)
    path = tmp_path / "round-000001" / "zarr.json"
    root = json.loads(path.read_text(encoding="utf-8"))
    root["attributes"]["dask_dml"]["format"] = 99
    path.write_text(json.dumps(root), encoding="utf-8")
    with pytest.raises(StoreFormatError, match="format 99"):
        LogisticRegression(**arguments).fit(X, TWO)
    assert names(tmp_path) == ["round-000001"]


def test_what_is_no_checkpoint_is_not_taken_for_one(tmp_path):
    arguments = {"runtime": LOCAL, "checkpoint": tmp_path / "fit"}
    fitted = LogisticRegression(runtime=LOCAL).fit(X, TWO)
    fitted.save(tmp_path / "fit" / "round-000004")
    with pytest.raises(StoreFormatError, match="holds a 'model' and not a checkpoint"):
        LogisticRegression(**arguments).fit(X, TWO)
    fitted.save(tmp_path / "model.zarr")
    with pytest.raises(StoreExistsError, match="is a Zarr store itself"):
        LogisticRegression(runtime=LOCAL, checkpoint=tmp_path / "model.zarr").fit(X, TWO)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is a file"):
        LogisticRegression(runtime=LOCAL, checkpoint=tmp_path / "notes.txt").fit(X, TWO)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    interrupt(LogisticRegression(runtime=LOCAL, checkpoint=tmp_path / "other"), 0, X, TWO)
    with pytest.raises(StoreFormatError, match="found kind 'checkpoint'"):
        dml.load_model(tmp_path / "other" / "round-000001")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"store": 3}, TypeError, r"store=...\) must be a path"),
        ({"store": None}, TypeError, "store"),
        ({"store": " "}, ValueError, "store"),
        ({"every_rounds": 0}, ValueError, "at least 1, got 0"),
        ({"every_rounds": -2}, ValueError, "at least 1"),
        ({"every_rounds": 1.5}, TypeError, "an integer"),
        ({"every_rounds": True}, TypeError, "an integer"),
        ({"every_s": 0.0}, ValueError, "above 0"),
        ({"every_s": -1}, ValueError, "above 0"),
        ({"every_s": float("nan")}, ValueError, "finite"),
        ({"every_s": float("inf")}, ValueError, "finite"),
        ({"every_s": "60"}, TypeError, "a number"),
    ],
)
def test_a_nonsense_checkpoint_is_refused_at_construction(arguments, error, said):
    with pytest.raises(error, match=said):
        dml.Checkpoint(**{"store": "here", **arguments})


def test_a_nonsense_argument_of_an_estimator_is_refused():
    with pytest.raises(TypeError, match=r"Ridge\(checkpoint=...\) must be a path.*got 5"):
        Ridge(checkpoint=5).fit(X, SCORES[:, 0])


# -- what is kept ---------------------------------------------------------------------------


def test_the_last_two_are_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model = LogisticRegression(
        solver="lbfgs", runtime=LOCAL, checkpoint=dml.Checkpoint(tmp_path, every_rounds=1)
    )
    seen = []
    model.set_params(callbacks=[lambda _: seen.append(names(tmp_path))]).fit(X, TWO)
    n_rounds = len(model.history_)
    assert max(map(len, seen)) == 3
    kept = [f"round-{n:06d}" for n in (n_rounds - 1, n_rounds)]
    assert names(tmp_path) == ["notes.txt", *kept]


def damage(path, how):
    if how == "flipped byte":
        (chunk,) = (p for p in (path / "numbers" / "c").rglob("*") if p.is_file())
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)
    elif how == "half written":
        root = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        root["attributes"]["dask_dml"] = {"format": 1, "state": "writing"}
        (path / "zarr.json").write_text(json.dumps(root), encoding="utf-8")
    elif how == "no manifest":
        (path / "zarr.json").unlink()
    else:
        for file in (path / "record").rglob("*"):
            if file.is_file():
                file.unlink()


@pytest.mark.parametrize("how", ["flipped byte", "half written", "no manifest", "lost array"])
def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path, how, caplog):
    expected = LogisticRegression(solver="lbfgs", runtime=LOCAL).fit(X, TWO)
    model = LogisticRegression(
        solver="lbfgs", runtime=LOCAL, checkpoint=dml.Checkpoint(tmp_path, every_rounds=1)
    )
    interrupt(model, 4, X, TWO)
    assert names(tmp_path) == ["round-000004", "round-000005"]
    damage(tmp_path / "round-000005", how)
    (tmp_path / f".round-000006.{uuid.uuid4().hex}.partial").mkdir()
    with caplog.at_level(logging.WARNING, "dask_dml"):
        resumed = clone(model).fit(X, TWO)
    assert "round-000005" in caplog.text
    assert_same_fit(resumed, expected)
    evidence = resumed.faults_["evidence"].iloc[0]
    assert "round-000004" in evidence
    assert "passed over, since incomplete: round-000005" in evidence
    n_rounds = len(expected.history_)
    assert names(tmp_path) == [f"round-{n:06d}" for n in (n_rounds - 1, n_rounds)]


def test_if_none_is_whole_the_fit_begins_anew(tmp_path):
    expected = LogisticRegression(runtime=LOCAL).fit(X, TWO)
    model = LogisticRegression(runtime=LOCAL, checkpoint=tmp_path)
    interrupt(model, 2, X, TWO)
    for path in tmp_path.iterdir():
        damage(path, "flipped byte")
    model.fit(X, TWO)
    assert_same_fit(model, expected)
    assert len(model.faults_) == 0
    assert len(names(tmp_path)) == 2


def test_checkpoints_under_a_url():
    url = f"memory://{uuid.uuid4().hex}/fit"
    expected = LogisticRegression(solver="lbfgs", runtime=LOCAL).fit(X, THREE)
    model = LogisticRegression(
        solver="lbfgs", runtime=LOCAL, checkpoint=dml.Checkpoint(url, every_rounds=1)
    )
    error = interrupt(model, 5, X, THREE)
    assert f"{url}/round-000006" in "".join(error.__notes__)
    # Half of the newest one is gone: its manifest is the last that is written.
    memory = fsspec.filesystem("memory")
    memory.rm(f"{url}/round-000006/zarr.json")
    resumed = clone(model).fit(X, THREE)
    assert_same_fit(resumed, expected)
    assert list(resumed.faults_["round"]) == [4]
    n_rounds = len(expected.history_)
    whole = sorted(path for path in memory.find(url) if path.endswith("00/zarr.json"))
    assert whole == []
    roots = {path.split("/")[-2] for path in memory.find(url) if path.endswith("/zarr.json")}
    assert {n for n in roots if n.startswith("round-")} == {
        f"round-{n:06d}" for n in (n_rounds - 1, n_rounds)
    }


def test_there_is_no_pickle_in_a_checkpoint(tmp_path):
    interrupt(LogisticRegression(runtime=LOCAL, checkpoint=tmp_path), 1, X, THREE)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 5
    for path in files:
        content = path.read_bytes()
        assert b"\x80\x04\x95" not in content, path
        with pytest.raises(ValueError, match=r"opcode|exhausted|pickle"):
            pickletools.dis(content, out=io.StringIO())


def test_arguments_that_have_no_say_in_the_result_may_differ(begun, tmp_path):
    expected = LogisticRegression(solver="lbfgs", runtime=LOCAL).fit(X, TWO, WEIGHT)
    moved = tmp_path / "moved"
    begun["checkpoint"].rename(moved)
    heard = []
    model = LogisticRegression(
        solver="lbfgs",
        runtime=None,
        checkpoint=dml.Checkpoint(str(moved), every_s=5.0),
        callbacks=[heard.append],
    )
    assert_same_fit(model.fit(X, TWO, WEIGHT), expected)
    assert heard[0].first_round == 3


def test_the_same_weights_of_classes_in_another_order_are_the_same_arguments(tmp_path):
    model = LogisticRegression(runtime=LOCAL, checkpoint=tmp_path, class_weight={0: 1.0, 1: 2.0})
    interrupt(model, 0, X, TWO)
    model.set_params(class_weight={1: 2.0, 0: 1}).fit(X, TWO)
    assert list(model.faults_["kind"]) == ["checkpoint-resumed"]


# -- how a fit ends -------------------------------------------------------------------------


def test_an_error_of_the_fit_says_where_its_checkpoint_is(tmp_path):
    error = FitError("round 3 of run r could not be finished.", "r", 3, (1, 2), "tcp://w")
    model = LogisticRegression(
        solver="lbfgs", runtime=LOCAL, checkpoint=dml.Checkpoint(tmp_path, every_rounds=100)
    )
    raised = interrupt(model, 3, X, TWO, error=error)
    assert str(raised).startswith("round 3 of run r could not be finished. Its state after 4")
    assert str(tmp_path / "round-000004") in str(raised)
    assert "the same call goes on from there" in str(raised)
    assert (raised.run, raised.round, raised.blocks, raised.worker) == ("r", 3, (1, 2), "tcp://w")
    assert names(tmp_path) == ["round-000004"]


def test_so_does_an_error_of_the_cluster(tmp_path):
    model = LogisticRegression(runtime=LOCAL, checkpoint=tmp_path)
    raised = interrupt(model, 1, X, TWO, error=NoWorkersError("all workers are gone"))
    assert str(raised).startswith("all workers are gone. Its state after 2 rounds is kept in")


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopError])
def test_ctrl_c_and_errors_of_callbacks_leave_a_checkpoint(tmp_path, error):
    model = LogisticRegression(
        solver="lbfgs", runtime=LOCAL, checkpoint=dml.Checkpoint(tmp_path, every_s=3600.0)
    )
    raised = interrupt(model, 2, X, TWO, error=error)
    assert names(tmp_path) == ["round-000003"]
    assert str(tmp_path / "round-000003") in "".join(raised.__notes__)


def test_an_error_without_a_checkpoint_says_nothing_of_one(tmp_path):
    error = FitError("no")
    assert str(interrupt(LogisticRegression(runtime=LOCAL), 1, X, TWO, error=error)) == "no"
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(dml.errors.DataError) as raised:
        LogisticRegression(runtime=LOCAL, checkpoint=tmp_path / "fit").fit(bad, TWO)
    assert "checkpoint" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_ends_the_fit_after_its_first_round(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("no bucket of yours")

    monkeypatch.setattr("dask_dml.data.store.save_arrays", refuse)
    model = LogisticRegression(runtime=LOCAL, checkpoint=tmp_path)
    heard = []
    with pytest.raises(StoreError, match=r"cannot write the checkpoint round-000001.*no bucket"):
        model.set_params(callbacks=[heard.append]).fit(X, TWO)
    assert sum(isinstance(event, RoundEnded) for event in heard) == 1


def test_later_failures_to_write_are_warnings(tmp_path, monkeypatch):
    expected = LogisticRegression(solver="lbfgs", runtime=LOCAL).fit(X, TWO)

    def fail(*_, **__):
        raise OSError("the disk is full")

    def fill_the_disk(event):
        if isinstance(event, RoundEnded) and event.round == 3:
            monkeypatch.setattr("dask_dml.data.store.save_arrays", fail)

    model = LogisticRegression(
        solver="lbfgs",
        runtime=LOCAL,
        checkpoint=dml.Checkpoint(tmp_path, every_rounds=1),
        callbacks=[fill_the_disk],
    )
    with pytest.warns(RuntimeWarning, match=r"disk is full.*last checkpoint is that of round 2"):
        model.fit(X, TWO)
    assert_same_fit(model, expected)
    assert names(tmp_path) == ["round-000002", "round-000003"]


# -- when they are written ------------------------------------------------------------------


class Clock:
    """A clock that goes on only when told."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def keeper(tmp_path, clock, **every):
    fit = identity("Ridge", {"alpha": 1.0}, (10, 10), ("a", "b"))
    return CheckpointKeeper(dml.Checkpoint(tmp_path, **every), fit, "run", History(), clock)


def progress(n_rounds, reason=""):
    point = np.array([1.0, 2.0])
    state = LineState(point, 3.0, np.nan, n_rounds, reason, point, -1.0, 1.0)
    return Progress(state, n_rounds, 1.0 + n_rounds, point, 1.0, 3.0, point)


def written(tmp_path, clock, rounds_s, **every):
    """Rounds after which a checkpoint was written, given how long each took."""
    keeping = keeper(tmp_path, clock, **every)
    found = []
    for number, seconds in enumerate(rounds_s, start=1):
        clock.now_s += seconds
        keeping.note(progress(number))
        keeping.write_if_due()
        if (tmp_path / f"round-{number:06d}").exists():
            found.append(number)
    return found


def test_by_the_number_of_rounds(tmp_path):
    assert written(tmp_path, Clock(), [1.0] * 10, every_rounds=3) == [3, 6, 9]


def test_by_seconds(tmp_path):
    assert written(tmp_path, Clock(), [4.0] * 10, every_s=10.0) == [3, 6, 9]


def test_by_whichever_comes_first(tmp_path):
    seconds = [1.0, 1.0, 1.0, 30.0, 1.0, 1.0, 1.0]
    assert written(tmp_path, Clock(), seconds, every_rounds=3, every_s=20.0) == [3, 4, 7]


def test_by_what_it_costs(tmp_path, monkeypatch):
    """With writing at 1 s, not before 20 s have passed; after the first round at once."""
    clock = Clock()
    from dask_dml.data import store

    save = store.save_arrays

    def slow(*arguments, **keywords):
        clock.now_s += 1.0
        save(*arguments, **keywords)

    monkeypatch.setattr(store, "save_arrays", slow)
    assert written(tmp_path, clock, [8.0] * 10) == [1, 4, 7, 10]


def test_the_last_round_is_always_written(tmp_path):
    keeping = keeper(tmp_path, Clock(), every_rounds=50)
    keeping.note(progress(1))
    keeping.write_if_due()
    assert names(tmp_path) == []
    keeping.note(progress(2, "converged"))
    keeping.write_if_due()
    assert names(tmp_path) == ["round-000002"]


@given(
    every_rounds=st.none() | st.integers(1, 20),
    every_s=st.none() | st.floats(0.1, 100.0),
    rounds=st.lists(st.tuples(st.floats(0.01, 50.0), st.floats(0.0, 20.0)), max_size=60),
)
def test_a_rhythm_keeps_what_it_promises(every_rounds, every_s, rounds):
    now_s, last_s, last = 0.0, 0.0, 0
    rhythm = Rhythm(every_rounds, every_s, 0, now_s)
    spent_s = []
    for number, (seconds, cost_s) in enumerate(rounds, start=1):
        now_s += seconds
        due = rhythm.is_due(number, now_s)
        if every_rounds is not None and number - last >= every_rounds:
            assert due
        if every_s is not None and now_s - last_s >= every_s:
            assert due
        if every_rounds is None and every_s is None and number == 1:
            assert due
        if due:
            if every_rounds is None and every_s is None and spent_s:
                assert spent_s[-1] <= 0.05 * (now_s - last_s)
            rhythm.wrote(number, now_s, now_s + cost_s)
            now_s += cost_s
            last_s, last = now_s, number
            spent_s.append(cost_s)
