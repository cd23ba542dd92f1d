"""The function that a solver minimises, in coordinates that suit it.

People's coordinates are coefficients and intercept of the columns as given. Blocks work with
centred columns. Solvers see a flat vector ``v`` of centred and scaled coordinates, in which the
Hessian's diagonal is near one whatever the units of the columns; the objective is the same number
in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dask_dml.objective.blocks import GramDtype, Request, Statistics
from dask_dml.objective.losses import Array, Loss
from dask_dml.objective.penalties import Penalty
from dask_dml.objective.survey import Survey


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The objective at one point, in the solver's coordinates.

    Attributes
    ----------
    value : float
    gradient : ndarray of shape (d,)
    hessian : ndarray of shape (d, d) or None
        Of all coordinates, or of those of the terms that were asked for.
    """

    value: float
    gradient: Array
    hessian: Array | None


@dataclass(frozen=True)
class Problem:
    """``multiplier * sum_i s_i loss(z_i, y_i) + penalty(w)``, over all blocks.

    Parameters
    ----------
    loss : Loss
    penalty : Penalty
    multiplier : float
        Factor on the sum of losses (C of a logistic regression).
    survey : Survey
        Of all blocks.
    fit_intercept : bool
        Whether there is an intercept; without one columns are not centred.
    intercept_strength : float
        Of half the intercept's square in the penalty; where it is not 0, columns are not centred.
    isotropic : bool
        Scale all columns alike, so that the solution of least norm in the solver's coordinates
        is that of least norm in people's. So it is in any case where rows are fewer than columns
        and no absolute values are penalised: gradients then stay in the span of the rows, in which
        the Hessian is far better conditioned than in all directions.
    """

    loss: Loss
    penalty: Penalty
    multiplier: float
    survey: Survey
    fit_intercept: bool
    isotropic: bool = False
    intercept_strength: float = 0.0
    center: Array = field(init=False, repr=False)
    scale: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n_columns = len(self.survey.moment1)
        is_spanned = self.survey.n_rows < n_columns and self.penalty.absolute == 0.0
        is_isotropic = self.isotropic or is_spanned
        center = np.zeros(n_columns)
        spread = self.survey.moment2.copy()
        if self.fit_intercept:
            mean, variance = self.survey.mean, self.survey.variance
            # Where the mean is within the spread, centring costs time and gains no accuracy; the
            # solution of least norm is that of columns which are all centred.
            needed = is_isotropic or bool(np.any(mean**2 > variance))
            needed = needed and self.intercept_strength == 0.0
            center = mean if needed else center
            spread = variance * self.survey.weight
        if is_isotropic:
            spread[:] = spread.mean()
        steepness = self.multiplier * self.loss.typical_curvature(self._target_mean)
        metric = steepness * spread + self.penalty.strength
        if self.fit_intercept:
            metric = np.append(metric, steepness * self.survey.weight + self.intercept_strength)
        object.__setattr__(self, "center", center)
        object.__setattr__(self, "scale", np.sqrt(np.where(metric > 0.0, metric, 1.0)))

    @property
    def n_terms(self) -> int:
        """Coordinates an output: p, and one more with an intercept."""
        return len(self.scale)

    @property
    def n_coordinates(self) -> int:
        """Length d of the solver's vector: K * q."""
        return self.loss.n_outputs * self.n_terms

    @property
    def _target_mean(self) -> Array:
        """Shares of the classes, or the mean of the target."""
        survey = self.survey
        if len(survey.classes):
            return survey.class_weight / survey.weight
        return np.array([survey.target_moment1 / survey.weight])

    def _theta(self, point: Array) -> Array:
        return point.reshape(self.loss.n_outputs, self.n_terms) / self.scale

    def _penalised(self, theta: Array) -> Array:
        return theta[:, :-1] if self.fit_intercept else theta

    def start(self) -> Array:
        """The point of the best constant model: no coefficients, and its intercept."""
        theta = np.zeros((self.loss.n_outputs, self.n_terms))
        if self.fit_intercept:
            with np.errstate(divide="ignore"):
                constant = self.loss.best_constant(self._target_mean)
            theta[:, -1] = np.clip(constant, -30.0, 30.0) if len(self.survey.classes) else constant
        return (theta * self.scale).ravel()

    def point(self, coef: Array, intercept: Array) -> Array:
        """Solver's coordinates of coefficients (K, p) and intercepts (K,)."""
        theta = coef.copy()
        if self.fit_intercept:
            theta = np.column_stack([coef, intercept + (coef * self.center).sum(axis=1)])
        return np.ascontiguousarray(self.unshifted(theta) * self.scale).ravel()

    def unshifted(self, theta: Array) -> Array:
        """Of coefficients (..., K, q) with the same scores but for shifts, those of least penalty.

        See `_hessian`: points have no other part.
        """
        if not self.loss.shift_invariant:
            return theta
        theta = theta.copy()
        free = theta[..., self._n_fixed :]
        free -= free.mean(axis=-2, keepdims=True)
        return theta

    def coefficients(self, point: Array) -> tuple[Array, Array]:
        """Coefficients (K, p) and intercepts (K,) of the columns as given."""
        theta = self._theta(point)
        coef = self._penalised(theta).copy()
        if not self.fit_intercept:
            return coef, np.zeros(len(coef))
        return coef, theta[:, -1] - (coef * self.center).sum(axis=1)

    def request(
        self,
        point: Array,
        order: int,
        share: float = 1.0,
        gram_share: float = 1.0,
        terms: NDArray[np.intp] | None = None,
        gram_dtype: GramDtype = np.float64,
    ) -> Request:
        """What to ask of the blocks for the objective at a point; as in `Request`.

        `terms` are those that the Hessian is of, the intercept among them; None is all.
        """
        columns = None if terms is None else terms[terms < len(self.center)]
        theta = self._theta(point)
        return Request(self.loss, theta, self.center, order, share, gram_share, columns, gram_dtype)

    def evaluation(
        self, point: Array, statistics: Statistics, terms: NDArray[np.intp] | None = None
    ) -> Evaluation:
        """The objective at a point, from the sums over all blocks; terms as in `request`."""
        theta = self._theta(point)
        coef = self._penalised(theta)
        value = self.multiplier * statistics.loss + self.penalty.value(coef)
        gradient = self.multiplier * statistics.gradient
        self._penalised(gradient)[...] += self.penalty.gradient(coef)
        if self.intercept_strength:
            value += 0.5 * self.intercept_strength * float(theta[:, -1] @ theta[:, -1])
            gradient[:, -1] += self.intercept_strength * theta[:, -1]
        gradient /= self.scale
        hessian = None
        if statistics.gram is not None:
            hessian = self._hessian(statistics.gram, terms)
        return Evaluation(value, gradient.ravel(), hessian)

    def _hessian(self, gram: Array, terms: NDArray[np.intp] | None) -> Array:
        scale = self.scale if terms is None else self.scale[terms]
        n_outputs, n_terms = self.loss.n_outputs, len(scale)
        hessian = (self.multiplier * gram).reshape(n_outputs, n_terms, n_outputs, n_terms)
        diagonal = np.full(n_terms, self.penalty.strength)
        if self.fit_intercept:
            diagonal[-1] = self.intercept_strength
        outputs, every = np.arange(n_outputs), np.arange(n_terms)
        hessian[outputs[:, None], every, outputs[:, None], every] += diagonal
        hessian /= scale[:, None, None]
        hessian /= scale
        if self.loss.shift_invariant:
            # Equal shifts of all outputs change the penalty at most: points have no such part, nor
            # have gradients. With a curvature of one along it, solutions have none either. Absolute
            # values are another matter: where an output is zero shifts cost something.
            free = every[self._n_fixed :]
            hessian[:, free, :, free] += 1.0 / n_outputs
        return hessian.reshape((n_outputs * n_terms,) * 2)

    @property
    def _n_fixed(self) -> int:
        """Terms, from the first, of which equal shifts of all outputs change absolute values."""
        return len(self.center) if self.penalty.absolute else 0

    @property
    def curvature(self) -> Array:
        """Bounds of the diagonal of the loss's Hessian in the solver's coordinates, shape (d,)."""
        steepness = self.multiplier * self.loss.curvature_bound * self.survey.weight
        return np.tile(steepness * self.row_extent**2, self.loss.n_outputs)

    @property
    def absolute_weights(self) -> Array:
        """Weights of the absolute values of the solver's coordinates, shape (d,)."""
        weights = self.penalty.absolute / self.scale
        if self.fit_intercept:
            weights[-1] = 0.0
        return np.tile(weights, self.loss.n_outputs)

    @property
    def row_extent(self) -> Array:
        """Bounds of a row's entries in the solver's coordinates, shape (q,)."""
        bound = np.maximum(self.survey.upper - self.center, self.center - self.survey.lower)
        if self.fit_intercept:
            bound = np.append(bound, 1.0)
        return bound / self.scale

    @property
    def smoothness(self) -> float:
        """Bound of the Hessian's eigenvalues in the solver's coordinates; inf where there is none.

        Of the losses' part the trace, over the rows that all outputs share.
        """
        if not np.isfinite(self.loss.curvature_bound):
            return np.inf
        survey, center, scale = self.survey, self.center, self.scale
        shifted = survey.weight * center**2
        square = survey.moment2 - 2.0 * center * survey.moment1 + shifted
        # What is lost to cancellation is added.
        square = np.maximum(square, 0.0) + 1e-10 * (survey.moment2 + shifted)
        if self.fit_intercept:
            square = np.append(square, survey.weight)
        trace = float(np.sum(square / scale**2))
        return self.multiplier * self.loss.curvature_bound * trace + float(self.convexity.max())

    @property
    def convexity(self) -> Array:
        """A diagonal that is below the Hessian in the solver's coordinates, shape (d,)."""
        diagonal = np.full(self.n_terms, self.penalty.strength)
        if self.fit_intercept:
            diagonal[-1] = self.intercept_strength
        return np.tile(diagonal / self.scale**2, self.loss.n_outputs)
