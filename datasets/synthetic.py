"""Seeded problems of any size, made where they are needed.

A problem is cut into segments of 10,000 rows. Each has a random stream of its own, named by the
seed and the segment's number, so a row is the same in chunks of any size, on any number of workers,
and in a longer problem of the same seed. The client holds a task a chunk and no data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.delayed import delayed
from numpy.typing import NDArray

SEGMENT_ROWS = 10_000

HIGGS_COLUMNS = (
    "lepton_pT",
    "lepton_eta",
    "lepton_phi",
    "missing_energy_magnitude",
    "missing_energy_phi",
    "jet_1_pt",
    "jet_1_eta",
    "jet_1_phi",
    "jet_1_b_tag",
    "jet_2_pt",
    "jet_2_eta",
    "jet_2_phi",
    "jet_2_b_tag",
    "jet_3_pt",
    "jet_3_eta",
    "jet_3_phi",
    "jet_3_b_tag",
    "jet_4_pt",
    "jet_4_eta",
    "jet_4_phi",
    "jet_4_b_tag",
    "m_jj",
    "m_jjj",
    "m_lv",
    "m_jlv",
    "m_bb",
    "m_wbb",
    "m_wwbb",
)
HIGGS_SIGNAL_SHARE = 0.53

# Of each positive column: spread of its logarithm, share of that spread common to the event, and
# the shift of the logarithm's mean for signal. Chosen so that a linear classifier reaches about the
# ROC AUC that it reaches on HIGGS, 0.68, most of it from the seven masses.
_POSITIVE = {
    "lepton_pT": (0.51, 0.3, -0.04),
    "missing_energy_magnitude": (0.56, 0.3, -0.04),
    "jet_1_pt": (0.42, 0.6, 0.07),
    "jet_2_pt": (0.45, 0.5, 0.03),
    "jet_3_pt": (0.45, 0.4, 0.00),
    "jet_4_pt": (0.48, 0.3, -0.04),
    "m_jj": (0.40, 0.2, -0.03),
    "m_jjj": (0.30, 0.3, 0.06),
    "m_lv": (0.16, 0.0, 0.00),
    "m_jlv": (0.35, 0.3, 0.03),
    "m_bb": (0.48, 0.3, -0.15),
    "m_wbb": (0.33, 0.4, -0.09),
    "m_wwbb": (0.29, 0.5, -0.10),
}
# Of each b-tag: the step between its three values, and the probabilities of the first and of the
# first two.
_B_TAGS = {
    "jet_1_b_tag": (1.087, 0.40, 0.68),
    "jet_2_b_tag": (1.107, 0.42, 0.68),
    "jet_3_b_tag": (1.274, 0.50, 0.71),
    "jet_4_b_tag": (1.551, 0.60, 0.76),
}
_IS_POSITIVE = np.array([name in _POSITIVE for name in HIGGS_COLUMNS])
_IS_PHI = np.array([name.endswith("phi") for name in HIGGS_COLUMNS])
_IS_B_TAG = np.array([name in _B_TAGS for name in HIGGS_COLUMNS])

# So few that they stay in a core's cache while they are mixed.
_MIXED_ROWS = 250

Segment = tuple[NDArray[np.float32], NDArray[Any]]


def higgs_like(n_rows: int, seed: int = 0, chunk_rows: int = 250_000) -> tuple[da.Array, da.Array]:
    """Make a binary problem with the shape of HIGGS: 28 columns, overlapping classes.

    Columns are named by `HIGGS_COLUMNS` and have the ranges and kinds of those of the data of
    Baldi, Sadowski and Whiteson (2014): positive and skewed momenta and masses of mean about 1,
    angles, and b-tags of three values. The values are random; no physics is in them.

    Parameters
    ----------
    n_rows : int
        Number of rows, at least 1.
    seed : int, default 0
        Names the problem; not negative.
    chunk_rows : int, default 250_000
        Rows of a chunk. Does not change the values.

    Returns
    -------
    X : dask array of shape (n_rows, 28), float32
    y : dask array of shape (n_rows,), int8
        1 for signal, 53 % of the rows, and 0 for background.

    Raises
    ------
    ValueError
        If a size is not positive or the seed is negative.
    """
    return _arrays(_higgs_segment, n_rows, len(HIGGS_COLUMNS), np.int8, seed, chunk_rows)


def wide(
    n_rows: int = 200_000,
    n_columns: int = 1_000,
    score_std: float = 2.0,
    seed: int = 0,
    chunk_rows: int = 10_000,
    n_informative: int | None = None,
    condition: float = 1.0,
) -> tuple[da.Array, da.Array]:
    """Make a binary problem of many columns that follows a logistic model.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape, at least 1 each.
    score_std : float, default 2.0
        Standard deviation of the true scores. At 2 the classes overlap; at 31 they are
        nearly separable.
    seed : int, default 0
        Names the problem; not negative.
    chunk_rows : int, default 10_000
        Rows of a chunk. Does not change the values.
    n_informative : int, optional
        Columns, the first ones, whose coefficients are not 0; all unless told. Only of
        independent columns.
    condition : float, default 1.0
        Condition number of the columns' covariance, at least 1. At 1 the columns are independent;
        beyond, they are correlated and of unlike spread. Does not change the scores.

    Returns
    -------
    X : dask array of shape (n_rows, n_columns), float32
        Normal, of mean 0 and mean variance 1.
    y : dask array of shape (n_rows,), int8
        0 or 1, with P(1) = 1 / (1 + exp(-score)).

    Raises
    ------
    ValueError
        If a size is not positive, `score_std` is negative, the seed is negative, `condition` is
        below 1, there are not so many columns as `n_informative` or they are not independent.
    """
    if not (score_std >= 0 and math.isfinite(score_std)):
        raise ValueError(f"wide(score_std=...) must be finite and at least 0, got {score_std}")
    return _arrays(
        _logistic_segment,
        n_rows,
        n_columns,
        np.int8,
        seed,
        chunk_rows,
        score_std=score_std,
        n_informative=_checked_informative("wide", n_informative, n_columns, condition),
        condition=_checked_condition("wide", condition),
    )


def linear(
    n_rows: int,
    n_columns: int = 20,
    score_std: float = 1.0,
    noise_std: float = 1.0,
    seed: int = 0,
    chunk_rows: int = 250_000,
    n_informative: int | None = None,
    condition: float = 1.0,
) -> tuple[da.Array, da.Array]:
    """Make a regression problem that follows a linear model.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape, at least 1 each.
    score_std : float, default 1.0
        Standard deviation of the true scores, which are linear in the columns.
    noise_std : float, default 1.0
        Standard deviation of the normal noise that is added to them.
    seed : int, default 0
        Names the problem; not negative.
    chunk_rows : int, default 250_000
        Rows of a chunk. Does not change the values.
    n_informative : int, optional
        Columns, the first ones, whose coefficients are not 0; all unless told. Only of
        independent columns.
    condition : float, default 1.0
        Condition number of the columns' covariance, at least 1. At 1 the columns are independent;
        beyond, they are correlated and of unlike spread. Does not change the scores.

    Returns
    -------
    X : dask array of shape (n_rows, n_columns), float32
        Normal, of mean 0 and mean variance 1.
    y : dask array of shape (n_rows,), float32

    Raises
    ------
    ValueError
        If a size is not positive, a standard deviation is negative, the seed is negative,
        `condition` is below 1, there are not so many columns as `n_informative` or they are not
        independent.
    """
    for name, value in (("score_std", score_std), ("noise_std", noise_std)):
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"linear({name}=...) must be finite and at least 0, got {value}")
    return _arrays(
        _linear_segment,
        n_rows,
        n_columns,
        np.float32,
        seed,
        chunk_rows,
        score_std=score_std,
        noise_std=noise_std,
        n_informative=_checked_informative("linear", n_informative, n_columns, condition),
        condition=_checked_condition("linear", condition),
    )


def multinomial(
    n_rows: int,
    n_columns: int = 20,
    n_classes: int = 5,
    score_std: float = 1.0,
    seed: int = 0,
    chunk_rows: int = 250_000,
    condition: float = 1.0,
) -> tuple[da.Array, da.Array]:
    """Make a problem of several classes that follows a multinomial logistic model.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape, at least 1 each.
    n_classes : int, default 5
        Number of classes, at least 2.
    score_std : float, default 1.0
        Standard deviation of each class's scores.
    seed : int, default 0
        Names the problem; not negative.
    chunk_rows : int, default 250_000
        Rows of a chunk. Does not change the values.
    condition : float, default 1.0
        Condition number of the columns' covariance, at least 1. At 1 the columns are independent;
        beyond, they are correlated and of unlike spread. Does not change the scores.

    Returns
    -------
    X : dask array of shape (n_rows, n_columns), float32
        Normal, of mean 0 and mean variance 1.
    y : dask array of shape (n_rows,), int8
        Classes 0 to n_classes - 1.

    Raises
    ------
    ValueError
        If a size is not positive, there are fewer than 2 or more than 127 classes, `score_std` is
        negative, the seed is negative or `condition` is below 1.
    """
    if not 2 <= n_classes <= np.iinfo(np.int8).max:
        raise ValueError(f"multinomial(n_classes=...) must be 2 to 127, got {n_classes}")
    if not (score_std >= 0 and math.isfinite(score_std)):
        raise ValueError(
            f"multinomial(score_std=...) must be finite and at least 0, got {score_std}"
        )
    return _arrays(
        _multinomial_segment,
        n_rows,
        n_columns,
        np.int8,
        seed,
        chunk_rows,
        score_std=score_std,
        n_classes=n_classes,
        condition=_checked_condition("multinomial", condition),
    )


def poisson(
    n_rows: int,
    n_columns: int = 20,
    mean: float = 1.0,
    score_std: float = 0.5,
    seed: int = 0,
    chunk_rows: int = 250_000,
    condition: float = 1.0,
) -> tuple[da.Array, da.Array]:
    """Make counts that follow a log-linear Poisson model.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape, at least 1 each.
    mean : float, default 1.0
        Mean of the counts, positive.
    score_std : float, default 0.5
        Standard deviation of the logarithm of a row's expected count, at most 3.
    seed : int, default 0
        Names the problem; not negative.
    chunk_rows : int, default 250_000
        Rows of a chunk. Does not change the values.
    condition : float, default 1.0
        Condition number of the columns' covariance, at least 1. At 1 the columns are independent;
        beyond, they are correlated and of unlike spread. Does not change the scores.

    Returns
    -------
    X : dask array of shape (n_rows, n_columns), float32
        Normal, of mean 0 and mean variance 1.
    y : dask array of shape (n_rows,), float32
        Counts.

    Raises
    ------
    ValueError
        If a size or `mean` is not positive, `score_std` is not in [0, 3], the seed is negative or
        `condition` is below 1.
    """
    if not (mean > 0 and math.isfinite(mean)):
        raise ValueError(f"poisson(mean=...) must be finite and positive, got {mean}")
    if not 0 <= score_std <= 3:
        raise ValueError(f"poisson(score_std=...) must be 0 to 3, got {score_std}")
    return _arrays(
        _poisson_segment,
        n_rows,
        n_columns,
        np.float32,
        seed,
        chunk_rows,
        score_std=score_std,
        mean=mean,
        condition=_checked_condition("poisson", condition),
    )


def _arrays(
    make_segment: Callable[..., Segment],
    n_rows: int,
    n_columns: int,
    y_dtype: type[np.generic],
    seed: int,
    chunk_rows: int,
    **model: float,
) -> tuple[da.Array, da.Array]:
    """X and y as dask arrays whose chunks are made by the tasks themselves."""
    for name, value in (("n_rows", n_rows), ("n_columns", n_columns), ("chunk_rows", chunk_rows)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    make_chunk = delayed(_chunk, pure=False)
    token = tokenize(make_segment.__name__, n_columns, seed, model)
    xs, ys = [], []
    for start in range(0, n_rows, chunk_rows):
        stop = min(start + chunk_rows, n_rows)
        pair = make_chunk(
            make_segment,
            start,
            stop,
            n_columns,
            seed,
            model,
            dask_key_name=f"synthetic-{token}-{start}-{stop}",
        )
        xs.append(da.from_delayed(pair[0], (stop - start, n_columns), dtype=np.float32))
        ys.append(da.from_delayed(pair[1], (stop - start,), dtype=y_dtype))
    return da.concatenate(xs), da.concatenate(ys)


def _chunk(
    make_segment: Callable[..., Segment],
    start: int,
    stop: int,
    n_columns: int,
    seed: int,
    model: dict[str, float],
) -> Segment:
    """Rows [start, stop), from the segments that hold them."""
    xs, ys = [], []
    for segment in range(start // SEGMENT_ROWS, -(-stop // SEGMENT_ROWS)):
        X, y = make_segment(_stream(seed, segment), n_columns, seed, **model)
        first = segment * SEGMENT_ROWS
        rows = slice(max(start - first, 0), min(stop - first, SEGMENT_ROWS))
        xs.append(X[rows])
        ys.append(y[rows])
    return np.concatenate(xs), np.concatenate(ys)


def _stream(seed: int, segment: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, segment)))


def _checked_condition(recipe: str, condition: float) -> float:
    if not (condition >= 1 and math.isfinite(condition)):
        raise ValueError(f"{recipe}(condition=...) must be finite and at least 1, got {condition}")
    return condition


def _checked_informative(
    recipe: str, n_informative: int | None, n_columns: int, condition: float
) -> int:
    if n_informative is None:
        return n_columns
    if condition != 1:
        raise ValueError(
            f"{recipe}(n_informative={n_informative}) is of independent columns, got condition="
            f"{condition}: leave one of them out"
        )
    if not 1 <= n_informative <= n_columns:
        raise ValueError(
            f"{recipe}(n_informative=...) must be 1 to {n_columns}, the number of columns, got "
            f"{n_informative}"
        )
    return n_informative


def _coefficients(
    seed: int, n_columns: int, n_outputs: int, score_std: float, n_informative: int | None = None
) -> NDArray[np.float64]:
    """(n_columns, n_outputs) coefficients that give scores of a standard deviation."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    coefficients = rng.standard_normal((n_columns, n_outputs))
    coefficients[n_columns if n_informative is None else n_informative :] = 0.0
    return np.asarray(coefficients * score_std / np.linalg.norm(coefficients, axis=0))


