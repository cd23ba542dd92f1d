"""Losses: value, and first and second derivative in the scores.

A loss sees scores of shape (n, K) and targets of shape (n,) and knows nothing of features, weights
or penalties. Its second derivative at one row is a K x K matrix of the form ``diag(d) - u u^T``;
losses with one output have no ``u``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax, logit, xlogy

Array = NDArray[np.float64]


class LossTerms(NamedTuple):
    """A loss and its derivatives in the scores, row by row.

    Attributes
    ----------
    loss : ndarray of shape (n,)
    residual : ndarray of shape (n, K)
        First derivative.
    curvature : ndarray of shape (n, K) or None
        Diagonal part of the second derivative; None when it was not asked for.
    coupling : ndarray of shape (n, K) or None
        The vector ``u`` of the part ``-u u^T``; None when outputs do not couple.
    width_column : ndarray of shape (n,) or None
        Of a loss ``width * h((z - y) / width)``, the column of ``-(z - y) / width``: beside the
        features it gives the derivatives in the width, which takes part in no score. None for
        losses without a width.
    """

    loss: Array
    residual: Array
    curvature: Array | None
    coupling: Array | None
    width_column: Array | None = None


class Loss(Protocol):
    """What a solver and a block's sums need to know of a loss.

    Attributes
    ----------
    n_outputs : int
        Number of scores a row, K.
    curvature_bound : float
        Upper bound of the second derivative's eigenvalues; inf where there is none.
    self_concordance : float
        Smallest M with ``|D3 f[u, u, v]| <= M |v|_2 D2 f[u, u]`` (generalised self-concordance,
        Bach 2010; Sun & Tran-Dinh 2019); 0 for quadratic losses.
    shift_invariant : bool
        Whether adding one number to all scores of a row leaves the loss as it is.
    """

    @property
    def n_outputs(self) -> int: ...
    @property
    def curvature_bound(self) -> float: ...
    @property
    def self_concordance(self) -> float: ...
    @property
    def shift_invariant(self) -> bool: ...

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss at ``scores``, with second derivatives when ``order`` is 2."""
        ...

    def best_constant(self, mean: Array) -> Array:
        """Scores of shape (K,) of the best model without features.

        `mean` is the weighted mean of the target, or the shares of the classes.
        """
        ...

    def typical_curvature(self, mean: Array) -> float:
        """The bound of the curvature, or where there is none its mean at the best constant."""
        ...


@dataclass(frozen=True, slots=True)
class LogisticLoss:
    """Binary log loss of targets 0 and 1: ``log(1 + exp(z)) - y z``."""

    n_outputs: int = 1
    curvature_bound: float = 0.25
    self_concordance: float = 1.0
    shift_invariant: bool = False

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss; stable for scores of any size."""
        # In terms of the margin nothing cancels, however sure and right the scores are.
        sign = 1.0 - 2.0 * target.astype(np.float64, copy=False)[:, None]
        wrong = sign * scores
        tail = np.abs(wrong)
        np.negative(tail, out=tail)
        np.exp(tail, out=tail)
        near = 1.0 / (1.0 + tail)
        far = tail * near
        residual = np.where(wrong >= 0.0, near, far)
        residual *= sign
        np.log1p(tail, out=tail)
        tail += np.maximum(wrong, 0.0, out=wrong)
        curvature = np.multiply(near, far, out=far) if order == 2 else None
        return LossTerms(tail[:, 0], residual, curvature, None)

    def typical_curvature(self, mean: Array) -> float:
        """The bound itself."""
        return self.curvature_bound

    def best_constant(self, mean: Array) -> Array:
        """Log odds of class 1."""
        return np.asarray(logit(mean[1:]), dtype=np.float64)

    def probabilities(self, scores: Array) -> Array:
        """Class probabilities of shape (n, 2)."""
        positive = expit(scores[:, 0])
        return np.stack([expit(-scores[:, 0]), positive], axis=1)

    def log_probabilities(self, scores: Array) -> Array:
        """Logarithms of the class probabilities, finite for scores of any size."""
        return np.stack([log_expit(-scores[:, 0]), log_expit(scores[:, 0])], axis=1)


@dataclass(frozen=True, slots=True)
class MultinomialLoss:
    """Log loss of K classes, targets 0 .. K-1: ``log(sum_k exp(z_k)) - z_y``."""

    n_outputs: int
    curvature_bound: float = 0.5
    # |D3[u, u, v]| <= (max v - min v) D2[u, u], and max v - min v <= sqrt(2) |v|_2.
    self_concordance: float = 2.0**0.5
    shift_invariant: bool = True

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss; the largest score of a row is taken out before exponentials."""
        rows = np.arange(len(scores))
        y = target.astype(np.intp, copy=False)
        top = scores.argmax(axis=1)
        shifted = scores - scores[rows, top, None]
        own = shifted[rows, y]
        np.exp(shifted, out=shifted)
        # The largest is 1: sums without it, and without a row's own class, lose nothing of rows
        # that are surely right.
        shifted[rows, top] = 0.0
        rest = shifted.sum(axis=1)
        loss = np.log1p(rest) - own
        shifted[rows, top] = 1.0
        shifted /= (1.0 + rest)[:, None]
        residual = shifted.copy() if order == 2 else shifted
        residual[rows, y] = 0.0
        residual[rows, y] = -residual.sum(axis=1)
        if order == 2:
            return LossTerms(loss, residual, shifted, shifted)
        return LossTerms(loss, residual, None, None)

    def typical_curvature(self, mean: Array) -> float:
        """The bound itself."""
        return self.curvature_bound

    def best_constant(self, mean: Array) -> Array:
        """Logarithms of the class shares, centred; finite for classes without a share."""
        log_share = np.log(np.maximum(mean, np.exp(-30.0)))
        return np.asarray(log_share - log_share.mean(), dtype=np.float64)

    def probabilities(self, scores: Array) -> Array:
        """Class probabilities of shape (n, K)."""
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))

    def log_probabilities(self, scores: Array) -> Array:
        """Logarithms of the class probabilities, finite for scores of any size."""
        return np.asarray(log_softmax(scores, axis=1))


