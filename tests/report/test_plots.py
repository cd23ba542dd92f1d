"""What the pictures show."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from dask_dml.report.plots import plot_history, plot_roc

HISTORY = pd.DataFrame({"round": [0, 1, 2], "objective": [9.0, 4.0, 3.0]})
FAULTS = pd.DataFrame(
    {
        "round": [-1, 1, 2],
        "kind": ["worker-lost", "worker-lost", "worker-joined"],
        "cost_s": [0.1, 0.45, 0.0],
        "recomputed_blocks": [3, 8, 0],
    }
)


@pytest.fixture
def ax():
    return Figure().subplots()


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_the_history_is_drawn_by_round(ax):
    assert plot_history(HISTORY, ax=ax) is ax
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[0, 9], [1, 4], [2, 3]]
    assert texts(ax) == []


def test_faults_are_marked_where_they_were_noticed(ax):
    plot_history(HISTORY, FAULTS, ax)
    assert [line.get_xdata()[0] for line in ax.lines[1:]] == [1, 2]
    assert texts(ax) == ["1 worker lost\n8 blocks made again\n+0.45 s", "1 worker joined"]


def test_no_faults_leave_no_mark(ax):
    plot_history(HISTORY, FAULTS[:0], ax)
    assert len(ax.lines) == 1


def test_an_empty_history_is_an_empty_picture(ax):
    plot_history(HISTORY[:0], FAULTS[:0], ax)
    assert len(ax.lines[0].get_xdata()) == 0


def test_the_roc_curve_has_the_area_in_its_legend(ax):
    rng = np.random.default_rng(0)
    y = rng.choice(["a", "b"], 200)
    score = rng.normal(size=200) + (y == "b")
    assert plot_roc(y, score, ax) is ax
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend[1] == f"model, AUC {roc_auc_score(y == 'b', score):.4f}"
    curve = ax.lines[1].get_xydata()
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]


def test_the_roc_curve_needs_two_classes(ax):
    with pytest.raises(ValueError, match="two classes, found 1"):
        plot_roc([1, 1], [0.2, 0.3], ax)


def test_a_figure_is_made_where_none_is_given():
    from matplotlib import pyplot as plt

    try:
        assert plot_history(HISTORY).figure is plt.gcf()
    finally:
        plt.close("all")


def test_missing_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dask-dml\[plots\]'"):
        plot_history(HISTORY)