def _normal(rng: np.random.Generator, n_columns: int) -> NDArray[np.float32]:
    return rng.standard_normal((SEGMENT_ROWS, n_columns), dtype=np.float32)


def _mixed(factors: NDArray[np.float32], seed: int, condition: float) -> NDArray[np.float32]:
    """Columns whose covariance has a condition number, made of independent standard normal ones.

    Factors are given variances that fall geometrically and are turned by a random orthogonal
    matrix: a butterfly of plane rotations, as of a fast Fourier transform, whose rounds pair the
    columns of one half with those of the other and lay the pairs side by side. So columns have
    parts of almost all factors in n log n steps, which are taken element by element: the values
    do not depend on a BLAS.
    """
    n_columns = factors.shape[1]
    if condition == 1 or n_columns == 1:
        return factors
    variances = condition ** -np.linspace(0.0, 1.0, n_columns)
    spread = np.sqrt(variances / variances.mean()).astype(np.float32)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))
    # In an order of their own, so that no column has its place by its spread.
    rng.shuffle(spread)
    half = n_columns // 2
    angles = rng.uniform(-np.pi, np.pi, ((n_columns - 1).bit_length(), half))
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    columns = np.empty_like(factors)
    for start in range(0, len(factors), _MIXED_ROWS):
        rows = slice(start, start + _MIXED_ROWS)
        part = factors[rows] * spread
        for cosine, sine in zip(cosines, sines, strict=True):
            turned = np.empty_like(part)
            left, right = part[:, :half], part[:, half : 2 * half]
            turned[:, : n_columns % 2] = part[:, 2 * half :]
            turned[:, n_columns % 2 :: 2] = cosine * left - sine * right
            turned[:, n_columns % 2 + 1 :: 2] = sine * left + cosine * right
            part = turned
        columns[rows] = part
    return columns


