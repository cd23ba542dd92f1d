"""Penalties on the coefficients; the intercept is never penalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Penalty(Protocol):
    """What a problem needs to know of a penalty.

    Attributes
    ----------
    strength : float
        Of half the squared norm.
    absolute : float
        Of the sum of absolute values, which has no gradient.
    """

    @property
    def strength(self) -> float: ...
    @property
    def absolute(self) -> float: ...

    def value(self, coefficients: NDArray[np.float64]) -> float:
        """Value at coefficients of any shape."""
        ...

    def gradient(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Gradient of the smooth part, in the shape of the coefficients."""
        ...


@dataclass(frozen=True, slots=True)
class L2Penalty:
    """``strength / 2 * sum(w^2)``; strength 0 is no penalty.

    Raises
    ------
    ValueError
        If `strength` is negative or not finite.
    """

    strength: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.strength) and self.strength >= 0.0):
            raise ValueError(
                f"L2Penalty(strength=...) must be a finite number >= 0, got {self.strength!r}"
            )

    @property
    def absolute(self) -> float:
        """None."""
        return 0.0

    def value(self, coefficients: NDArray[np.float64]) -> float:
        """Value at coefficients of any shape."""
        flat = coefficients.ravel()
        return 0.5 * self.strength * float(flat @ flat)

    def gradient(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Gradient, in the shape of the coefficients."""
        return self.strength * coefficients


@dataclass(frozen=True, slots=True)
class ElasticNetPenalty:
    """``strength / 2 * sum(w^2) + absolute * sum(|w|)``.

    Raises
    ------
    ValueError
        If one of them is negative or not finite.
    """

    strength: float
    absolute: float

    def __post_init__(self) -> None:
        for name in ("strength", "absolute"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0.0):
                raise ValueError(
                    f"ElasticNetPenalty({name}=...) must be a finite number >= 0, got {value!r}"
                )

    def value(self, coefficients: NDArray[np.float64]) -> float:
        """Value at coefficients of any shape."""
        flat = coefficients.ravel()
        return 0.5 * self.strength * float(flat @ flat) + self.absolute * float(np.abs(flat).sum())

    def gradient(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Gradient of the smooth part, in the shape of the coefficients."""
        return self.strength * coefficients