@dataclass(frozen=True, slots=True)
class SquaredLoss:
    """Half the squared difference: ``(z - y)^2 / 2``."""

    n_outputs: int = 1
    curvature_bound: float = 1.0
    self_concordance: float = 0.0
    shift_invariant: bool = False

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss."""
        residual = scores - target.astype(np.float64, copy=False)[:, None]
        loss = 0.5 * residual[:, 0] ** 2
        curvature = np.ones_like(residual) if order == 2 else None
        return LossTerms(loss, residual, curvature, None)

    def typical_curvature(self, mean: Array) -> float:
        """The bound itself."""
        return self.curvature_bound

    def best_constant(self, mean: Array) -> Array:
        """The mean itself."""
        return mean

    def half_deviance(self, target: Any, mean: Any) -> Any:
        """Half the squared difference of targets and means, NumPy or dask arrays."""
        return 0.5 * (target - mean) ** 2


# Beyond, exponentials would overflow; a trial point there is refused by its objective.
_LARGEST_SCORE = 700.0


@dataclass(frozen=True, slots=True)
class PoissonLoss:
    """Half the unit deviance of counts, with scores log(mean): ``exp(z) - y z + y log(y) - y``."""

    n_outputs: int = 1
    curvature_bound: float = np.inf
    self_concordance: float = 1.0
    shift_invariant: bool = False

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss."""
        z = np.clip(scores, -_LARGEST_SCORE, _LARGEST_SCORE)
        y = target.astype(np.float64, copy=False)
        mean = np.exp(z)
        loss = mean[:, 0] - y * z[:, 0] + (xlogy(y, y) - y)
        return LossTerms(loss, mean - y[:, None], mean if order == 2 else None, None)

    def best_constant(self, mean: Array) -> Array:
        """Logarithm of the mean."""
        return np.log(mean)

    def typical_curvature(self, mean: Array) -> float:
        """The mean: the variance of counts."""
        return float(mean[0])

    def half_deviance(self, target: Any, mean: Any) -> Any:
        """Half the unit deviances of targets and means, NumPy or dask arrays."""
        return mean - target + xlogy(target, target) - target * np.log(mean)


@dataclass(frozen=True, slots=True)
class GammaLoss:
    """Half the unit deviance of gamma variables: ``z + y exp(-z) - log(y) - 1``, z = log(mean)."""

    n_outputs: int = 1
    curvature_bound: float = np.inf
    self_concordance: float = 1.0
    shift_invariant: bool = False

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss."""
        z = np.clip(scores, -_LARGEST_SCORE, _LARGEST_SCORE)
        y = target.astype(np.float64, copy=False)
        ratio = y[:, None] * np.exp(-z)
        loss = ratio[:, 0] - 1.0 + (z[:, 0] - np.log(y))
        return LossTerms(loss, 1.0 - ratio, ratio if order == 2 else None, None)

    def best_constant(self, mean: Array) -> Array:
        """Logarithm of the mean."""
        return np.log(mean)

    def typical_curvature(self, mean: Array) -> float:
        """1, whatever the mean."""
        return float(np.ones_like(mean)[0])

    def half_deviance(self, target: Any, mean: Any) -> Any:
        """Half the unit deviances of targets and means, NumPy or dask arrays."""
        ratio = target / mean
        return ratio - 1.0 - np.log(ratio)


@dataclass(frozen=True, slots=True)
class TweedieLoss:
    r"""Half the unit deviance of a Tweedie distribution of power 1 to 2, with z = log(mean).

    ``exp((2 - p) z) / (2 - p) + y exp((1 - p) z) / (p - 1) - y^(2 - p) / ((p - 1) (2 - p))``;
    both exponentials have positive factors, so that it is convex.
    """

    power: float
    n_outputs: int = 1
    curvature_bound: float = np.inf
    shift_invariant: bool = False

    @property
    def self_concordance(self) -> float:
        """The larger of the exponents."""
        return max(2.0 - self.power, self.power - 1.0)

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss."""
        p = self.power
        z = np.clip(scores, -_LARGEST_SCORE, _LARGEST_SCORE)
        y = target.astype(np.float64, copy=False)
        up = np.exp((2.0 - p) * z)
        down = y[:, None] * np.exp((1.0 - p) * z)
        best = y ** (2.0 - p) / ((p - 1.0) * (2.0 - p))
        loss = up[:, 0] / (2.0 - p) + down[:, 0] / (p - 1.0) - best
        curvature = (2.0 - p) * up + (p - 1.0) * down if order == 2 else None
        return LossTerms(loss, up - down, curvature, None)

    def best_constant(self, mean: Array) -> Array:
        """Logarithm of the mean."""
        return np.log(mean)

    def typical_curvature(self, mean: Array) -> float:
        """Mean second derivative at the constant."""
        return float(mean[0] ** (2.0 - self.power))

    def half_deviance(self, target: Any, mean: Any) -> Any:
        """Half the unit deviances of targets and means, NumPy or dask arrays."""
        p = self.power
        best = target ** (2.0 - p) / ((p - 1.0) * (2.0 - p))
        return mean ** (2.0 - p) / (2.0 - p) + target * mean ** (1.0 - p) / (p - 1.0) - best


