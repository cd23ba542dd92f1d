"""What is kept of the workers' telemetry."""

from __future__ import annotations

import numpy as np
import pytest

from dask_dml.faults.telemetry import COLUMNS
from dask_dml.runtime.recorder import Recorder

N_FEATURES = len(COLUMNS) - 2


@pytest.fixture
def recorder():
    recorder = Recorder()
    recorder.is_on = True
    return recorder


def features(*workers):
    return np.arange(len(workers), dtype=float)[:, None] + np.zeros(N_FEATURES)


def test_rows_are_wanted_while_it_is_on_twice_a_second():
    recorder = Recorder()
    assert not recorder.is_due(1.0)
    recorder.is_on = True
    assert [recorder.is_due(s) for s in (2.0, 2.25, 2.5, 2.75, 3.0)] == [
        True, False, True, False, True,
    ]  # fmt: skip


def test_rows_are_of_those_that_were_heard(recorder):
    recorder.keep(("a", "b", "c"), features("a", "b", "c"), {"a", "c"})
    recorder.keep(("a", "b"), features("a", "b"), set())
    columns = recorder.take()
    assert tuple(columns) == COLUMNS
    assert columns["worker"] == ["a", "c"]
    assert columns[COLUMNS[-1]] == [0.0, 2.0]
    assert len(set(columns["time_s"])) == 1


def test_what_was_taken_is_kept_no_longer(recorder):
    recorder.keep(("a",), features("a"), {"a"})
    recorder.take()
    assert recorder.take() == {name: [] for name in COLUMNS}


def test_the_oldest_rows_give_way(recorder, monkeypatch):
    monkeypatch.setattr("dask_dml.runtime.recorder._MOST_ROWS", 4)
    for pair in (("a", "b"), ("c", "d"), ("e", "f")):
        recorder.keep(pair, features(*pair), set(pair))
    assert recorder.take()["worker"] == ["c", "d", "e", "f"]
