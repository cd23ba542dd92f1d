from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dask_dml.errors import DataError
from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.prediction import HORIZON_S, Predictor
from dask_dml.faults.telemetry import COLUMNS, PREDICTOR_FEATURES, Telemetry
from dask_dml.faults.training import (
    Records,
    evaluate,
    main,
    outlook,
    train,
    train_and_judge,
)

STEP_S = 0.5


def heartbeats(worker, shares, start_s=0.0):
    """Rows of a worker whose memory takes these shares of the limit, one each half second."""
    slopes = np.gradient(shares, STEP_S) if len(shares) > 1 else [0.0]
    return [
        (start_s + i * STEP_S, worker, *Telemetry(rss_share=share, rss_slope=slope), 0.0)
        for i, (share, slope) in enumerate(zip(shares, slopes, strict=True))
    ]


def run(name, n_lost=2, n_well=4, seed=0):
    """A run of workers whose memory grows to the limit, and of others whose memory wavers."""
    rng = np.random.default_rng(seed)
    rows, losses = [], []
    for i in range(n_lost):
        shares = 0.2 + np.concatenate([0.01 * rng.random(100), np.arange(0.0, 0.75, 0.02)])
        rows += heartbeats(f"lost-{i}", shares)
        losses.append((len(shares) * STEP_S, f"lost-{i}", "hog"))
    for i in range(n_well):
        rows += heartbeats(f"well-{i}", 0.4 + 0.1 * np.sin(np.arange(300) / 8) * rng.random())
    return Records.of(rows, losses, name)


class Judge:
    """Stands in for a predictor: the probability is the share of memory in use."""

    def probabilities(self, X):
        return X[:, 0]


@pytest.fixture(scope="module")
def trained():
    return train(Records.joined([run("a", seed=1), run("b", seed=2)]))


def test_losses_within_the_horizon_are_what_is_learnt(trained):
    figures = evaluate(trained, run("c", seed=3))
    assert figures.precision == 1.0
    assert figures.recall == 1.0
    assert figures.false_per_worker_hour == 0.0


def test_training_is_reproducible(trained):
    assert train(Records.joined([run("a", seed=1), run("b", seed=2)])) == trained


def test_the_range_of_the_records_is_kept(trained):
    share = PREDICTOR_FEATURES.index("rss_share")
    assert trained.lows[share] == pytest.approx(0.2, abs=0.01)
    assert trained.highs[share] < 1.0


def test_a_policy_is_retrained_on_a_sites_own_records(trained):
    policy = FaultPolicy(phi=10.0)
    retrained = policy.retrained(Records.joined([run("a", seed=1), run("b", seed=2)]))
    assert retrained.phi == 10.0
    assert retrained.predictor == trained
    assert policy.predictor is None


@pytest.mark.parametrize(
    "records",
    [
        Records.of(heartbeats("w", [0.5] * 200), []),
        Records.of(heartbeats("w", [0.5] * 20), [(10.0, "w", "hog")]),
    ],
    ids=["no-loss", "nothing-else"],
)
def test_records_of_one_kind_only_are_refused(records):
    with pytest.raises(DataError, match="within 30 s"):
        train(records)


class TestOutlook:
    def test_a_row_is_told_how_long_the_worker_has_left(self):
        records = Records.of(heartbeats("w", [0.1] * 5), [(2.5, "w", "hog")])
        frame = outlook(records)
        assert frame["left_s"].tolist() == [2.5, 2.0, 1.5, 1.0, 0.5]
        assert frame["is_known"].all()

    def test_nobody_knows_what_would_have_come_after_the_end_of_the_run(self):
        frame = outlook(Records.of(heartbeats("w", [0.1] * 100), []))
        assert (frame["is_known"] == (frame["time_s"] < 49.5 - HORIZON_S)).all()

    def test_nobody_knows_what_would_have_become_of_a_retired_worker(self):
        rows = heartbeats("w", [0.1] * 100) + heartbeats("other", [0.1] * 300)
        frame = outlook(Records.of(rows, [(50.0, "w", "left")]))
        frame = frame[frame["worker"] == "w"]
        assert np.isinf(frame["left_s"]).all()
        assert (frame["is_known"] == (frame["time_s"] < 50.0 - HORIZON_S)).all()

    def test_workers_of_different_runs_are_different(self):
        one = Records.of(heartbeats("w", [0.1] * 3), [(2.0, "w", "hog")], "one")
        two = Records.of(heartbeats("w", [0.1] * 3), [], "two")
        frame = outlook(Records.joined([one, two]))
        assert np.isinf(frame.loc[frame["run"] == "two", "left_s"]).all()
        assert np.isfinite(frame.loc[frame["run"] == "one", "left_s"]).all()


