"""From the arguments of `fit` to a finished fit: what all estimators share.

An estimator says what is minimised (loss, penalty, factor) and what its result means; everything
between, from the kind of input to the rounds on the cluster, is here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import dask.array as da
import numpy as np
import pandas as pd
from dask.base import is_dask_collection
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import _check_feature_names, check_is_fitted, validate_data

from dask_dml.data.csr import as_csr, csr_nbytes, is_csr
from dask_dml.data.inputs import made_up_names
from dask_dml.data.layout import choose_grid
from dask_dml.data.source import ArraySource, Source, dask_source
from dask_dml.errors import DataError, IncompatibleError
from dask_dml.faults.checkpoint import Checkpoint, CheckpointKeeper
from dask_dml.faults.identity import identity
from dask_dml.inference import Summary, summary_of
from dask_dml.objective import Problem, Survey, TargetKind
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import TargetEncoder
from dask_dml.report.history import History
from dask_dml.report.progress import default_progress
from dask_dml.runtime import Executor, Listener, Outcome, RunSpec, Runtime, minimise
from dask_dml.runtime.core import KeptSample
from dask_dml.runtime.existence import judged
from dask_dml.runtime.inference import with_likelihood
from dask_dml.runtime.keys import new_run_id
from dask_dml.runtime.local import LocalExecutor
from dask_dml.runtime.sample import is_worth_solving, kept_sample, sample_share
from dask_dml.runtime.small import brought_here
from dask_dml.runtime.speeds import USUAL_ROUNDS
from dask_dml.solvers import Solver
from dask_dml.solvers.choice import choose_solver
from dask_dml.solvers.core import CONVERGED, VANISHED, SolverState
from dask_dml.version import __version__

if TYPE_CHECKING:
    from dask_dml.data import Dataset

SOLVERS = ("auto", "newton", "lbfgs", "gd")

# Memory that blocks of rows in this process are cut for.
_SENT_BYTES = 32 * 8_000_000

MODEL_FORMAT = 1

# Arguments that are on or off, where an estimator has them.
_SWITCHES = ("fit_intercept", "warm_start", "refit")
# Relative gaps that are as good as none: bounds allow for the rounding of sums.
_ROUNDING = 1e-12
_ADVICE = {
    VANISHED: "the rows are fitted to the last digit, and others may be by other coefficients; "
    "penalise them for a single solution"
}


class Setting(NamedTuple):
    """What an estimator minimises, once the survey is known.

    Attributes
    ----------
    problem : Problem
    encoder : TargetEncoder
    start : ndarray of shape (d,)
        First point, in the problem's coordinates.
    solver : Solver or None
        The one that this problem needs; None where the estimator's argument says it.
    """

    problem: Problem
    encoder: TargetEncoder
    start: Array
    solver: Solver[Any] | None = None


class LinearEstimator(BaseEstimator):
    """Base of the linear estimators.

    A subclass gives the kind of its target (`_target_kind`), its `_setting`, and takes the result
    in `_take`.
    """

    tol: float
    max_iter: int
    solver: str
    fit_intercept: bool
    warm_start: bool
    runtime: Runtime | None
    checkpoint: Checkpoint | str | Path | None
    callbacks: Sequence[Listener]

    _target_kind: TargetKind
    # What `save` keeps of a fit, as attributes with an underscore at the end.
    _fitted: tuple[str, ...] = ("coef", "intercept")
    # What to do about a reason for stopping other than the number of iterations.
    _advice: ClassVar[dict[str, str]] = {}

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : array-like, sparse matrix, dask array, dask DataFrame, Dataset, path or URL
            Features of shape (n, p), or a dataset, which brings its own y and weights.
        y : array-like, dask array or Series of shape (n,), optional
            Target; left out with a dataset.
        sample_weight : array-like, dask array or Series of shape (n,), optional
            Weights, finite and not negative.

        Returns
        -------
        self

        Raises
        ------
        DataError
            If the data cannot be fitted; the message names the block and the column.
        IncompatibleError
            If arguments do not go together; raised before any data is read. If the checkpoint
            there is that of another fit.
        ClusterError
            If the cluster cannot run a fit.
        FitError
            If a fit under way could not go on.
        StoreError
            If checkpoints cannot be written, or the one there is of another version.
        """
        self._check_arguments()
        source, names = self._source(X, y, sample_weight)
        history = History()
        setting, outcome = self._run(source, history)
        state = outcome.state
        self.n_features_in_ = len(source.feature_names)
        if names is not None:
            self.feature_names_in_ = np.asarray(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self._take(setting, state.point)
        self._likelihood = outcome.likelihood
        self.gap_ = float(state.gap)
        self.n_iter_ = max(int(state.n_iter), 1)
        self.n_passes_ = float(outcome.passes)
        self.history_ = history.frame()
        self.faults_ = history.faults_frame()
        self._warn_unless_certain(state)
        return self

    def _warn_unless_certain(self, state: SolverState) -> None:
        name = f"{type(self).__name__}(solver={self.solver!r})"
        if state.reason != CONVERGED:
            has_other = self.solver in ("lbfgs", "gd")
            advice = "raise max_iter, or use solver='newton'" if has_other else "raise max_iter"
            warnings.warn(
                f"{name} stopped before a relative gap of {self.tol:g} "
                f"({state.reason}, {state.n_iter} iterations, gap {state.gap:.1e}): "
                f"{(self._advice | _ADVICE).get(state.reason, advice)}",
                ConvergenceWarning,
                stacklevel=3,
            )
        elif state.gap > max(self.tol, _ROUNDING):
            warnings.warn(
                f"{name} has come as close as rounding allows, but no closer than a relative gap "
                f"of {state.gap:.1e} is certain, where {self.tol:g} was asked for: scale columns "
                "whose sizes are far apart alike, or raise tol",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _run(self, source: Source, history: History) -> tuple[Setting, Outcome]:
        """Survey the rows, say what is minimised, and minimise it."""
        run_id = new_run_id()
        keeper = self._keeper(source, run_id, history)
        runtime = Runtime() if self.runtime is None else self.runtime
        here = None
        if self.runtime is None and self.solver == "auto":
            here = brought_here(source)
        executor: Executor
        if here is None:
            n_rounds = 1 if self._is_known_by_moments(source) else USUAL_ROUNDS
            executor = runtime.executor(source, run_id, n_rounds)
        else:
            executor = LocalExecutor(here)
        history.where = "in this process" if isinstance(executor, LocalExecutor) else "on a cluster"
        if here is not None:
            history.where += f", sooner than a cluster: {sum(source.block_nbytes) / 1e6:.2g} MB"
        try:
            with nullcontext() if keeper is None else keeper:
                return self._minimise(source, executor, run_id, keeper, history)
        finally:
            executor.close()

    def _minimise(
        self,
        source: Source,
        executor: Executor,
        run_id: str,
        keeper: CheckpointKeeper | None,
        history: History,
    ) -> tuple[Setting, Outcome]:
        # A warm start is nearer to the optimum than that of a sample.
        is_sampled = self.solver == "auto" and not self._is_warm()
        share = self._sample_share(source) if is_sampled else 0.0
        with_moments = self._is_known_by_moments(source)
        survey = executor.survey(self._target_kind, share, with_moments)
        check_survey(survey.total)
        if keeper is not None:
            keeper.check_data(survey.total)
        setting = self._setting(survey.total)
        executor.encode(setting.encoder)
        problem, start = setting.problem, setting.start
        kept: AbstractContextManager[KeptSample | None] = nullcontext()
        if share and setting.solver is None and is_worth_solving(problem, share):
            kept = kept_sample(setting.encoder, survey.total)
        known = None
        if (moments := survey.total.moments) is not None:
            known = moments.statistics(problem.request(start, 2))
        with kept as sample:
            solver, why = setting.solver, "the only one for this model"
            if solver is None:
                share = 0.0 if sample is None else sample.share
                solver, why = choose_solver(self.solver, problem, self.tol, self.max_iter, share)
            run = RunSpec(
                run_id,
                solver.name,
                type(problem.loss).__name__,
                survey.total.n_rows,
                len(source.feature_names),
                len(source.row_chunks),
                self.max_iter,
                self.tol,
                why,
            )
            outcome = minimise(
                problem,
                solver,
                start,
                executor,
                run,
                survey,
                [history, *default_progress(), *self.callbacks],
                keeper=keeper,
                known=known,
                sample=sample,
            )
        outcome = judged(problem, executor, outcome, self.tol)
        return setting, with_likelihood(problem, executor, outcome)

    def _keeper(self, source: Source, run_id: str, history: History) -> CheckpointKeeper | None:
        if self.checkpoint is None:
            return None
        checkpoint = self.checkpoint
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        fit = identity(
            type(self).__name__, self._plain_params(), source.row_chunks, source.feature_names
        )
        return CheckpointKeeper(checkpoint, fit, run_id, history)

    def _plain_params(self) -> dict[str, Any]:
        """The arguments that have a say in the result, as JSON holds them."""
        return {
            name: _plain(name, value)
            for name, value in self.get_params(deep=False).items()
            if name not in ("runtime", "checkpoint", "callbacks")
        }

    def summary(self, level: float = 0.95) -> Summary:
        """Standard errors, tests and intervals of the coefficients, as R's `summary`.

        Parameters
        ----------
        level : float
            Of the confidence intervals, between 0 and 1.

        Returns
        -------
        Summary
            Prints as a table, and has its numbers as DataFrames.

        Raises
        ------
        IncompatibleError
            If there are no standard errors: the model is penalised or of another kind than
            generalised linear models, has not converged, has more than 2,000 coefficients, or was
            loaded.
        sklearn.exceptions.NotFittedError
            Before `fit`.

        Notes
        -----
        From the expected information at the optimum. Weights are frequencies: a row of weight 2
        counts as two. For log losses the sums have cost `fit` a pass over the data, for deviances
        two, and for least squares none.
        """
        check_is_fitted(self)
        name = type(self).__name__
        likelihood = getattr(self, "_likelihood", None)
        if likelihood is None:
            raise IncompatibleError(
                f"{name}.summary() and these arguments of the fit do not go together: standard "
                "errors are of models without a penalty (LinearRegression, "
                "LogisticRegression(C=inf), PoissonRegressor(alpha=0) and others with a deviance), "
                "since a penalty biases coefficients; of fits that have converged; and of this "
                "process, not of models that were loaded. Fit such a model again"
            )
        columns = getattr(self, "feature_names_in_", made_up_names(self.n_features_in_))
        return summary_of(name, likelihood, columns, getattr(self, "classes_", None), level)

    def save(self, store: Any, overwrite: bool = False) -> None:
        """Write the fitted model to a Zarr store, without pickle.

        Parameters
        ----------
        store : str, Path or zarr store
        overwrite : bool

        Raises
        ------
        StoreExistsError
            If something is there and ``overwrite`` is False.
        sklearn.exceptions.NotFittedError
            Before `fit`.
        """
        check_is_fitted(self)
        names = getattr(self, "feature_names_in_", None)
        arrays = {
            name: np.asarray(getattr(self, f"{name}_"), dtype=np.float64) for name in self._fitted
        }
        attributes = {
            "format": MODEL_FORMAT,
            "kind": "model",
            "estimator": type(self).__name__,
            "parameters": self._plain_params(),
            "n_features": int(self.n_features_in_),
            "feature_names": None if names is None else [str(name) for name in names],
            "classes": _classes_as_json(getattr(self, "classes_", None)),
            "gap": None if np.isnan(self.gap_) else self.gap_,
            "n_iter": self.n_iter_,
            "n_passes": self.n_passes_,
            "written_by": f"dask_dml {__version__}",
        }
        from dask_dml.data.store import save_arrays

        save_arrays(store, arrays, attributes, overwrite=overwrite)

    def _restore(self, arrays: dict[str, NDArray[Any]], attributes: dict[str, Any]) -> Self:
        """Take on what `save` wrote."""
        if attributes["classes"] is not None:
            labels = attributes["classes"]
            self.classes_ = np.asarray(labels["values"], dtype=labels["dtype"])
        for name in self._fitted:
            setattr(self, f"{name}_", arrays[name] if arrays[name].ndim else float(arrays[name]))
        self.n_features_in_ = int(attributes["n_features"])
        if attributes["feature_names"] is not None:
            self.feature_names_in_ = np.asarray(attributes["feature_names"], dtype=object)
        self.gap_ = np.nan if attributes["gap"] is None else float(attributes["gap"])
        self.n_iter_ = int(attributes["n_iter"])
        self.n_passes_ = float(attributes["n_passes"])
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _sample_share(self, source: Source) -> float:
        """Share of the rows that come with the survey, for a first point to be found here."""
        n_rows = sum(source.row_chunks)
        row_nbytes = sum(source.block_nbytes) / n_rows
        return sample_share(n_rows, len(source.feature_names), row_nbytes)

    def _is_known_by_moments(self, source: Source) -> bool:
        """Whether second moments, which the survey then brings, are all there is to know."""
        return False

    # -- what a subclass says ---------------------------------------------------------------

    def _setting(self, survey: Survey) -> Setting:
        raise TypeError(f"{type(self).__name__} does not say what it minimises")

    def _take(self, setting: Setting, point: Array) -> None:
        raise TypeError(f"{type(self).__name__} does not say what its coefficients are")

    # -- arguments --------------------------------------------------------------------------

    def _check_arguments(self) -> None:
        name = type(self).__name__
        if self.solver not in SOLVERS:
            raise IncompatibleError(
                f"{name}(solver={self.solver!r}) is not a solver: use one of {', '.join(SOLVERS)}"
            )
        if not (is_number(self.tol) and self.tol > 0.0):
            raise ValueError(f"{name}(tol=...) must be a positive number, got {self.tol!r}")
        if not (is_number(self.max_iter) and self.max_iter >= 1 and self.max_iter % 1 == 0):
            raise ValueError(f"{name}(max_iter=...) must be an integer >= 1, got {self.max_iter!r}")
        for argument in _SWITCHES:
            value = getattr(self, argument, False)
            if not isinstance(value, bool | np.bool_):
                raise ValueError(f"{name}({argument}=...) must be True or False, got {value!r}")
        if not isinstance(self.runtime, Runtime | None):
            raise TypeError(
                f"{name}(runtime=...) must be a dask_dml.Runtime, or None for the current client "
                f"or else this process, got {self.runtime!r}"
            )
        listeners = self.callbacks
        if not (isinstance(listeners, Sequence) and all(map(callable, listeners))):
            raise TypeError(
                f"{name}(callbacks=...) must be a list of functions of an event, got {listeners!r}"
            )
        if not isinstance(self.checkpoint, Checkpoint | str | Path | None):
            raise TypeError(
                f"{name}(checkpoint=...) must be a path, a URL, a dask_dml.Checkpoint or None, got "
                f"{self.checkpoint!r}"
            )

    def _source(self, X: Any, y: Any, sample_weight: Any) -> tuple[Source, tuple[str, ...] | None]:
        """The rows as a source, and the names of the columns where they have any."""
        if is_dataset(X):
            return _dataset_source(as_dataset(X), y, sample_weight)
        if is_dask_collection(X):
            if y is None:
                raise ValueError(
                    f"{type(self).__name__} requires y to be passed, but the target y is None"
                )
            names = _numeric_columns(X) if hasattr(X, "columns") else None
            weight = None if sample_weight is None else as_dask(sample_weight)
            return dask_source(as_dask(X), as_dask(y), weight, names), names
        if isinstance(X, pd.DataFrame):
            _check_columns(X)
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            dtype=(np.float64, np.float32),
            ensure_all_finite=False,
            y_numeric=self._target_kind is TargetKind.NUMBERS,
        )
        if sample_weight is not None:
            sample_weight = _weights(sample_weight, X.shape[0])
        named = getattr(self, "feature_names_in_", None)
        names = None if named is None else tuple(str(name) for name in named)
        itemsize: float = X.dtype.itemsize
        if is_csr(X):
            X = as_csr(X, X.dtype)
            itemsize = csr_nbytes(X) / (X.shape[0] * X.shape[1])
        # Blocks of 8 MB: Dask warns of tasks of 10 MB, as which they go to the workers.
        grid = choose_grid(X.shape[0], X.shape[1], itemsize, memory_bytes=_SENT_BYTES)
        made_up = tuple(made_up_names(X.shape[1]))
        return ArraySource(X, y, sample_weight, names or made_up, grid.row_chunks), names

    def _is_warm(self) -> bool:
        return self.warm_start and hasattr(self, "coef_")

    def _warm(self, problem: Problem, coef: Array, intercept: Array) -> Array:
        """First point: that of the last fit with ``warm_start``, otherwise the constant model."""
        if self._is_warm() and self.coef_.shape == coef.shape:
            return problem.point(np.atleast_2d(self.coef_), np.atleast_1d(self.intercept_))
        return problem.start()

    # -- prediction -------------------------------------------------------------------------

    def _map_scores(self, X: Any, finish: Callable[[Array], NDArray[Any]], dtype: Any) -> Any:
        """Scores of the rows, finished block by block: lazy for dask input, else NumPy."""
        check_is_fitted(self)
        coef = np.atleast_2d(self.coef_)
        intercept = np.atleast_1d(self.intercept_)
        if is_dataset(X):
            X = self._features(as_dataset(X))
        if is_dask_collection(X):
            if hasattr(X, "columns"):
                # A frame of the names alone: taking rows, even none, would compute a partition.
                _check_feature_names(self, pd.DataFrame(columns=X.columns), reset=False)
            X = as_dask(X)
            if X.shape[1] != self.n_features_in_:
                raise DataError(
                    f"X has {X.shape[1]} features, but {type(self).__name__} is expecting "
                    f"{self.n_features_in_} features as input: give it the columns it was fitted on"
                )
            if X.numblocks[1] > 1:
                X = X.rechunk({1: -1})
            sample = finish(np.zeros((1, len(coef))))
            wide = sample.ndim == 2
            # Without `concatenate` blocks come as they are: a block of codes would become dense.
            return da.blockwise(
                _predict_blocks,
                "ik" if wide else "i",
                X,
                "ij",
                new_axes={"k": sample.shape[1]} if wide else {},
                concatenate=False,
                dtype=dtype,
                meta=np.empty((0,) * sample.ndim, dtype=dtype),
                coef=coef,
                intercept=intercept,
                finish=finish,
            )
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)
        return _predict_block(X, coef, intercept, finish)

    def _features(self, dataset: Dataset) -> da.Array:
        """The features of a dataset, whose columns must have the names of those of the fit."""
        names = [str(name) for name in getattr(self, "feature_names_in_", ())]
        if len(names) == dataset.n_columns and names != dataset.feature_names:
            j = next(j for j, name in enumerate(names) if name != dataset.feature_names[j])
            raise DataError(
                f"column {j} of {dataset.url} is {dataset.feature_names[j]!r}, and that of the fit "
                f"was {names[j]!r}: give {type(self).__name__} the columns of its fit, in order"
            )
        return dataset.X