def _logistic_segment(
    rng: np.random.Generator,
    n_columns: int,
    seed: int,
    score_std: float,
    n_informative: int,
    condition: float,
) -> Segment:
    factors = _normal(rng, n_columns)
    scores = factors @ _coefficients(seed, n_columns, 1, score_std, n_informative)[:, 0]
    return _mixed(factors, seed, condition), (rng.logistic(size=SEGMENT_ROWS) < scores).astype(
        np.int8
    )


def _linear_segment(
    rng: np.random.Generator,
    n_columns: int,
    seed: int,
    score_std: float,
    noise_std: float,
    n_informative: int,
    condition: float,
) -> Segment:
    factors = _normal(rng, n_columns)
    scores = factors @ _coefficients(seed, n_columns, 1, score_std, n_informative)[:, 0]
    return _mixed(factors, seed, condition), (
        scores + noise_std * rng.standard_normal(SEGMENT_ROWS)
    ).astype(np.float32)


def _multinomial_segment(
    rng: np.random.Generator,
    n_columns: int,
    seed: int,
    score_std: float,
    n_classes: int,
    condition: float,
) -> Segment:
    factors = _normal(rng, n_columns)
    scores = factors @ _coefficients(seed, n_columns, n_classes, score_std)
    noisy = scores + rng.gumbel(size=scores.shape)
    return _mixed(factors, seed, condition), noisy.argmax(axis=1).astype(np.int8)