class TestEvaluate:
    def judged(self, shares, losses, more=400):
        rows = heartbeats("w", shares) + heartbeats("other", [0.0] * more)
        return evaluate(Judge(), Records.of(rows, losses), threshold=0.9)

    def test_a_drain_before_a_loss_is_right(self):
        figures = self.judged([0.1] * 20 + [0.95] * 20, [(20.0, "w", "hog")])
        assert (figures.n_drains, figures.n_false, figures.precision) == (1, 0, 1.0)
        assert figures.recall_by_kind == {"hog": (1.0, 1)}
        assert figures.lead_s == (9.5, 9.5, 9.5)  # the second row above the threshold counts

    def test_one_row_above_the_threshold_drains_nobody(self):
        figures = self.judged([0.1, 0.95, 0.1, 0.95, 0.1], [(2.5, "w", "hog")])
        assert figures.n_drains == 0
        assert math.isnan(figures.precision)
        assert figures.recall == 0.0

    def test_a_drain_long_before_a_loss_is_false(self):
        figures = self.judged([0.95] * 5 + [0.1] * 100, [(52.5, "w", "hog")])
        assert (figures.n_drains, figures.n_false, figures.recall) == (1, 1, 0.0)

    def test_a_drain_of_a_worker_that_lives_is_false(self):
        figures = self.judged([0.95] * 400, [])
        assert (figures.n_false, figures.precision) == (1, 0.0)
        assert figures.worker_hours == pytest.approx(2 * 399 * STEP_S / 3600)
        assert figures.false_per_worker_hour == pytest.approx(1 / figures.worker_hours)

    def test_a_drain_at_the_end_of_the_record_is_neither(self):
        figures = self.judged([0.1] * 390 + [0.95] * 10, [])
        assert (figures.n_drains, figures.n_unknown) == (0, 1)

    def test_a_worker_that_is_back_lives_another_life(self):
        shares = [0.95] * 10 + [0.1] * 10
        figures = self.judged(shares * 2, [(4.9, "w", "hog"), (14.9, "w", "hog")])
        assert figures.recall_by_kind == {"hog": (1.0, 2)}

    def test_recall_is_told_by_kind(self):
        rows = heartbeats("a", [0.95] * 10) + heartbeats("b", [0.1] * 10)
        records = Records.of(rows, [(5.0, "a", "hog"), (5.0, "b", "kill")])
        figures = evaluate(Judge(), records, threshold=0.9)
        assert figures.recall_by_kind == {"hog": (1.0, 1), "kill": (0.0, 1)}
        assert figures.recall == 0.5


def test_records_survive_a_file(tmp_path):
    records = run("a")
    path = tmp_path / "records.csv.gz"
    records.write(path)
    back = Records.read(path)
    pd.testing.assert_frame_equal(back.telemetry, records.telemetry)
    pd.testing.assert_frame_equal(back.losses, records.losses)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "flights.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="flights"):
        Records.read(path)


def test_records_come_from_what_the_scheduler_kept_and_published():
    rows = heartbeats("w", [0.1] * 3) + heartbeats("v", [0.1] * 3)
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    events = pd.DataFrame(
        [(0.5, "worker-suspected", "w"), (2.0, "worker-lost", "w"), (2.0, "worker-left", "v")],
        columns=["time_s", "kind", "worker"],
    )
    records = Records.of_events(columns, events)
    assert records.losses[["worker", "kind"]].to_numpy().tolist() == [["w", "lost"], ["v", "left"]]
    pd.testing.assert_frame_equal(records.telemetry, Records.of(rows, []).telemetry)


def test_figures_are_those_of_runs_it_was_not_fitted_on():
    records = Records.joined(run(name, seed=i) for i, name in enumerate("abcdef"))
    predictor = train_and_judge(records, [0.9], held_out_every=3)
    assert predictor == train(records.of_runs(["b", "c", "e", "f"]))
    (figures,) = predictor.card["held_out"]
    assert figures["n_losses"] == 4
    assert predictor.card["fitted_losses"] == 8


def test_one_run_cannot_be_fitted_to_and_judged_on():
    with pytest.raises(DataError, match="two runs"):
        train_and_judge(run("a"), [0.9])


def test_the_command_fits_judges_and_writes(tmp_path):
    paths = []
    for i, name in enumerate("abc"):
        paths.append(str(tmp_path / f"{name}.csv.gz"))
        run(name, seed=i).write(paths[-1])
    out = tmp_path / "predictor.json"
    result = CliRunner().invoke(main, [*paths, "--out", str(out)])
    assert result.exit_code == 0, result.output
    predictor = Predictor.from_json(out.read_text(encoding="utf-8"))
    assert json.loads(result.stdout) == predictor.card
