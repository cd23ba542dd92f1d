"""Standard errors and tests for models without a penalty, as R's `summary` and `anova` give them.

Weights are taken as frequencies: a row of weight 2 counts as two rows, and the number of
observations is the sum of the weights. Errors with a variance that is estimated have the Pearson
statistic over the residual degrees of freedom as their dispersion.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import linalg
from scipy.special import chdtrc, gammaln, ndtr, ndtri, stdtr, stdtrit

from dask_dml.objective import (
    GammaLoss,
    LogisticLoss,
    MultinomialLoss,
    PoissonLoss,
    SquaredLoss,
)
from dask_dml.objective.likelihood import Likelihood, has_free_scale
from dask_dml.objective.losses import Array

INTERCEPT = "(Intercept)"

# Share of a column that the columns before leave over, squared, below which it is one of them.
_ALIASED = 1e-9
# The same of a column and the intercept, for whose difference there are sixteen digits.
_CONSTANT = 1e-22
# Relative difference of sums over the same rows.
_SAME = 1e-9
_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"), (0.1, "."))


@dataclass(frozen=True)
class Summary:
    """What can be said of a fitted model's coefficients, and of its fit.

    Attributes
    ----------
    model : str
        Name of the estimator.
    family : str
        Distribution and link.
    coefficients : DataFrame
        A row a coefficient, the intercept first: estimate, std_error, statistic, p_value, lower and
        upper. Those of columns that others before them make up are nan, as in R, and the estimates
        of the others are those of the model without them.
    covariance : DataFrame
        Of the estimates, by their names.
    level : float
        Of the confidence intervals.
    dispersion : float
        Factor on the variances: 1, or estimated.
    statistic : {"z", "t"}
        t where the dispersion is estimated, with `df_residual` degrees of freedom.
    n_observations : float
        Sum of the weights.
    df_model : int
        Coefficients that were estimated.
    df_residual, df_null : float
    deviance, null_deviance : float
        Of the model, and of that without features.
    log_likelihood, aic, bic : float
        nan where the likelihood has no closed form.
    """

    model: str
    family: str
    coefficients: pd.DataFrame
    covariance: pd.DataFrame
    level: float
    dispersion: float
    statistic: str
    n_observations: float
    df_model: int
    df_residual: float
    df_null: float
    deviance: float
    null_deviance: float
    log_likelihood: float
    aic: float
    bic: float

    def _lines(self) -> list[tuple[str, str]]:
        return [
            ("Dispersion", f"{self.dispersion:.6g}"),
            ("Null deviance", f"{self.null_deviance:.6g} on {self.df_null:g} degrees of freedom"),
            (
                "Residual deviance",
                f"{self.deviance:.6g} on {self.df_residual:g} degrees of freedom",
            ),
            ("Log-likelihood", f"{self.log_likelihood:.6g}"),
            ("AIC, BIC", f"{self.aic:.6g}, {self.bic:.6g}"),
        ]

    def _table(self) -> pd.DataFrame:
        table = self.coefficients
        tails = [f"{share:g} %" for share in (50 - 50 * self.level, 50 + 50 * self.level)]
        p_values = table["p_value"]
        return pd.DataFrame(
            {
                "Estimate": table["estimate"].map(_number),
                "Std. error": table["std_error"].map(_number),
                f"{self.statistic} value": table["statistic"].map("{:.3f}".format),
                f"Pr(>|{self.statistic}|)": p_values.map("{:.3g}".format),
                "": [next((s for p, s in _STARS if value <= p), "") for value in p_values],
                tails[0]: table["lower"].map(_number),
                tails[1]: table["upper"].map(_number),
            },
            index=table.index,
        )

    def __str__(self) -> str:
        n_aliased = int(self.coefficients["estimate"].isna().sum())
        head = f"{self.model}: {self.family}, {self.n_observations:g} observations"
        note = "Signif. codes: 0 *** 0.001 ** 0.01 * 0.05 . 0.1"
        if n_aliased:
            note = f"{n_aliased} not defined because of collinear columns\n{note}"
        width = max(len(name) for name, _ in self._lines())
        lines = "\n".join(f"{name:<{width}}  {value}" for name, value in self._lines())
        return f"{head}\n\n{self._table().to_string()}\n\n{note}\n\n{lines}"

    def _repr_html_(self) -> str:
        head = html.escape(f"{self.model}: {self.family}, {self.n_observations:g} observations")
        lines = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._lines()
        )
        return f"<p>{head}</p>{self._table().to_html()}<table>{lines}</table>"


class LikelihoodRatio(NamedTuple):
    """A likelihood-ratio test.

    Attributes
    ----------
    statistic : float
        Difference of the deviances, over the larger model's dispersion.
    df : int
        Coefficients that the larger model has more.
    p_value : float
        By the chi-squared distribution.
    """

    statistic: float
    df: int
    p_value: float


def summary_of(
    model: str, likelihood: Likelihood, columns: Sequence[str], classes: Any, level: float
) -> Summary:
    """Summary of a model from its sums.

    Parameters
    ----------
    model : str
    likelihood : Likelihood
    columns : sequence of str
        Names of the p columns.
    classes : ndarray of shape (K,) or None
        Of a model of several outputs, whose coefficients are given relative to the first.
    level : float
        Of the confidence intervals, between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"summary(level=...) must be between 0 and 1, got {level!r}")
    estimate, inverse = _plain_terms(likelihood)
    names = _names(likelihood, columns, classes)
    n = likelihood.weight
    rank = int(np.isfinite(estimate).sum())
    df = n - rank
    dispersion = 1.0
    is_free = has_free_scale(likelihood.loss)
    if is_free:
        dispersion = likelihood.pearson / df if df > 0.0 else np.nan
    covariance = dispersion * inverse
    error = np.sqrt(np.diagonal(covariance))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = estimate / error
    is_t = is_free and df > 0.0
    tail = stdtr(df, -np.abs(statistic)) if is_t else ndtr(-np.abs(statistic))
    reach = error * (stdtrit(df, 0.5 + 0.5 * level) if is_t else ndtri(0.5 + 0.5 * level))
    table = pd.DataFrame(
        {
            "estimate": estimate,
            "std_error": error,
            "statistic": statistic,
            "p_value": 2.0 * tail,
            "lower": estimate - reach,
            "upper": estimate + reach,
        },
        index=names,
    )
    likelihood_value, n_parameters = _log_likelihood(likelihood, rank)
    has_intercept = likelihood.theta.shape[1] > len(likelihood.center)
    return Summary(
        model,
        _family(likelihood),
        table,
        pd.DataFrame(covariance, index=names, columns=names),
        level,
        dispersion,
        "t" if is_free else "z",
        n,
        rank,
        df,
        n - (max(likelihood.loss.n_outputs - 1, 1) if has_intercept else 0),
        2.0 * likelihood.loss_sum,
        2.0 * likelihood.null_loss_sum,
        likelihood_value,
        2.0 * n_parameters - 2.0 * likelihood_value,
        float(np.log(n)) * n_parameters - 2.0 * likelihood_value,
    )


