"""Lasso and elastic net with penalties chosen by cross-validation, in one pass for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_dml.data.source import Source
from dask_dml.errors import DataError, IncompatibleError
from dask_dml.estimator import Setting, check_survey, is_number
from dask_dml.faults.checkpoint import Checkpoint, CheckpointKeeper
from dask_dml.linear_model.folds import check_folds, folds_of
from dask_dml.linear_model.least_squares import LeastSquares
from dask_dml.objective import ElasticNetPenalty, Problem, SquaredLoss
from dask_dml.objective.blas import single_threaded_blas
from dask_dml.objective.folds import FoldEncoder, FoldRequest, FoldStatistics
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import TargetEncoder
from dask_dml.report.history import History
from dask_dml.report.progress import default_progress
from dask_dml.runtime import (
    Executor,
    FitEnded,
    FitStarted,
    Listener,
    Outcome,
    RoundEnded,
    RunSpec,
    Runtime,
)
from dask_dml.solvers import ProximalNewton
from dask_dml.solvers.core import Goal
from dask_dml.solvers.path import MeanProducts, loss_at

# Most bytes of the folds' Gram matrices.
_GRAM_BYTES = 1_000_000_000
_WHAT = "Gram matrices of all folds"


class _Chosen(NamedTuple):
    """The penalties and how they score.

    Attributes
    ----------
    alphas : ndarray of shape (r, m)
        Of each of r values of l1_ratio.
    errors : ndarray of shape (r, m, n_folds)
        Mean squared errors of the rows held out.
    ratio, alpha : int
        Which of them is the best.
    """

    alphas: NDArray[np.float64]
    errors: NDArray[np.float64]
    ratio: int
    alpha: int


class _CrossValidated(LeastSquares):
    """What they share: sums fold by fold in one pass, and all penalties solved from them here."""

    eps: float
    alphas: Any
    cv: Any

    # What a single fit lets one choose: there is one way here, and nothing to go on from.
    solver: str = "newton"
    warm_start: bool = False
    checkpoint: Checkpoint | str | Path | None = None

    def _ratios(self) -> NDArray[np.float64]:
        raise TypeError(f"{type(self).__name__} does not say its l1_ratio")

    def _take_choice(self, chosen: _Chosen) -> None:
        raise TypeError(f"{type(self).__name__} does not say what it has chosen")

    def _check_arguments(self) -> None:
        super()._check_arguments()
        name = type(self).__name__
        check_folds(name, self.cv)
        if not (is_number(self.eps) and 0.0 < self.eps < 1.0):
            raise ValueError(
                f"{name}(eps=...) is the least alpha over the largest, and must be between 0 and "
                f"1, got {self.eps!r}"
            )
        if isinstance(self.alphas, Integral):
            if self.alphas < 1:
                raise ValueError(f"{name}(alphas={self.alphas!r}): there must be at least 1")
            return
        given = np.asarray(self.alphas)
        is_list = given.ndim == 1 and len(given) and given.dtype.kind in "iuf"
        if not (is_list and np.all(np.isfinite(given) & (given >= 0.0))):
            raise ValueError(
                f"{name}(alphas=...) must be how many there are, or a list of finite numbers >= 0, "
                f"got {self.alphas!r}"
            )

    def _minimise(
        self,
        source: Source,
        executor: Executor,
        run_id: str,
        keeper: CheckpointKeeper | None,
        history: History,
    ) -> tuple[Setting, Outcome]:
        survey = executor.survey(self._target_kind)
        check_survey(survey.total)
        n_folds, folds = folds_of(type(self).__name__, self.cv, source, survey.total)
        self._check_size(len(source.feature_names), n_folds)
        encoder = TargetEncoder()
        executor.encode(FoldEncoder(encoder, folds))
        factor = 1.0 / survey.total.weight
        plain = Problem(
            SquaredLoss(), ElasticNetPenalty(0.0, 0.0), factor, survey.total, self.fit_intercept
        )
        run = RunSpec(
            run_id,
            "path",
            type(plain.loss).__name__,
            survey.total.n_rows,
            len(source.feature_names),
            len(source.row_chunks),
            self.max_iter,
            self.tol,
        )
        listeners: list[Listener] = [history, *default_progress(), *self.callbacks]
        for listener in listeners:
            listener(FitStarted(run, survey))
        request = plain.request(plain.start(), 2)
        result = executor.evaluate_folds(FoldRequest((request,), n_folds))
        (sums,) = result.total.answers
        with single_threaded_blas():
            chosen = self._choose(plain, request.theta[0], sums)
            self._take_choice(chosen)
            ratio = float(self._ratios()[chosen.ratio])
            alpha = float(chosen.alphas[chosen.ratio, chosen.alpha])
            penalty = ElasticNetPenalty(alpha * (1.0 - ratio), alpha * ratio)
            problem = Problem(plain.loss, penalty, factor, survey.total, self.fit_intercept)
            goal = Goal.of(problem, self.tol, self.max_iter)
            solver = ProximalNewton(
                goal, problem.absolute_weights, problem.curvature, survey.total.n_rows
            )
            start = problem.start()
            state = solver.tell(solver.start(start), problem.evaluation(start, sums.total))
        self.alpha_, self.dual_gap_ = alpha, float(state.gap * state.value)
        for listener in listeners:
            listener(
                RoundEnded(run, 0, 2, _WHAT, state.value, state.gap, state.n_iter, 2.0, result)
            )
            listener(FitEnded(run, state.reason, state.gap))
        return Setting(problem, encoder, start), Outcome(state, 2.0)

    def _check_size(self, n_columns: int, n_folds: int) -> None:
        nbytes = 8 * n_folds * (n_columns + 1) ** 2
        if nbytes > _GRAM_BYTES:
            name = type(self).__name__
            raise IncompatibleError(
                f"{name} takes a Gram matrix of every fold, and those of {n_columns} columns and "
                f"{n_folds} folds have {nbytes / 1e9:.3g} GB, more than {_GRAM_BYTES / 1e9:.3g}: "
                f"use scikit-learn's GridSearchCV around {name.removesuffix('CV')}, which forms "
                "them of few columns"
            )

    def _choose(self, problem: Problem, theta: Array, sums: FoldStatistics) -> _Chosen:
        """Solve for all penalties and training sets, and score on the rows held out."""
        intercept = float(theta[-1]) if self.fit_intercept else None
        weight = sums.weight
        if not np.all(weight > 0.0):
            raise DataError(
                f"sample_weight is zero in every row of fold {int(np.argmin(weight))}: use fewer "
                "folds, or others"
            )
        whole = MeanProducts.of(sums.total, intercept, float(weight.sum()))
        ratios = self._ratios()
        if isinstance(self.alphas, Integral):
            n_alphas = int(self.alphas)
            alphas = np.stack([whole.grid(n_alphas, float(self.eps), ratio) for ratio in ratios])
        else:
            given = np.sort(np.asarray(self.alphas, dtype=np.float64))[::-1]
            alphas = np.tile(given, (len(ratios), 1))
        errors = np.empty((*alphas.shape, len(weight)))
        for k, held_out in enumerate(sums.folds):
            if held_out is None:
                raise DataError(f"fold {k} has no rows: use fewer folds")
            products = MeanProducts.of(sums.training(k), intercept, sums.training_weight(k))
            for r, ratio in enumerate(ratios):
                for a, coef in enumerate(products.coefficients(alphas[r], float(ratio))):
                    here = np.append(coef, products.intercept(coef))[: len(theta)]
                    errors[r, a, k] = 2.0 * loss_at(held_out, here - theta) / weight[k]
        best = divmod(int(np.argmin(errors.mean(axis=2))), alphas.shape[1])
        return _Chosen(alphas, errors, *best)


class LassoCV(_CrossValidated):
    """Lasso whose penalty is chosen by cross-validation.

    Every fold's sums are taken in one pass, and all penalties and folds are solved from them. The
    penalty with the least mean of the folds' mean squared errors is that of a fit to all rows; see
    `Lasso` for what is minimised.

    Parameters
    ----------
    eps : float
        The least penalty as a share of the largest, where `alphas` is a number.
    alphas : int or array-like of shape (m,)
        How many penalties, evenly spaced on a logarithmic scale below that which makes all
        coefficients zero; or the penalties, not negative.
    fit_intercept : bool
    cv : int, splitter, iterable or None
        Number of folds of consecutive rows (None: 5), a `KFold`, or with data in this process any
        splitter or list of splits whose test sets divide the rows.
    tol, max_iter, runtime, callbacks
        See `LinearRegression`; `tol` is of the final fit.

    Attributes
    ----------
    alpha_ : float
        The penalty that was chosen.
    alphas_ : ndarray of shape (m,)
        In falling order.
    mse_path_ : ndarray of shape (m, n_folds)
        Mean squared errors of the rows held out, weighted by their sample weights.
    coef_ : ndarray of shape (p,)
    intercept_ : float
    dual_gap_ : float
        Upper bound of the objective above its optimum.
    n_features_in_, n_iter_ : int
    gap_, n_passes_ : float
    history_, faults_ : DataFrame
        See `LogisticRegression`.

    Examples
    --------
    >>> from dask_dml.linear_model import LassoCV
    >>> X = [[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
    >>> LassoCV(cv=2, alphas=[0.5, 0.1]).fit(X, [-1.0, 1.0, -1.0, 1.0]).alpha_
    0.1
    """

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        alphas: Any = 100,
        fit_intercept: bool = True,
        cv: Any = None,
        tol: float = 1e-8,
        max_iter: int = 100,
        runtime: Runtime | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.eps = eps
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.runtime = runtime
        self.callbacks = callbacks

    def _ratios(self) -> NDArray[np.float64]:
        return np.ones(1)

    def _take_choice(self, chosen: _Chosen) -> None:
        self.alphas_, self.mse_path_ = chosen.alphas[0], chosen.errors[0]


class ElasticNetCV(_CrossValidated):
    """Elastic net whose penalty, and its share of absolute values, cross-validation chooses.

    Every fold's sums are taken in one pass, and all penalties, shares and folds are solved from
    them. That with the least mean of the folds' mean squared errors is that of a fit to all rows;
    see `ElasticNet` for what is minimised.

    Parameters
    ----------
    l1_ratio : float or array-like of shape (r,)
        Shares of the absolute values, from 0 to 1; not 0 where `alphas` is a number.
    eps, alphas, fit_intercept, cv, tol, max_iter, runtime, callbacks
        See `LassoCV`.

    Attributes
    ----------
    alpha_, l1_ratio_ : float
        The penalty that was chosen.
    alphas_ : ndarray of shape (m,), or (r, m) for penalties that are not given
        In falling order.
    mse_path_ : ndarray of shape (m, n_folds), or (r, m, n_folds)
        Mean squared errors of the rows held out, weighted by their sample weights.
    coef_ : ndarray of shape (p,)
    intercept_ : float
    dual_gap_ : float
        Upper bound of the objective above its optimum.
    n_features_in_, n_iter_ : int
    gap_, n_passes_ : float
    history_, faults_ : DataFrame
        See `LogisticRegression`.

    Examples
    --------
    >>> from dask_dml.linear_model import ElasticNetCV
    >>> X = [[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
    >>> model = ElasticNetCV(cv=2, alphas=[0.5, 0.1], l1_ratio=[0.5, 0.9])
    >>> model.fit(X, [-1.0, 1.0, -1.0, 1.0]).l1_ratio_
    0.5
    """

    def __init__(
        self,
        *,
        l1_ratio: Any = 0.5,
        eps: float = 1e-3,
        alphas: Any = 100,
        fit_intercept: bool = True,
        cv: Any = None,
        tol: float = 1e-8,
        max_iter: int = 100,
        runtime: Runtime | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.l1_ratio = l1_ratio
        self.eps = eps
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.runtime = runtime
        self.callbacks = callbacks

    def _check_arguments(self) -> None:
        super()._check_arguments()
        ratios = np.atleast_1d(np.asarray(self.l1_ratio))
        is_list = ratios.ndim == 1 and len(ratios) and ratios.dtype.kind in "iuf"
        if not (is_list and np.all((ratios >= 0.0) & (ratios <= 1.0))):
            raise ValueError(
                f"ElasticNetCV(l1_ratio=...) must be one or more numbers from 0 to 1, got "
                f"{self.l1_ratio!r}"
            )
        if isinstance(self.alphas, Integral) and not np.all(ratios > 0.0):
            raise ValueError(
                "ElasticNetCV(l1_ratio=0, alphas=...): no penalty of squares makes all "
                "coefficients zero, so the penalties must be listed: alphas=[...]"
            )

    def _ratios(self) -> NDArray[np.float64]:
        return np.atleast_1d(np.asarray(self.l1_ratio, dtype=np.float64))

    def _take_choice(self, chosen: _Chosen) -> None:
        ratios = self._ratios()
        self.l1_ratio_ = float(ratios[chosen.ratio])
        is_given = not isinstance(self.alphas, Integral)
        self.alphas_ = chosen.alphas[0] if is_given or len(ratios) == 1 else chosen.alphas
        self.mse_path_ = chosen.errors[0] if len(ratios) == 1 else chosen.errors
