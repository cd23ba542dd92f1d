"""Sums at a fitted model without a penalty, of which inference is made.

Two losses that are evaluated like any other, each over all rows once: at the fitted model, for its
information and its errors; and at the model without features, for what a likelihood has besides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy

from dask_dml.objective.losses import (
    Array,
    GammaLoss,
    Loss,
    LossTerms,
    PoissonLoss,
    SquaredLoss,
    TweedieLoss,
)

_LARGEST_SCORE = 150.0


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Sums over all rows at a model without a penalty.

    Attributes
    ----------
    loss : Loss
    weight : float
        Sum of the weights: the number of rows that they stand for.
    theta : ndarray of shape (K, q)
        Coefficients for centred columns, and the intercept last where there is one.
    center : ndarray of shape (p,)
    information : ndarray of shape (K * q, K * q)
        Expected Hessian of the sum of losses there, outputs outermost.
    loss_sum, null_loss_sum : float
        Sums of losses, there and of the best constant model.
    pearson : float
        Sum of the squared errors in units of their variances; nan where the loss has no scale.
    constant : float
        Logarithm of the likelihood but for what depends on the model; nan where it has no closed
        form.
    """

    loss: Loss
    weight: float
    theta: Array
    center: Array
    information: Array
    loss_sum: float
    null_loss_sum: float
    pearson: float
    constant: float


@dataclass(frozen=True, slots=True)
class _Derived:
    """What losses made of other ones share with them."""

    loss: Loss

    @property
    def n_outputs(self) -> int:
        """As the loss."""
        return self.loss.n_outputs

    @property
    def curvature_bound(self) -> float:
        """As the loss."""
        return self.loss.curvature_bound

    @property
    def self_concordance(self) -> float:
        """As the loss."""
        return self.loss.self_concordance

    @property
    def shift_invariant(self) -> bool:
        """As the loss."""
        return self.loss.shift_invariant

    def best_constant(self, mean: Array) -> Array:
        """As the loss."""
        return self.loss.best_constant(mean)

    def typical_curvature(self, mean: Array) -> float:
        """As the loss."""
        return self.loss.typical_curvature(mean)


@dataclass(frozen=True, slots=True)
class ExpectedCurvature(_Derived):
    """A loss with the expectation of its second derivative, as in Fisher scoring.

    In the place of the first derivative, which sums to zero at an optimum, it has the squared
    errors in units of their variances, where the loss has a scale.
    """

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss."""
        terms = self.loss.evaluate(scores, target, order)
        if not isinstance(self.loss, GammaLoss | TweedieLoss):
            return terms
        power = 2.0 if isinstance(self.loss, GammaLoss) else self.loss.power
        # A row without weight may have any score, and must not overflow.
        mean = np.exp(np.clip(scores, -_LARGEST_SCORE, _LARGEST_SCORE))
        y = target.astype(np.float64, copy=False)[:, None]
        pearson = (mean - y) ** 2 * mean**-power
        curvature = mean ** (2.0 - power) if order == 2 else None
        return terms._replace(residual=pearson, curvature=curvature)


@dataclass(frozen=True, slots=True)
class LikelihoodConstant(_Derived):
    """A loss with the constants of its likelihood in the place of the first derivative."""

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss."""
        terms = self.loss.evaluate(scores, target, order)
        y = target.astype(np.float64, copy=False)[:, None]
        if isinstance(self.loss, PoissonLoss):
            constant = xlogy(y, y) - y - gammaln(y + 1.0)
        else:
            constant = -np.log(np.where(y > 0.0, y, 1.0))
        return terms._replace(residual=constant)


def has_free_scale(loss: Loss) -> bool:
    """Whether the variance of the errors has a factor that is estimated."""
    return isinstance(loss, SquaredLoss | GammaLoss | TweedieLoss)
