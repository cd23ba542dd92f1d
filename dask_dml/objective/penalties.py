"""Penalties on the coefficients; the intercept is never penalised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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

    def value(self, coefficients: NDArray[np.float64]) -> float:
        """Value at coefficients of any shape."""
        flat = coefficients.ravel()
        return 0.5 * self.strength * float(flat @ flat)

    def gradient(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Gradient, in the shape of the coefficients."""
        return self.strength * coefficients
