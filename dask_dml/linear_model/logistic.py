"""Logistic regression of two or more classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dask_dml.data.source import Source
from dask_dml.errors import IncompatibleError
from dask_dml.estimator import (
    Setting,
    is_number,
)
from dask_dml.faults.checkpoint import Checkpoint
from dask_dml.linear_model.classification import LinearClassifier
from dask_dml.objective import (
    ElasticNetPenalty,
    L2Penalty,
    LogisticLoss,
    MultinomialLoss,
    Problem,
    Survey,
)
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import Listener, Runtime


class LogisticRegression(LinearClassifier):
    r"""Logistic regression of two or more classes, penalised by the squared norm or elastic net.

    Minimises ``C * sum_i s_i * log_loss_i + 0.5 * |coef|^2``, with the weights s_i of the rows
    times those of their classes; the intercept is not penalised. This is scikit-learn's objective.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive; ``inf`` for none.
    l1_ratio : float
        Share of the L1 norm in the penalty, which then is ``l1_ratio * |coef|_1 + (1 - l1_ratio) *
        0.5 * |coef|^2``.
    tol : float
        Relative gap to reach: (objective - optimum) / objective.
    fit_intercept : bool
    class_weight : dict, "balanced" or None
        Factors on the rows of each class; "balanced" makes all classes weigh the same.
    solver : {"auto", "newton", "lbfgs", "gd"}
        "auto" is Newton's method, or L-BFGS when there are many coefficients.
    max_iter : int
        Most iterations.
    warm_start : bool
        Start from the coefficients of the last fit, unless there is a checkpoint to go on from.
    runtime : Runtime or None
        Where to run; None is the current Dask client if there is one, otherwise this process.
    checkpoint : Checkpoint, path, URL or None
        Where to keep checkpoints; a fit that was interrupted goes on from there when it is called
        again in the same way, and ends with the bits of one that was not.
    callbacks : sequence of callable
        Each is called with every event of the fit.

    Attributes
    ----------
    coef_ : ndarray of shape (1, p), or (K, p) for K > 2 classes
    intercept_ : ndarray of shape (1,) or (K,)
    classes_ : ndarray of shape (K,)
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (p,)
        Only where the columns have names.
    n_iter_ : int
    gap_ : float
        Upper bound of (objective - optimum) / objective; nan where none can be given.
    n_passes_ : float
        Passes over the full data.
    history_ : DataFrame
        A row a round.
    faults_ : DataFrame
        A row an event of the workers.

    References
    ----------
    Newton's method with the bounds of generalised self-concordant functions: Bach 2010,
    "Self-concordant analysis for logistic regression"; Sun & Tran-Dinh 2019.

    Examples
    --------
    >>> from dask_dml.linear_model import LogisticRegression
    >>> model = LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
    >>> model.predict([[0.5], [2.5]])
    array([0, 1])
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        l1_ratio: float = 0.0,
        tol: float = 1e-8,
        fit_intercept: bool = True,
        class_weight: Any = None,
        solver: str = "auto",
        max_iter: int = 100,
        warm_start: bool = False,
        runtime: Runtime | None = None,
        checkpoint: Checkpoint | str | Path | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.solver = solver
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.runtime = runtime
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not (is_number(self.C) and self.C > 0.0):
            raise ValueError(f"LogisticRegression(C=...) must be a positive number, got {self.C!r}")
        if not (is_number(self.l1_ratio) and 0.0 <= self.l1_ratio <= 1.0):
            raise ValueError(
                f"LogisticRegression(l1_ratio=...) must be from 0 to 1, got {self.l1_ratio!r}"
            )
        if self.l1_ratio and self.solver not in ("auto", "newton"):
            raise IncompatibleError(
                f"LogisticRegression(l1_ratio={self.l1_ratio!r}, solver={self.solver!r}): this "
                "solver lacks the proximal step that an L1 penalty needs; use solver='newton'"
            )

    def _sample_share(self, source: Source) -> float:
        # The proximal Newton method looks at a sample where it is.
        return 0.0 if self.l1_ratio else super()._sample_share(source)

    def _setting(self, survey: Survey) -> Setting:
        classes = survey.classes
        n_classes = len(classes)
        loss = LogisticLoss() if n_classes == 2 else MultinomialLoss(n_classes)
        survey, factors = self._weighted(survey)
        unpenalised = np.isinf(self.C)
        ratio = float(self.l1_ratio)
        problem = Problem(
            loss,
            L2Penalty(0.0) if unpenalised else ElasticNetPenalty(1.0 - ratio, ratio),
            1.0 if unpenalised else float(self.C),
            survey,
            self.fit_intercept,
        )
        shape = np.empty((loss.n_outputs, len(survey.moment1)))
        start = self._warm(problem, shape, shape[:, 0])
        return Setting(problem, TargetEncoder(classes, factors), start)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of the classes, shape (n, K), in the order of `classes_`."""
        return self._map_scores(X, self._loss().probabilities, np.float64)

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of the probabilities, shape (n, K)."""
        return self._map_scores(X, self._loss().log_probabilities, np.float64)

    def _loss(self) -> LogisticLoss | MultinomialLoss:
        n_classes = len(self._fitted_classes())
        return LogisticLoss() if n_classes == 2 else MultinomialLoss(n_classes)