def _predict_blocks(blocks: list[Any], **model: Any) -> NDArray[Any]:
    """Of the blocks of some rows, which is one."""
    (block,) = blocks
    return _predict_block(block, **model)


def _predict_block(
    X: Any, coef: Array, intercept: Array, finish: Callable[[Array], NDArray[Any]]
) -> NDArray[Any]:
    scores = np.asarray(X @ coef.T, dtype=np.float64) + intercept
    if not np.all(np.isfinite(scores)):
        row = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise DataError(
            f"Input X contains NaN or infinity, or values too large to predict from, first at row "
            f"{row} of its block: fill in or drop such values before predict"
        )
    return finish(scores)


def is_dataset(X: Any) -> bool:
    """Whether X is a dataset, or names one: a path, a URL or a zarr store."""
    # By the modules of their types: neither is imported before there is one.
    module = type(X).__module__
    return (
        isinstance(X, str | os.PathLike)
        or module == "dask_dml.data.dataset"
        or module.split(".")[0] == "zarr"
    )


def as_dataset(X: Any) -> Dataset:
    """The dataset that X is or names."""
    from dask_dml.data.dataset import Dataset, open_dataset

    return X if isinstance(X, Dataset) else open_dataset(X)


def _dataset_source(
    dataset: Dataset, y: Any, sample_weight: Any
) -> tuple[Source, tuple[str, ...] | None]:
    if dataset.layout != "horizontal":
        raise IncompatibleError(
            f"fit needs blocks of whole rows, and {dataset.url} has layout "
            f"{dataset.layout!r}: use dataset.repartition(store, layout='horizontal')"
        )
    weight = dataset.sample_weight if sample_weight is None else as_dask(sample_weight)
    names = tuple(dataset.feature_names)
    target = dataset.y if y is None else as_dask(y)
    named = dataset.feature_names != made_up_names(len(names))
    source = dask_source(dataset.X, target, weight, names, dataset.block_nbytes)
    return source, names if named else None


