"""Directions in which an objective falls for ever, on plain arrays."""

from __future__ import annotations

import numpy as np

from dask_dml.solvers.escape import escape_direction, escapes, is_seen

POINT = np.array([1.0, 30.0, 0.0])


def test_the_direction_is_the_flat_part_of_the_point():
    direction = escape_direction(POINT, np.diag([1.0, 1e-12, 0.0]), has_converged=True)
    np.testing.assert_allclose(direction / np.linalg.norm(direction), [0.0, 1.0, 0.0])


def test_a_flat_direction_that_the_fit_has_not_gone_is_none():
    hessian = np.diag([1.0, 1.0, 0.0])
    assert escape_direction(POINT, hessian, has_converged=True) is None
    assert escape_direction(POINT, hessian, has_converged=False) @ POINT > 0.0


def test_only_what_rises_no_more_than_rounding_escapes():
    assert escapes(1.0, 1.0 + 1e-9, 0.0)
    assert escapes(0.0, 1e-15, 1e-13)
    assert not escapes(1.0, 1.001, 1e-13)
    assert not escapes(1.0, np.inf, 1e-13)


def test_collinear_columns_are_not_seen():
    hessian = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert is_seen(np.array([1.0, 1.0]), hessian)
    assert not is_seen(np.array([1.0, -1.0]), hessian)
