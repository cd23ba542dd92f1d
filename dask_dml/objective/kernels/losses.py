"""Losses, compiled: value, first and second derivative of many rows at once.

To compile another loss, write a function like those below and enter it in `_COMPILED`. It is given
the scores (K, n), an output a row of the array, and puts into arrays of the same layout what
`Loss.evaluate` returns; a width column takes the place of the scores. Only operations whose
rounding is prescribed may be used, which are those of arithmetic, and the functions here in place
of those of a mathematical library, which differ from CPU to CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import extending, types
from numpy.typing import NDArray

from dask_dml.objective.kernels.compiling import callback, compiled
from dask_dml.objective.losses import (
    Array,
    GammaLoss,
    HuberLoss,
    LogisticLoss,
    Loss,
    LossTerms,
    MultinomialLoss,
    PoissonLoss,
    SquaredEpsilonInsensitiveLoss,
    SquaredHingeLoss,
    SquaredLoss,
    TweedieLoss,
)

# Its decorators are not typed.
_inlined: Any = numba.njit(error_model="numpy")
_intrinsic: Any = extending.intrinsic

_LOG2_E = 1.4426950408889634
# Their sum is log(2); a product of the first with a whole number of 11 bits is exact.
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
# Added to a number of less than 51 bits, it leaves the nearest whole number in the last bits.
_ROUNDER = 6755399441055744.0
_BITS_OF_ROUNDER = 0x4338000000000000
_BITS_OF_ONE = 0x3FF0000000000000
_BITS_OF_SQRT_HALF = 0x3FE6A09E667F3BCD
_LEAST_NORMAL = 2.2250738585072014e-308

_LARGEST_SCORE = 700.0

_ROWS = types.Array(types.float64, 1, "C")
_OUTPUTS = types.Array(types.float64, 2, "C")
_READ = types.Array(types.float64, 1, "C", readonly=True, aligned=False)
# scores, target, parameters -> losses, residuals, curvatures
SIGNATURE = types.void(_OUTPUTS, _READ, _ROWS, _ROWS, _OUTPUTS, _OUTPUTS)


class CompiledLoss(NamedTuple):
    """A loss as the kernels take it.

    Attributes
    ----------
    evaluate : numba.core.ccallback.CFunc
        Puts losses, residuals and curvatures (the coupling, if outputs couple) into arrays.
    parameters : ndarray of shape (r,)
        Its numbers, such as the power of Tweedie's deviance.
    is_coupled : bool
        Whether its second derivative is ``diag(u) - u u^T``, and not ``diag(d)``.
    has_width : bool
        Whether it leaves the column of its width in the place of the scores.
    """

    evaluate: Any
    parameters: Array
    is_coupled: bool
    has_width: bool


def compiled_loss(loss: Loss) -> CompiledLoss | None:
    """A loss, compiled when it is first asked for; None where there is no function for it."""
    kind = type(loss)
    if kind not in _COMPILED:
        return None
    _, names = _COMPILED[kind]
    parameters = np.array([float(getattr(loss, name)) for name in names])
    is_coupled, has_width = kind is MultinomialLoss, kind is HuberLoss
    return CompiledLoss(_compiled(kind), parameters, is_coupled, has_width)


@functools.cache
def _compiled(kind: type) -> Any:
    return callback(_COMPILED[kind][0], SIGNATURE)


def row_terms(loss: Loss) -> Callable[[Array, NDArray[np.generic], int], LossTerms]:
    """What evaluates a loss at scores (n, K), as `Loss.evaluate`: compiled, where it is."""
    known = compiled_loss(loss)
    return loss.evaluate if known is None else functools.partial(_evaluate_rows, known)


def _evaluate_rows(
    loss: CompiledLoss, scores: Array, target: NDArray[np.generic], order: int
) -> LossTerms:
    n_rows, n_outputs = scores.shape
    losses = np.empty(n_rows)
    residuals, curvatures = np.empty((n_outputs, n_rows)), np.empty((n_outputs, n_rows))
    by_output = np.array(scores.T, order="C")
    values = np.require(target, np.float64, ["C"])
    _caller()(loss.evaluate, by_output, values, loss.parameters, losses, residuals, curvatures)
    width_column = by_output[0] if loss.has_width else None
    if order == 1:
        return LossTerms(losses, residuals.T, None, None, width_column)
    coupling = curvatures.T if loss.is_coupled else None
    return LossTerms(losses, residuals.T, curvatures.T, coupling, width_column)


@functools.cache
def _caller() -> Callable[..., None]:
    caller: Callable[..., None] = compiled(
        _call, types.void(types.FunctionType(SIGNATURE), *SIGNATURE.args)
    )
    return caller


def _call(
    evaluate: Any,
    scores: Array,
    target: Array,
    parameters: Array,
    losses: Array,
    residuals: Array,
    curvatures: Array,
) -> None:
    evaluate(scores, target, parameters, losses, residuals, curvatures)


@_intrinsic
def _bits_of(typing: Any, value: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), lower


@_intrinsic
def _number_of(typing: Any, bits: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), lower


# Comparisons are such that a NaN stays one.


@_inlined
def _between(x: float, least: float, most: float) -> float:
    x = least if x < least else x
    return most if x > most else x


@_inlined
def _positive(x: float) -> float:
    return 0.0 if x < 0.0 else x


@_inlined
def _exp(x: float) -> Any:
    """Exponential, of -708 to 709, to about one unit in the last place."""
    x = _between(x, -708.0, 709.0)
    shifted = x * _LOG2_E + _ROUNDER
    power = _number_of((_bits_of(shifted) << 52) + _BITS_OF_ONE)
    whole = shifted - _ROUNDER
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    # Series in four parts and by powers of squares, whose steps do not wait for each other.
    r2 = r * r
    r4 = r2 * r2
    a = (0.5 + r * (1.0 / 6.0)) + r2 * (1.0 / 24.0 + r * (1.0 / 120.0))
    b = (1.0 / 720.0 + r * (1.0 / 5040.0)) + r2 * (1.0 / 40320.0 + r * (1.0 / 362880.0))
    c = (1.0 / 3628800.0 + r * (1.0 / 39916800.0)) + r2 * (
        1.0 / 479001600.0 + r * (1.0 / 6227020800.0)
    )
    return (1.0 + (r + r2 * ((a + r4 * b) + (r4 * r4) * c))) * power


@_inlined
def _twice_artanh(s: float) -> Any:
    """``log((1 + s) / (1 - s))`` of at most a third."""
    u = s * s
    u2 = u * u
    u4 = u2 * u2
    u8 = u4 * u4
    a = (1.0 + u * (1.0 / 3.0)) + u2 * (1.0 / 5.0 + u * (1.0 / 7.0))
    b = (1.0 / 9.0 + u * (1.0 / 11.0)) + u2 * (1.0 / 13.0 + u * (1.0 / 15.0))
    c = (1.0 / 17.0 + u * (1.0 / 19.0)) + u2 * (1.0 / 21.0 + u * (1.0 / 23.0))
    d = (1.0 / 25.0 + u * (1.0 / 27.0)) + u2 * (1.0 / 29.0 + u * (1.0 / 31.0))
    return 2.0 * s * ((a + u4 * b) + u8 * ((c + u4 * d) + u8 * (1.0 / 33.0)))


@_inlined
def _log(x: float) -> Any:
    """Logarithm of a positive number, to about one unit in the last place."""
    is_tiny = x < _LEAST_NORMAL
    bits = _bits_of(x * 18014398509481984.0 if is_tiny else x)
    exponent = (bits - _BITS_OF_SQRT_HALF) >> 52
    m = _number_of(bits - (exponent << 52))
    power = _number_of(exponent + _BITS_OF_ROUNDER) - _ROUNDER
    power = power - 54.0 if is_tiny else power
    series = _twice_artanh((m - 1.0) / (m + 1.0))
    return power * _LN2_HIGH + (series + power * _LN2_LOW)


@_inlined
def _log1p(x: float) -> Any:
    """``log(1 + x)`` of a number that is not negative, without losing the digits of a small one."""
    sum_ = 1.0 + x
    return _log(sum_) + (x - (sum_ - 1.0)) / sum_


def _squared(
    scores: Array,
    target: Array,
    parameters: Array,
    losses: Array,
    residuals: Array,
    curvatures: Array,
) -> None:
    for i in range(len(target)):
        residual = scores[0, i] - target[i]
        losses[i] = 0.5 * (residual * residual)
        residuals[0, i] = residual
        curvatures[0, i] = 1.0


def _logistic(
    scores: Array,
    target: Array,
    parameters: Array,
    losses: Array,
    residuals: Array,
    curvatures: Array,
) -> None:
    # In terms of the margin nothing cancels, however sure and right the scores are.
    for i in range(len(target)):
        losses[i] = _exp(-abs(scores[0, i]))
    for i in range(len(target)):
        sign = 1.0 - 2.0 * target[i]
        wrong = sign * scores[0, i]
        tail = losses[i]
        # One division for two: they are dear. log(1 + t) = 2 artanh(t / (2 + t)).
        one, two = 1.0 + tail, 2.0 + tail
        inverse = 1.0 / (one * two)
        near = two * inverse
        far = tail * near
        residuals[0, i] = sign * (near if wrong >= 0.0 else far)
        curvatures[0, i] = near * far
        losses[i] = _twice_artanh(tail * (one * inverse)) + _positive(wrong)


def _multinomial(
    scores: Array,
    target: Array,
    parameters: Array,
    losses: Array,
    residuals: Array,
    curvatures: Array,
) -> None:
    n_outputs, n_rows = len(scores), len(target)
    top, top_class, own = scores[0, :n_rows].copy(), np.zeros(n_rows), np.zeros(n_rows)
    for k in range(1, n_outputs):
        for i in range(n_rows):
            score = scores[k, i]
            is_higher = score > top[i]
            top[i] = score if is_higher else top[i]
            top_class[i] = float(k) if is_higher else top_class[i]
    # The largest is 1: sums without it, and without a row's own class, lose nothing of rows that
    # are surely right.
    rest = np.zeros(n_rows)
    for k in range(n_outputs):
        for i in range(n_rows):
            shifted = scores[k, i] - top[i]
            power = _exp(shifted)
            curvatures[k, i] = power
            rest[i] += 0.0 if top_class[i] == float(k) else power
            own[i] = shifted if target[i] == float(k) else own[i]
    for i in range(n_rows):
        losses[i] = _log1p(rest[i]) - own[i]
        rest[i] = 1.0 / (1.0 + rest[i])
        own[i] = 0.0
    for k in range(n_outputs):
        for i in range(n_rows):
            probability = curvatures[k, i] * rest[i]
            curvatures[k, i] = probability
            residuals[k, i] = 0.0 if target[i] == float(k) else probability
            own[i] += residuals[k, i]
    for i in range(n_rows):
        residuals[int(target[i]), i] = -own[i]


def _poisson(
    scores: Array,
    target: Array,
    parameters: Array,
    losses: Array,
    residuals: Array,
    curvatures: Array,
) -> None:
    for i in range(len(target)):
        z = _between(scores[0, i], -_LARGEST_SCORE, _LARGEST_SCORE)
        y = target[i]
        mean = _exp(z)
        losses[i] = mean - y * z + (y * _log(y if y > 0.0 else 1.0) - y)
        residuals[0, i] = mean - y
        curvatures[0, i] = mean


def _gamma(
    scores: Array,
    target: Array,
    parameters: Array,
    losses: Array,
    residuals: Array,
    curvatures: Array,
) -> None:
    for i in range(len(target)):
        z = _between(scores[0, i], -_LARGEST_SCORE, _LARGEST_SCORE)
        y = target[i]
        ratio = y * _exp(-z)
        losses[i] = ratio - 1.0 + (z - _log(y))
        residuals[0, i] = 1.0 - ratio
        curvatures[0, i] = ratio


def _tweedie(
    scores: Array,
    target: Array,
    parameters: Array,
    losses: Array,
    residuals: Array,
    curvatures: Array,
) -> None:
    above, below = 2.0 - parameters[0], parameters[0] - 1.0
    for i in range(len(target)):
        z = _between(scores[0, i], -_LARGEST_SCORE, _LARGEST_SCORE)
        y = target[i]
        up = _exp(above * z)
        down = y * _exp(-below * z)
        best = _exp(above * _log(y)) / (below * above) if y > 0.0 else 0.0
        losses[i] = up / above + down / below - best
        residuals[0, i] = up - down
        curvatures[0, i] = above * up + below * down


def _squared_hinge(
    scores: Array,
    target: Array,
    parameters: Array,
    losses: Array,
    residuals: Array,
    curvatures: Array,
) -> None:
    n_outputs, n_rows = len(scores), len(target)
    losses[:] = 0.0
    for k in range(n_outputs):
        own_class = 1.0 if n_outputs == 1 else float(k)
        for i in range(n_rows):
            sign = 1.0 if target[i] == own_class else -1.0
            short = _positive(1.0 - sign * scores[k, i])
            losses[i] += short * short
            residuals[k, i] = -2.0 * sign * short
            curvatures[k, i] = 2.0 if short > 0.0 else 0.0


def _squared_epsilon_insensitive(
    scores: Array,
    target: Array,
    parameters: Array,
    losses: Array,
    residuals: Array,
    curvatures: Array,
) -> None:
    epsilon = parameters[0]
    for i in range(len(target)):
        away = scores[0, i] - target[i]
        beyond = _positive(abs(away) - epsilon)
        losses[i] = beyond * beyond
        residuals[0, i] = -2.0 * beyond if away < 0.0 else 2.0 * beyond
        curvatures[0, i] = 2.0 if beyond > 0.0 else 0.0


def _huber(
    scores: Array,
    target: Array,
    parameters: Array,
    losses: Array,
    residuals: Array,
    curvatures: Array,
) -> None:
    lower, upper, width = parameters[0], parameters[1], parameters[2]
    within = 1.0 / width
    for i in range(len(target)):
        away = (scores[0, i] - target[i]) / width
        slope = _between(away, lower, upper)
        losses[i] = width * (slope * away - 0.5 * (slope * slope))
        residuals[0, i] = slope
        curvatures[0, i] = within if slope == away else 0.0
        scores[0, i] = -away


# The function of a loss, and the attributes of the loss that are its parameters, in order.
_COMPILED: dict[type, tuple[Callable[..., None], tuple[str, ...]]] = {
    SquaredLoss: (_squared, ()),
    LogisticLoss: (_logistic, ()),
    MultinomialLoss: (_multinomial, ()),
    PoissonLoss: (_poisson, ()),
    GammaLoss: (_gamma, ()),
    TweedieLoss: (_tweedie, ("power",)),
    SquaredHingeLoss: (_squared_hinge, ()),
    SquaredEpsilonInsensitiveLoss: (_squared_epsilon_insensitive, ("epsilon",)),
    HuberLoss: (_huber, ("lower", "upper", "width")),
}
