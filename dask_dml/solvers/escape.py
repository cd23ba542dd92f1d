"""Whether an objective without a penalty has an optimum at all.

Where a plane separates classes, or some rows of them, an objective falls for ever along a direction
in which no row's loss rises. So it does where all counts of some kind of rows are zero.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from dask_dml.objective.losses import Array

NO_OPTIMUM = "there is no optimum: coefficients diverge"

# Curvature of a direction, in units of the largest or of that of a row that is unsure, below which
# rows are sure of it; and the share of a point that such directions must have to be looked at.
_FLAT = 1e-7
_SHARE = 1e-2
# How far out it is looked, in units of the point; and how much higher, for rounding of the
# direction, the objective may be there.
_FAR = 100.0
_RISE = 1e-7
# Curvature, in units of the largest, that rows which are not sure have in a direction they see.
_SEEN = 1e-9


def escape_direction(point: Array, hessian: Array, has_converged: bool) -> Array | None:
    """The flat part of where a fit has gone; None where it has gone in steep directions.

    Parameters
    ----------
    point : ndarray of shape (d,)
        Where the fit has stopped, in coordinates in which curvatures are about 1 at the start.
    hessian : ndarray of shape (d, d)
        There.
    has_converged : bool
        Otherwise it may be on its way in any direction.

    Returns
    -------
    ndarray of shape (d,) or None
        Far enough out for `escapes`.
    """
    values, vectors = scipy.linalg.eigh(hessian)
    flat = vectors[:, values <= _FLAT * max(float(values[-1]), 1.0)]
    direction = np.asarray(flat @ (flat.T @ point))
    # Collinear columns make flat directions too, but a solution of least norm has no part in them.
    if np.linalg.norm(direction) > _SHARE * np.linalg.norm(point):
        return _FAR * direction
    return None if has_converged else _FAR * point


def escapes(value: float, far_value: float, noise: float) -> bool:
    """Whether the objective is no higher far out, which no convex one with an optimum here is.

    Parameters
    ----------
    value, far_value : float
        Objective where the fit has stopped, and beyond.
    noise : float
        What of a sum over all rows is rounding.
    """
    return bool(np.isfinite(far_value) and far_value <= value + _RISE * abs(value) + noise)


def is_seen(direction: Array, hessian: Array) -> bool:
    """Whether a direction changes scores at all, by the Hessian where no row is sure."""
    steepest = float(np.diagonal(hessian).max())
    curvature = float(direction @ hessian @ direction)
    return curvature > _SEEN * steepest * float(direction @ direction)