def _poisson_segment(
    rng: np.random.Generator,
    n_columns: int,
    seed: int,
    score_std: float,
    mean: float,
    condition: float,
) -> Segment:
    factors = _normal(rng, n_columns)
    scores = factors @ _coefficients(seed, n_columns, 1, score_std)[:, 0]
    return _mixed(factors, seed, condition), rng.poisson(
        mean * np.exp(scores - score_std**2 / 2)
    ).astype(np.float32)


def _higgs_segment(rng: np.random.Generator, n_columns: int, seed: int) -> Segment:
    signal = rng.random(SEGMENT_ROWS) < HIGGS_SIGNAL_SHARE
    event = rng.standard_normal((SEGMENT_ROWS, 1))
    X = _normal(rng, n_columns)
    spread, common, shift = np.array(list(_POSITIVE.values())).T
    own = spread * np.sqrt(1 - common**2)
    log = X[:, _IS_POSITIVE] * own + event * (spread * common) - spread**2 / 2
    X[:, _IS_POSITIVE] = np.exp(log + shift * signal[:, np.newaxis])
    X[:, _IS_PHI] = rng.uniform(-1.74, 1.74, (SEGMENT_ROWS, _IS_PHI.sum()))
    step, first, first_two = np.array(list(_B_TAGS.values())).T
    draw = rng.random((SEGMENT_ROWS, len(_B_TAGS)))
    X[:, _IS_B_TAG] = step * ((draw > first).astype(np.int8) + (draw > first_two))
    return X, signal.astype(np.int8)