def likelihood_ratio(smaller: Any, larger: Any) -> LikelihoodRatio:
    """Likelihood-ratio test of two nested models without a penalty, fitted to the same rows.

    Parameters
    ----------
    smaller, larger : estimator
        Fitted; the columns of the smaller one are among those of the larger one, or make up no
        more than they do.

    Returns
    -------
    LikelihoodRatio

    Raises
    ------
    ValueError
        If they are not of one kind, not of the same rows, or not nested.

    Examples
    --------
    >>> from dask_dml.inference import likelihood_ratio
    >>> from dask_dml.linear_model import LinearRegression
    >>> X = [[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 1.0], [4.0, 0.0]]
    >>> y = [0.1, 0.9, 2.3, 2.8, 4.1]
    >>> smaller = LinearRegression().fit([row[:1] for row in X], y)
    >>> likelihood_ratio(smaller, LinearRegression().fit(X, y)).df
    1
    """
    first, second = smaller.summary(), larger.summary()
    names = f"likelihood_ratio({first.model}, {second.model})"
    if first.family != second.family:
        raise ValueError(f"{names}: {first.family} and {second.family} are not nested models")
    same = np.isclose(first.n_observations, second.n_observations, rtol=_SAME)
    if not same:
        raise ValueError(
            f"{names}: they were fitted to {first.n_observations:g} and {second.n_observations:g} "
            "observations; fit both to the same rows"
        )
    df = second.df_model - first.df_model
    drop = first.deviance - second.deviance
    if df <= 0 or drop < -_SAME * abs(first.deviance):
        raise ValueError(
            f"{names}: with {first.df_model} and {second.df_model} coefficients and deviances "
            f"{first.deviance:g} and {second.deviance:g} the first is not nested in the second; "
            "give the smaller model first"
        )
    statistic = max(drop, 0.0) / second.dispersion
    return LikelihoodRatio(statistic, df, float(chdtrc(df, statistic)))


def _number(value: float) -> str:
    return f"{value:.6g}"


