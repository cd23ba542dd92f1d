"""Linear support vector machines, with squared losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dask_dml.estimator import (
    Setting,
    is_number,
)
from dask_dml.faults.checkpoint import Checkpoint
from dask_dml.linear_model.classification import LinearClassifier
from dask_dml.linear_model.least_squares import LeastSquares
from dask_dml.objective import (
    L2Penalty,
    Loss,
    Problem,
    SquaredEpsilonInsensitiveLoss,
    SquaredHingeLoss,
    Survey,
)
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import Listener, Runtime


class LinearSVC(LinearClassifier):
    """Linear support vector classification with the squared hinge, one class against the rest.

    Minimises ``C * sum_i s_i * max(0, 1 - y_i z_i)^2 + 0.5 * |coef|^2 + 0.5 * (intercept /
    intercept_scaling)^2`` for each class: as in scikit-learn, the intercept is penalised.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive.
    intercept_scaling : float
        Positive; the larger, the less the intercept is penalised.
    class_weight : dict, "balanced" or None
    tol, fit_intercept, solver, max_iter, warm_start, runtime, checkpoint, callbacks
        See `LogisticRegression`.

    Attributes
    ----------
    coef_ : ndarray of shape (1, p), or (K, p) for K > 2 classes
    intercept_ : ndarray of shape (1,) or (K,)
    classes_ : ndarray of shape (K,)
    n_features_in_, n_iter_ : int
    gap_, n_passes_ : float
    history_, faults_ : DataFrame
        See `LogisticRegression`.

    Examples
    --------
    >>> from dask_dml.linear_model import LinearSVC
    >>> LinearSVC().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]).predict([[0.5], [2.5]])
    array([0, 1])
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        fit_intercept: bool = True,
        intercept_scaling: float = 1.0,
        class_weight: Any = None,
        tol: float = 1e-8,
        solver: str = "auto",
        max_iter: int = 100,
        warm_start: bool = False,
        runtime: Runtime | None = None,
        checkpoint: Checkpoint | str | Path | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.tol = tol
        self.solver = solver
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.runtime = runtime
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def _check_arguments(self) -> None:
        super()._check_arguments()
        _check_positive(type(self).__name__, C=self.C, intercept_scaling=self.intercept_scaling)

    def _setting(self, survey: Survey) -> Setting:
        classes = survey.classes
        survey, factors = self._weighted(survey)
        loss = SquaredHingeLoss(1 if len(classes) == 2 else len(classes))
        problem = _problem(loss, self, survey)
        shape = np.empty((loss.n_outputs, len(survey.moment1)))
        return Setting(
            problem, TargetEncoder(classes, factors), self._warm(problem, shape, shape[:, 0])
        )


class LinearSVR(LeastSquares):
    """Linear support vector regression with squared errors beyond a margin.

    Minimises ``C * sum_i s_i * max(0, |y_i - z_i| - epsilon)^2 + 0.5 * |coef|^2 + 0.5 * (intercept
    / intercept_scaling)^2``: scikit-learn's LinearSVR(loss="squared_epsilon_insensitive").

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive.
    epsilon : float
        Errors up to which there is no loss, not negative.
    intercept_scaling : float
        Positive; the larger, the less the intercept is penalised.
    tol, fit_intercept, solver, max_iter, warm_start, runtime, checkpoint, callbacks
        See `LogisticRegression`.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
    intercept_ : float
    n_features_in_, n_iter_ : int
    gap_, n_passes_ : float
    history_, faults_ : DataFrame
        See `LogisticRegression`.

    Examples
    --------
    >>> from dask_dml.linear_model import LinearSVR
    >>> LinearSVR(C=1e6).fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]).predict([[3.0]]).round(3)
    array([7.])
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        epsilon: float = 0.0,
        fit_intercept: bool = True,
        intercept_scaling: float = 1.0,
        tol: float = 1e-8,
        solver: str = "auto",
        max_iter: int = 100,
        warm_start: bool = False,
        runtime: Runtime | None = None,
        checkpoint: Checkpoint | str | Path | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.epsilon = epsilon
        self.C = C
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.tol = tol
        self.solver = solver
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.runtime = runtime
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def _check_arguments(self) -> None:
        super()._check_arguments()
        _check_positive("LinearSVR", C=self.C, intercept_scaling=self.intercept_scaling)
        if not (is_number(self.epsilon) and 0.0 <= self.epsilon < np.inf):
            raise ValueError(
                f"LinearSVR(epsilon=...) must be a finite number >= 0, got {self.epsilon!r}"
            )

    def _setting(self, survey: Survey) -> Setting:
        problem = _problem(SquaredEpsilonInsensitiveLoss(float(self.epsilon)), self, survey)
        shape = np.empty(len(survey.moment1))
        return Setting(problem, TargetEncoder(), self._warm(problem, shape, shape))


def _check_positive(name: str, **arguments: Any) -> None:
    for argument, value in arguments.items():
        if not (is_number(value) and 0.0 < value < np.inf):
            raise ValueError(f"{name}({argument}=...) must be a positive number, got {value!r}")


def _problem(loss: Loss, model: LinearSVC | LinearSVR, survey: Survey) -> Problem:
    return Problem(
        loss,
        L2Penalty(1.0),
        float(model.C),
        survey,
        model.fit_intercept,
        intercept_strength=float(model.intercept_scaling) ** -2.0 if model.fit_intercept else 0.0,
    )