def as_dask(values: Any, chunks: Any = -1) -> da.Array:
    """Values as a dask array; those of this process are cut into chunks."""
    if hasattr(values, "to_dask_array"):
        values = values.to_dask_array()
    if not isinstance(values, da.Array):
        values = da.from_array(np.asarray(values), chunks=chunks)
    array: da.Array = values
    return array


def _numeric_columns(frame: Any) -> tuple[str, ...]:
    _refuse_columns({c: d for c, d in frame.dtypes.items() if d.kind not in "biuf"})
    return tuple(str(c) for c in frame.columns)


def _check_columns(frame: pd.DataFrame) -> None:
    """Refuse text and dates; numbers as objects or categories are read as in scikit-learn."""
    _refuse_columns({c: v.dtype for c, v in frame.items() if not _holds_numbers(v)})


def _holds_numbers(column: pd.Series[Any]) -> bool:
    kind = column.dtype.kind
    if kind not in "OSU":
        return kind not in "Mm"
    try:
        column.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _refuse_columns(odd: dict[Any, Any]) -> None:
    if odd:
        named = ", ".join(f"{column!r} ({dtype})" for column, dtype in odd.items())
        raise DataError(
            f"X has columns that are not numeric: {named}; encode or drop them before fit"
        )


def is_number(value: Any) -> bool:
    """Whether an argument is a real number."""
    return isinstance(value, Real)