def _family(likelihood: Likelihood) -> str:
    loss = likelihood.loss
    if isinstance(loss, LogisticLoss):
        return "binomial, logit link"
    if isinstance(loss, MultinomialLoss):
        return "multinomial, logit link"
    if isinstance(loss, SquaredLoss):
        return "gaussian, identity link"
    if isinstance(loss, PoissonLoss):
        return "poisson, log link"
    if isinstance(loss, GammaLoss):
        return "gamma, log link"
    return f"tweedie of power {getattr(loss, 'power', np.nan):g}, log link"


def _names(likelihood: Likelihood, columns: Sequence[str], classes: Any) -> list[str]:
    has_intercept = likelihood.theta.shape[1] > len(likelihood.center)
    own = [INTERCEPT, *columns] if has_intercept else list(columns)
    if likelihood.loss.n_outputs == 1:
        return own
    return [f"{label}: {name}" for label in classes[1:] for name in own]


def _plain_terms(likelihood: Likelihood) -> tuple[Array, Array]:
    """Estimates and their covariance for columns as given, the intercept first; nan where aliased.

    Of several outputs those relative to the first.
    """
    n_outputs, n_terms = likelihood.theta.shape
    n_columns = len(likelihood.center)
    theta, information = likelihood.theta, likelihood.information
    if n_outputs > 1:
        theta = theta[1:] - theta[0]
        information = information[n_terms:, n_terms:]
    size = len(theta) * n_terms
    # The intercept first, as in R: of a constant column and it, the column is left out.
    first = np.roll(np.arange(n_terms), n_terms - n_columns)
    order = (np.arange(len(theta))[:, None] * n_terms + first).ravel()
    flat = theta.ravel()[order]
    matrix = information[np.ix_(order, order)]
    size2 = np.diagonal(information).copy()
    if n_terms > n_columns:
        total = np.diagonal(information)[n_terms - 1 :: n_terms]
        centers = np.append(likelihood.center, 0.0)
        size2 += np.outer(total, centers**2).ravel()
    kept = _independent(matrix, size2[order])
    left = np.setdiff1d(np.arange(size), kept)
    root = np.sqrt(np.diagonal(matrix)[kept])
    factor = linalg.cho_factor(matrix[np.ix_(kept, kept)] / root[:, None] / root)

    def solved(right: Array) -> Array:
        scaled = linalg.cho_solve(factor, right / root[:, None])
        return np.asarray(scaled / root[:, None])

    # Columns that are left out are sums of those that are kept: so are their coefficients.
    estimate = np.full(size, np.nan)
    estimate[kept] = flat[kept] + solved(matrix[np.ix_(kept, left)]) @ flat[left]
    covariance = np.full((size, size), np.nan)
    covariance[np.ix_(kept, kept)] = solved(np.eye(len(kept)))
    if n_terms > n_columns:
        # From centred columns to those as given.
        for start in range(0, size, n_terms):
            own = kept[(kept > start) & (kept < start + n_terms)]
            if start not in kept:
                continue
            center = likelihood.center[own - start - 1]
            estimate[start] -= center @ estimate[own]
            covariance[start, kept] -= center @ covariance[np.ix_(own, kept)]
            covariance[kept, start] -= covariance[np.ix_(kept, own)] @ center
    return estimate, covariance


def _independent(matrix: Array, size2: Array) -> NDArray[np.intp]:
    """Numbers of the terms that those before them do not make up, by Cholesky's method.

    `size2` are the squared lengths of the columns before they were centred.
    """
    diagonal = np.where(np.diagonal(matrix) > _CONSTANT * size2, np.diagonal(matrix), 0.0)
    root = np.sqrt(np.where(diagonal > 0.0, diagonal, np.inf))
    left = matrix / root[:, None] / root
    kept = []
    for j in range(len(left)):
        if left[j, j] > _ALIASED:
            kept.append(j)
            left[j + 1 :, j + 1 :] -= np.outer(left[j + 1 :, j], left[j, j + 1 :]) / left[j, j]
    return np.array(kept, dtype=np.intp)


def _log_likelihood(likelihood: Likelihood, rank: int) -> tuple[float, int]:
    """The logarithm of the likelihood, and how many parameters it has."""
    loss, n, total = likelihood.loss, likelihood.weight, likelihood.loss_sum
    if isinstance(loss, SquaredLoss):
        if total <= 0.0:
            return np.inf, rank + 1
        return -0.5 * n * float(np.log(2.0 * np.pi * 2.0 * total / n) + 1.0), rank + 1
    if isinstance(loss, GammaLoss):
        # With the shape that R takes for it, from the deviance.
        shape = n / (2.0 * total) if total > 0.0 else np.inf
        each = shape * np.log(shape) - gammaln(shape) - shape
        return float(n * each + likelihood.constant - shape * total), rank + 1
    return likelihood.constant - total, rank
