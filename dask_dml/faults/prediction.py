"""Which workers are likely to be lost soon, from what they say of themselves.

A logistic regression over a worker's telemetry. What ends workers in ways that can be foreseen is
memory: the nanny ends a process at 95 % of its limit. That depends on the share in use and on its
growth together, which a linear model cannot see in the two, so that `expand` adds what it needs:

=================  ==============================================================================
``time_left``      ln(1 + s), s the seconds to the limit at the present growth, within 0 .. 120
``beyond_pause``   share in use above 0.8, where Dask pauses a worker; one in order stays below
``growing_high``   growth, within 0 .. 0.1 per second, times the square of the share in use
=================  ==============================================================================

A worker that is killed out of the blue says nothing beforehand, and no model can know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dask_dml.faults.telemetry import PREDICTOR_FEATURES

FORMAT = "dask-dml-predictor"
VERSION = 1
HORIZON_S = 30.0

LIMIT_SHARE = 0.95  # distributed.worker.memory.terminate
PAUSE_SHARE = 0.80  # distributed.worker.memory.pause
LONGEST_LEFT_S = 120.0
FASTEST_SLOPE = 0.1
# No feature comes near it; its square is still a number.
_ABSURD = 1e9
DERIVED = ("time_left", "beyond_pause", "growing_high")
INPUTS = (*PREDICTOR_FEATURES, *DERIVED)

_VECTORS = ("lows", "highs", "means", "scales", "coefficients")

Array = NDArray[np.float64]

_RSS = PREDICTOR_FEATURES.index("rss_share")
_SLOPE = PREDICTOR_FEATURES.index("rss_slope")


def expand(X: Array) -> Array:
    """Add the derived features.

    Parameters
    ----------
    X : ndarray of shape (n, len(PREDICTOR_FEATURES))

    Returns
    -------
    ndarray of shape (n, len(INPUTS)), float64
    """
    share, slope = X[:, _RSS], X[:, _SLOPE]
    left_s = np.full(len(X), LONGEST_LEFT_S)
    # A share of 0 means that there is no limit.
    grows = (slope * LONGEST_LEFT_S > LIMIT_SHARE - share) & (slope > 0.0)
    left_s[grows] = np.maximum(LIMIT_SHARE - share[grows], 0.0) / slope[grows]
    derived = (
        np.log1p(left_s),
        np.maximum(share - PAUSE_SHARE, 0.0),
        np.clip(slope, 0.0, FASTEST_SLOPE) * share**2,
    )
    return np.column_stack([X, *derived])


@dataclass(frozen=True)
class Predictor:
    """A fitted model of a worker's loss within the next `horizon_s`.

    Parameters
    ----------
    lows, highs : tuple of float
        Range of each of `INPUTS`, but for outliers, in what the model was fitted on. What is
        beyond counts as the end of the range: a line fitted to tasks of minutes says nothing of
        one that takes a day.
    means, scales : tuple of float
        What is taken off each of `INPUTS`, and by what it is divided.
    coefficients : tuple of float
        One for each of `INPUTS`.
    intercept : float
    horizon_s : float
        How far it looks ahead.
    card : mapping
        What it was fitted on and how it did; plain data, for people.
    features : tuple of str
        The features that it takes, in order; must be `PREDICTOR_FEATURES`.
    version : int
        Of this form.

    Raises
    ------
    ValueError
        If a part has another length than it should, is not finite, or belongs to another version.
    """

    lows: tuple[float, ...]
    highs: tuple[float, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    horizon_s: float = HORIZON_S
    card: Mapping[str, Any] = field(default_factory=dict, compare=False)
    features: tuple[str, ...] = PREDICTOR_FEATURES
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(
                f"Predictor(version={self.version!r}): this package reads version {VERSION}; fit "
                "the predictor anew with dask_dml.faults.training"
            )
        if tuple(self.features) != PREDICTOR_FEATURES:
            raise ValueError(
                f"Predictor(features=...) must be {PREDICTOR_FEATURES}, got {self.features!r}; fit "
                "the predictor anew with dask_dml.faults.training"
            )
        for name in _VECTORS:
            values = getattr(self, name)
            if len(values) != len(INPUTS) or not all(_is_finite(value) for value in values):
                raise ValueError(
                    f"Predictor({name}=...) must have {len(INPUTS)} finite numbers, one for each "
                    f"of {', '.join(INPUTS)}; got {values!r}"
                )
        if not all(scale > 0.0 for scale in self.scales):
            raise ValueError(f"Predictor(scales=...) must be positive, got {self.scales!r}")
        if not all(low <= high for low, high in zip(self.lows, self.highs, strict=True)):
            raise ValueError("Predictor(lows=..., highs=...): lows must not be above highs")
        if not _is_finite(self.intercept):
            raise ValueError(f"Predictor(intercept={self.intercept!r}) must be a finite number")
        if not (_is_finite(self.horizon_s) and self.horizon_s > 0.0):
            raise ValueError(f"Predictor(horizon_s={self.horizon_s!r}) must be positive and finite")

    def probabilities(self, X: Any) -> Array:
        """Probability that each worker is lost within the next `horizon_s`.

        Parameters
        ----------
        X : array-like of shape (n, len(PREDICTOR_FEATURES))
            A row a worker, in the order of `telemetry.PREDICTOR_FEATURES`.

        Returns
        -------
        ndarray of shape (n,), float64
            0 for a worker whose telemetry is not finite: nothing is known of it.

        Raises
        ------
        ValueError
            If X has another shape.
        """
        rows = np.asarray(X, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(PREDICTOR_FEATURES):
            raise ValueError(
                f"Predictor.probabilities(X): X must have shape (n, {len(PREDICTOR_FEATURES)}), a "
                f"column for each of {', '.join(PREDICTOR_FEATURES)}; got {rows.shape}"
            )
        is_known = np.all(np.isfinite(rows), axis=1, keepdims=True)
        rows = np.clip(np.where(is_known, rows, 0.0), -_ABSURD, _ABSURD)
        inputs = np.clip(expand(rows), self.lows, self.highs)
        scores = (inputs - np.array(self.means)) / np.array(self.scales)
        scores = scores @ np.array(self.coefficients) + self.intercept
        return np.where(is_known[:, 0], 0.5 * (1.0 + np.tanh(0.5 * scores)), 0.0)

    def to_json(self) -> str:
        """As text, to the last bit."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From what `to_json` gave.

        Raises
        ------
        ValueError
            If the text is not that of a predictor, or of one of another version.
        """
        try:
            said = json.loads(text)
        except ValueError as error:
            raise ValueError(f"Predictor.from_json(text): not JSON: {error}") from error
        if not isinstance(said, dict) or said.pop("format", None) != FORMAT:
            raise ValueError(
                f"Predictor.from_json(text) must be an object with format={FORMAT!r}, as "
                "Predictor.to_json gives it"
            )
        names = {part.name for part in fields(cls)}
        if set(said) != names:
            raise ValueError(
                f"Predictor.from_json(text) must have the entries {', '.join(sorted(names))}; got "
                f"{', '.join(sorted(said))}"
            )
        for name in (*_VECTORS, "features"):
            if not isinstance(said[name], list):
                raise ValueError(f"Predictor.from_json(text): {name} must be a list")
            said[name] = tuple(said[name])
        return cls(**said)

    @staticmethod
    @cache
    def packaged() -> Predictor:
        """The model that comes with the package; its figures are in `card`."""
        place = files("dask_dml.faults").joinpath("predictor.json")
        return Predictor.from_json(place.read_text(encoding="utf-8"))


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
