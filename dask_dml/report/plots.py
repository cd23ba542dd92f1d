"""Pictures of a fit and of its predictions; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score, roc_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = "#1f5a94"
FAULT = "#c1440e"
JOINED = "#3a7d44"
MUTED = "#6b7280"


def require_matplotlib() -> None:
    """Raise `ModuleNotFoundError`, and say what to install, where there is no matplotlib."""
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "plots need matplotlib: pip install 'dask-dml[plots]'", name="matplotlib"
        )


def plot_history(
    history: pd.DataFrame, faults: pd.DataFrame | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the objective by round, with the rounds in which workers left or joined marked.

    Parameters
    ----------
    history : DataFrame
        `history_` of an estimator: columns round and objective.
    faults : DataFrame, optional
        `faults_` of the estimator: columns round, kind, cost_s and recomputed_blocks.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.

    Examples
    --------
    >>> from dask_dml.linear_model import LogisticRegression
    >>> from dask_dml.report.plots import plot_history
    >>> model = LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1])
    >>> plot_history(model.history_, model.faults_).get_xlabel()
    'round'
    """
    ax = _axes(ax)
    from matplotlib.ticker import EngFormatter, MaxNLocator

    ax.plot(history["round"], history["objective"], color=LINE, marker="o", markersize=5, zorder=3)
    ax.set_xlabel("round")
    ax.set_ylabel("objective")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not history.empty and history["objective"].abs().max() >= 1e4:
        ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    _tidy(ax)
    events = [] if faults is None else list(_by_round(faults))
    for i, (number, text, color) in enumerate(events):
        ax.axvline(number, color=color, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
        is_late = number > 0.7 * history["round"].max()
        ax.annotate(
            text,
            (number, 0.78 - 0.24 * i),  # below a legend, each below the one before
            xycoords=("data", "axes fraction"),
            xytext=(-7 if is_late else 7, 0),
            textcoords="offset points",
            color=color,
            fontsize="small",
            ha="right" if is_late else "left",
            va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        )
    return ax


def plot_roc(y_true: Any, score: Any, ax: Axes | None = None) -> Axes:
    """Draw the ROC curve of a binary classifier, with its area in the legend.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Labels of two classes; the greater one is the positive.
    score : array-like of shape (n,)
        Greater for the positive class: of `decision_function`, or probabilities.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    ValueError
        If y_true has not two classes.

    Examples
    --------
    >>> from dask_dml.report.plots import plot_roc
    >>> plot_roc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).get_title()
    'ROC curve'
    """
    y, score = np.asarray(y_true), np.asarray(score)
    classes = np.unique(y)
    if len(classes) != 2:
        raise ValueError(f"y_true must have two classes, found {len(classes)}: {classes[:10]}")
    positive = y == classes[1]
    false_positive, true_positive, _ = roc_curve(positive, score)
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="chance, AUC 0.5")
    ax.plot(
        false_positive,
        true_positive,
        color=LINE,
        linewidth=2,
        label=f"model, AUC {roc_auc_score(positive, score):.4f}",
    )
    ax.set_title("ROC curve")
    ax.set_xlabel("false positive rate")
    ax.set_ylabel("true positive rate")
    ax.set_xlim(-0.01, 1.01)
    ax.set_ylim(-0.01, 1.01)
    ax.set_aspect("equal")
    ax.legend(loc="lower right", frameon=False)
    _tidy(ax)
    return ax


def _axes(ax: Axes | None) -> Axes:
    require_matplotlib()
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e5e7eb", linewidth=0.8)
    ax.set_axisbelow(True)


def _by_round(faults: pd.DataFrame) -> Iterable[tuple[int, str, str]]:
    """Round, text and colour of what happened in each round, those before the first left out."""
    for number in sorted(set(faults.loc[faults["round"] >= 0, "round"].tolist())):
        events = faults[faults["round"] == number]
        lost = events[events["kind"] == "worker-lost"]
        joined = int((events["kind"] == "worker-joined").sum())
        parts = []
        if len(lost):
            parts.append(
                f"{_count(len(lost), 'worker')} lost\n"
                f"{_count(int(lost['recomputed_blocks'].sum()), 'block')} made again\n"
                f"+{lost['cost_s'].max():.2f} s"
            )
        if joined:
            parts.append(f"{_count(joined, 'worker')} joined")
        yield int(number), "\n".join(parts), FAULT if len(lost) else JOINED


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