def _weights(sample_weight: Any, n_rows: int) -> NDArray[Any]:
    weights = np.asarray(sample_weight)
    if weights.ndim == 0:
        return np.full(n_rows, float(weights))
    if weights.ndim != 1:
        raise DataError(f"sample_weight must be 1D array or scalar, got shape {weights.shape}")
    if len(weights) != n_rows:
        raise DataError(f"sample_weight.shape == {weights.shape}, expected ({n_rows},)!")
    return weights


def check_survey(survey: Survey) -> None:
    """Refuse data without weight."""
    if survey.weight <= 0.0:
        raise DataError("sample_weight is zero in every row: give some rows a positive weight")


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        items = sorted(value.items(), key=repr)
        return {"items": [[_plain(name, k), _plain(name, v)] for k, v in items]}
    if isinstance(value, float) and not np.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(name, item) for item in value]
    raise TypeError(f"the parameter {name}={value!r} cannot be written to a store")


def plain_value(value: Any) -> Any:
    """What `save` wrote of a parameter, as it was."""
    if isinstance(value, dict):
        if "float" in value:
            return float(value["float"])
        return {key: plain_value(item) for key, item in value["items"]}
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    return value


def _classes_as_json(classes: NDArray[Any] | None) -> dict[str, Any] | None:
    if classes is None:
        return None
    dtype = "object" if classes.dtype.kind in "OT" else classes.dtype.str
    return {"dtype": dtype, "values": classes.tolist()}
