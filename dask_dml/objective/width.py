"""Problems whose loss has a width, as one coordinate more.

A loss ``width * h((z - y) / width)`` is convex in scores and width together. Its derivatives in the
width come from one column more, beside the features, that the loss itself gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dask_dml.objective.blocks import GramDtype, Request, Statistics
from dask_dml.objective.losses import Array, HuberLoss
from dask_dml.objective.problem import Evaluation, Problem


@dataclass(frozen=True)
class WidthProblem(Problem):
    """A problem with the width of its loss as last coordinate.

    Parameters
    ----------
    loss : HuberLoss
        At the width of the first point.
    price : float
        Factor on the width itself, which is added to the objective.
    """

    loss: HuberLoss
    price: float = 0.0

    @property
    def n_coordinates(self) -> int:
        """Length of the solver's vector: q + 1."""
        return self.n_terms + 1

    def start(self) -> Array:
        """The best constant model, and the first width."""
        return np.append(super().start(), self.loss.width)

    def point(self, coef: Array, intercept: Array) -> Array:
        """Solver's coordinates of coefficients (1, p) and intercepts (1,), at the first width."""
        return np.append(super().point(coef, intercept), self.loss.width)

    def coefficients(self, point: Array) -> tuple[Array, Array]:
        """Coefficients (1, p) and intercept (1,) of the columns as given."""
        return super().coefficients(point[:-1])

    def request(
        self,
        point: Array,
        order: int,
        share: float = 1.0,
        gram_share: float = 1.0,
        terms: NDArray[np.intp] | None = None,
        gram_dtype: GramDtype = np.float64,
    ) -> Request:
        """What to ask of the blocks for the objective at a point; as in `Problem`."""
        request = super().request(point[:-1], order, share, gram_share, terms, gram_dtype)
        theta = np.column_stack([request.theta, np.zeros(1)])
        return replace(request, theta=theta, loss=replace(self.loss, width=float(point[-1])))

    def evaluation(
        self, point: Array, statistics: Statistics, terms: NDArray[np.intp] | None = None
    ) -> Evaluation:
        """The objective at a point, from the sums over all blocks; as in `Problem`."""
        gram, factor, width = statistics.gram, self.multiplier, float(point[-1])
        rest = replace(
            statistics,
            gradient=statistics.gradient[:, :-1],
            gram=None if gram is None else gram[:-1, :-1],
        )
        inner = super().evaluation(point[:-1], rest, terms)
        # The derivative of width * h(u) in the width is h(u) - u h'(u).
        slope = factor * (statistics.loss / width + statistics.gradient[0, -1]) + self.price
        value = inner.value + self.price * width
        gradient = np.append(inner.gradient, slope)
        if gram is None or inner.hessian is None:
            return Evaluation(value, gradient, None)
        scale = self.scale if terms is None else self.scale[terms]
        hessian = np.empty((len(scale) + 1,) * 2)
        hessian[:-1, :-1] = inner.hessian
        hessian[-1, :-1] = hessian[:-1, -1] = factor * gram[-1, :-1] / scale
        hessian[-1, -1] = factor * gram[-1, -1]
        return Evaluation(value, gradient, hessian)