@dataclass(frozen=True, slots=True)
class SquaredHingeLoss:
    """``max(0, 1 - y z)^2`` with y = 1 or -1; of K > 2 classes, the sum over each against the rest.

    Its second derivative jumps, so it is not self-concordant.
    """

    n_outputs: int = 1
    curvature_bound: float = 2.0
    self_concordance: float = np.inf
    shift_invariant: bool = False

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss."""
        y = target.astype(np.intp, copy=False)
        own = y[:, None] == np.arange(scores.shape[1]) if scores.shape[1] > 1 else y[:, None] == 1
        sign = np.where(own, 1.0, -1.0)
        short = np.maximum(1.0 - sign * scores, 0.0)
        curvature = np.where(short > 0.0, 2.0, 0.0) if order == 2 else None
        return LossTerms((short * short).sum(axis=1), -2.0 * sign * short, curvature, None)

    def best_constant(self, mean: Array) -> Array:
        """Where the derivative is zero: the difference of the shares."""
        share = mean[1:] if self.n_outputs == 1 else mean
        return np.asarray(2.0 * share - 1.0)

    def typical_curvature(self, mean: Array) -> float:
        """The bound itself."""
        return self.curvature_bound


@dataclass(frozen=True, slots=True)
class SquaredEpsilonInsensitiveLoss:
    """``max(0, |z - y| - epsilon)^2``.

    Its second derivative jumps, so it is not self-concordant.
    """

    epsilon: float
    n_outputs: int = 1
    curvature_bound: float = 2.0
    self_concordance: float = np.inf
    shift_invariant: bool = False

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss."""
        away = scores - target.astype(np.float64, copy=False)[:, None]
        beyond = np.maximum(np.abs(away) - self.epsilon, 0.0)
        curvature = np.where(beyond > 0.0, 2.0, 0.0) if order == 2 else None
        return LossTerms(beyond[:, 0] ** 2, 2.0 * np.sign(away) * beyond, curvature, None)

    def best_constant(self, mean: Array) -> Array:
        """The mean, about."""
        return mean

    def typical_curvature(self, mean: Array) -> float:
        """The bound itself."""
        return self.curvature_bound


@dataclass(frozen=True, slots=True)
class HuberLoss:
    """``width * h((z - y) / width)``: half squares between two slopes, and straight beyond.

    ``h(u) = u^2 / 2`` from `lower` to `upper`, with those slopes outside. It is convex in score and
    width together. Huber's loss has slopes of equal size. With ``-q`` and ``1 - q`` it is the
    pinball loss of a quantile q, smoothed: at most ``width * max(q, 1 - q)^2 / 2`` lower.

    Its second derivative jumps, so it is not self-concordant.

    Parameters
    ----------
    lower, upper : float
        Slopes in the score, below and above 0.
    width : float
        Positive; the last term of a request, whose coefficient is 0.
    """

    lower: float
    upper: float
    width: float = 1.0
    n_outputs: int = 1
    self_concordance: float = np.inf
    shift_invariant: bool = False

    @property
    def curvature_bound(self) -> float:
        """That between the slopes."""
        return 1.0 / self.width

    def evaluate(self, scores: Array, target: NDArray[np.generic], order: int) -> LossTerms:
        """Terms of the loss, with the column of its width."""
        away = scores - target.astype(np.float64, copy=False)[:, None]
        away /= self.width
        slope = np.clip(away, self.lower, self.upper)
        loss = self.width * (slope * away - 0.5 * slope**2)
        curvature = np.where(slope == away, 1.0 / self.width, 0.0) if order == 2 else None
        return LossTerms(loss[:, 0], slope, curvature, None, -away[:, 0])

    def best_constant(self, mean: Array) -> Array:
        """The mean, about."""
        return mean

    def typical_curvature(self, mean: Array) -> float:
        """The bound itself."""
        return self.curvature_bound
