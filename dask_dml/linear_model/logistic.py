"""Logistic regression of two or more classes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import dask
import dask.array as da
import numpy as np
from dask.base import is_dask_collection
from numpy.typing import NDArray

from dask_dml.data.source import Source
from dask_dml.errors import IncompatibleError
from dask_dml.estimator import (
    Setting,
    as_dask,
    is_number,
)
from dask_dml.faults.checkpoint import Checkpoint
from dask_dml.linear_model.classification import LinearClassifier
from dask_dml.linear_model.cross_validation import (
    CrossValidated,
    Grid,
    coefficients_of,
    metric_of,
    penalty_values,
)
from dask_dml.linear_model.scoring import plain_scores, scored
from dask_dml.objective import (
    ElasticNetPenalty,
    L2Penalty,
    LogisticLoss,
    MultinomialLoss,
    Problem,
    Survey,
)
from dask_dml.objective.held_out import (
    Accuracy,
    Metric,
    NegativeBrierScore,
    NegativeLogLoss,
)
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import Listener, Outcome, Runtime
from dask_dml.runtime.cross_validation import CrossValidation
from dask_dml.solvers.core import CONVERGED, MAX_ITER, SolverState
from dask_dml.solvers.escape import NO_OPTIMUM
from dask_dml.solvers.joint import JointNewton, JointState


def loss_of(n_classes: int) -> LogisticLoss | MultinomialLoss:
    """The log loss of two or more classes."""
    return LogisticLoss() if n_classes == 2 else MultinomialLoss(n_classes)


class LogisticClassifier(LinearClassifier):
    """What the logistic regressions share: probabilities."""

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of the classes, shape (n, K), in the order of `classes_`."""
        return self._map_scores(X, self._loss().probabilities, np.float64)

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of the probabilities, shape (n, K)."""
        return self._map_scores(X, self._loss().log_probabilities, np.float64)

    def _loss(self) -> LogisticLoss | MultinomialLoss:
        return loss_of(len(self._fitted_classes()))


class LogisticRegression(LogisticClassifier):
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

    _advice: ClassVar[dict[str, str]] = {
        NO_OPTIMUM: "the classes are separable, all of their rows or some, and without a penalty "
        "nothing keeps the coefficients finite; set C to a finite number"
    }

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
        loss = loss_of(n_classes)
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


# Of the relative gap that chance in the rows makes, about a coefficient's over a row's loss, what
# the models of folds may be away from their optimum.
_STATISTICAL_SHARE = 3e-3

METRICS: dict[str, Metric] = {
    "accuracy": Accuracy(),
    "neg_log_loss": NegativeLogLoss(),
    "neg_brier_score": NegativeBrierScore(),
}


class LogisticRegressionCV(CrossValidated, LogisticClassifier):
    r"""Logistic regression whose penalty is chosen by cross-validation.

    Every pass over the data serves all folds, values of C and l1_ratios; see the notes. The
    objective of each model is that of `LogisticRegression`, on the rows of all folds but one; the
    best model is then fitted to all rows.

    Parameters
    ----------
    Cs : int or list of float
        Values to try, ``inf`` for no penalty; a number means so many from 1e-4 to 1e4, in equal
        ratios.
    l1_ratios : sequence of float
        Shares of the L1 norm in the penalty to try with every C, from 0 to 1; see
        `LogisticRegression`.
    fit_intercept : bool
    cv : int, splitter, iterable or None
        Number of stratified folds, not shuffled; None is 5. For data in this process also a
        scikit-learn splitter or pairs of training and test rows, whose test rows divide the data.
    scoring : {"accuracy", "neg_log_loss", "neg_brier_score"} or None
        What is highest, in the mean over the folds, for the best C and l1_ratio, of equals for the
        first C; None is accuracy. Rows held out count with their sample weights, without those of
        classes.
    tol : float
        Relative gap of the model that is fitted to all rows.
    path_tol : float or None
        Relative gap of the models of the folds, by an estimate that is mostly above the gap itself
        by a factor of ten to a hundred. None is well within what comes of chance in the choice of
        the rows: 0.003 for every coefficient over the number of rows, but not less than `tol`. The
        gap of the last model, `gap_`, is certified.
    max_iter : int
        Most Newton steps of a model.
    class_weight : dict, "balanced" or None
        Factors on the rows of each class in training; "balanced" by the classes of all rows.
    refit : bool
        False: no model is fitted to all rows. The coefficients, `C_` and `l1_ratio_` are means over
        the folds of those of the best model of each; `gap_` is nan.
    runtime : Runtime or None
    callbacks : sequence of callable
        See `LogisticRegression`. There is no `checkpoint`: one of many models is not kept.

    Attributes
    ----------
    C_, l1_ratio_ : float
        What was chosen.
    Cs_, l1_ratios_ : ndarray
        What was tried.
    scores_ : ndarray of shape (n_folds, n_l1_ratios, n_cs)
    coefs_paths_ : ndarray of shape (n_folds, n_l1_ratios, n_cs, K, p or p + 1)
        Of the models of the folds, with the intercept last; K is 1 for two classes.
    coef_, intercept_, classes_, n_features_in_, n_iter_, gap_, n_passes_, history_, faults_
        Of the model that is fitted to all rows; see `LogisticRegression`. Shapes of attributes are
        those of scikit-learn 1.10 (``use_legacy_attributes=False`` in 1.8 and 1.9).

    Notes
    -----
    Each row is held out in one fold. A pass that keeps folds apart gives loss, gradient and Hessian
    of all training sets, and C enters after the sums, so the sums at one point give a Newton step
    to every model, a proximal one with an L1 norm in the penalty. A step of decrement d in the
    loss, on rows with the sum w of second derivatives, leaves a gap of about ``10 d^4 / (8 w)``
    (`docs/models.md` says why). Where that is too much, further points are taken, each near many
    models; several points go into one pass over the data.

    Examples
    --------
    >>> import numpy as np
    >>> from dask_dml.linear_model import LogisticRegressionCV
    >>> x = np.arange(40.0)[:, None]
    >>> model = LogisticRegressionCV(Cs=[0.01, 1.0], scoring="neg_log_loss").fit(x, x[:, 0] > 20)
    >>> model.C_
    1.0
    """

    def __init__(
        self,
        *,
        Cs: Any = 10,
        l1_ratios: Sequence[float] = (0.0,),
        fit_intercept: bool = True,
        cv: Any = None,
        scoring: str | None = None,
        tol: float = 1e-8,
        path_tol: float | None = None,
        max_iter: int = 100,
        class_weight: Any = None,
        refit: bool = True,
        runtime: Runtime | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.Cs = Cs
        self.l1_ratios = l1_ratios
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.scoring = scoring
        self.tol = tol
        self.path_tol = path_tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.refit = refit
        self.runtime = runtime
        self.callbacks = callbacks

    def _check_arguments(self) -> None:
        super()._check_arguments()
        tol = self.path_tol
        if not (tol is None or (is_number(tol) and tol > 0.0)):
            raise ValueError(
                f"LogisticRegressionCV(path_tol=...) must be a positive number or None, got {tol!r}"
            )
        self._values()
        self._ratios()
        self._metric_named()

    def _tol_of_folds(self, problem: Problem) -> float:
        if self.path_tol is not None:
            return self.path_tol
        statistical = problem.n_coordinates / problem.survey.n_rows
        return max(self.tol, _STATISTICAL_SHARE * statistical)

    def _values(self) -> Array:
        if isinstance(self.Cs, Integral) and not isinstance(self.Cs, bool):
            if self.Cs < 1:
                raise ValueError(f"LogisticRegressionCV(Cs={self.Cs!r}) must be at least 1 value")
            return np.logspace(-4, 4, int(self.Cs))
        return penalty_values("LogisticRegressionCV", "Cs", self.Cs, has_zero=False)

    def _ratios(self) -> Array:
        name = "LogisticRegressionCV"
        ratios = penalty_values(name, "l1_ratios", self.l1_ratios, has_zero=True)
        if np.any(ratios > 1.0):
            raise ValueError(
                f"{name}(l1_ratios=...): every value must be at most 1, found {ratios.max()}"
            )
        return ratios

    def _metric_named(self) -> Metric:
        scoring = "accuracy" if self.scoring is None else self.scoring
        return metric_of("LogisticRegressionCV", scoring, METRICS)

    def _metric(self, survey: Survey) -> Metric:
        return self._metric_named()

    def _problems(self, survey: Survey) -> tuple[list[Problem], TargetEncoder]:
        loss = loss_of(len(survey.classes))
        weighted, factors = self._weighted(survey)
        problems = [
            Problem(
                loss,
                L2Penalty(0.0) if np.isinf(C) else ElasticNetPenalty(1.0 - ratio, ratio),
                1.0 if np.isinf(C) else float(C),
                weighted,
                self.fit_intercept,
            )
            for C in self._values()
            for ratio in self._ratios().tolist()
        ]
        return problems, TargetEncoder(survey.classes, factors)

    def _take_grid(self, problems: Sequence[Problem], grid: Grid) -> None:
        coef, intercept = coefficients_of(problems[0], grid.theta)
        paths = np.concatenate([coef, intercept[..., None]], -1) if self.fit_intercept else coef
        self.Cs_, self.l1_ratios_ = self._values(), self._ratios()
        # Models are in order of C, and of l1_ratio for each.
        shape = (len(paths), len(self.Cs_), len(self.l1_ratios_))
        self.scores_ = grid.scores.reshape(shape).swapaxes(1, 2)
        self.coefs_paths_ = paths.reshape(*shape, *paths.shape[2:]).swapaxes(1, 2)
        best = grid.best if self.refit else grid.scores.argmax(axis=1)
        of_C, of_ratio = np.divmod(best, shape[2])
        self.C_ = float(np.mean(self.Cs_[of_C]))
        self.l1_ratio_ = float(np.mean(self.l1_ratios_[of_ratio]))

    def _refitted(
        self,
        rounds: CrossValidation,
        joint: JointNewton,
        state: JointState,
        grid: Grid,
        encoder: TargetEncoder,
    ) -> tuple[Setting, Outcome]:
        if self.refit:
            return super()._refitted(rounds, joint, state, grid, encoder)
        best = grid.scores.argmax(axis=1)
        theta = grid.theta[np.arange(joint.n_folds), best].mean(axis=0)
        point = (theta * joint.problems[0].scale).ravel()
        n_iter = int(state.n_iter.max())
        reason = CONVERGED if grid.is_solved else MAX_ITER
        final = SolverState(point, np.nan, np.nan, n_iter, reason)
        return Setting(joint.problems[0], encoder, point), Outcome(final, rounds.passes)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """What `scoring` says; a lazy number for dask input.

        Parameters
        ----------
        X : see `predict`
        y : array-like or dask array of shape (n,); left out with a dataset
        sample_weight : array-like or dask array of shape (n,), optional
        """
        if self.scoring in (None, "accuracy"):
            return super().score(X, y, sample_weight)
        X, y, sample_weight = scored(X, y, sample_weight)
        scores = self._map_scores(X, plain_scores, np.float64)
        metric, classes = self._metric_named(), self._fitted_classes()
        if not is_dask_collection(scores):
            weight = np.ones(len(scores)) if sample_weight is None else np.asarray(sample_weight)
            return float(metric.value(_summed(scores, np.asarray(y), weight, metric, classes)))
        rows = scores.chunks[:1]
        parts = [scores, as_dask(y, rows)]
        parts.append(
            da.ones(scores.shape[:1], chunks=rows)
            if sample_weight is None
            else as_dask(sample_weight, rows)
        )
        blocks = [part.to_delayed().ravel() for part in parts]
        sums = [
            da.from_delayed(dask.delayed(_summed)(*block, metric, classes), (metric.n_sums,), float)
            for block in zip(*blocks, strict=True)
        ]
        return da.stack(sums).sum(axis=0).map_blocks(metric.value, drop_axis=0, dtype=np.float64)


def _summed(
    scores: Array, y: NDArray[Any], weight: Array, metric: Metric, classes: NDArray[Any]
) -> Array:
    """A metric's sums over rows."""
    target = TargetEncoder(classes).encode(y, None).target
    return np.asarray(metric.sums(scores.reshape(len(y), 1, -1), target, weight)[0])
