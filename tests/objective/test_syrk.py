"""Outer products of rows, added to a triangle where it is."""

from __future__ import annotations

import numpy as np
import pytest

from dask_dml.objective.syrk import add_outer_products


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-4)])
@pytest.mark.parametrize(("n_rows", "d"), [(0, 3), (1, 1), (5, 8), (300, 40)])
def test_the_lower_triangle_has_the_sum_and_the_rest_stays(n_rows, d, dtype, tolerance):
    rng = np.random.default_rng(0)
    rows, before = rng.normal(size=(n_rows, d)), rng.normal(size=(d, d))
    rows, before = rows.astype(dtype), before.astype(dtype)
    triangle = before.copy()
    add_outer_products(triangle, rows)
    expected = np.tril(before + rows.T @ rows) + np.triu(before, 1)
    np.testing.assert_allclose(triangle, expected, rtol=tolerance, atol=tolerance, strict=True)


@pytest.mark.parametrize(
    ("triangle", "rows"),
    [
        (np.zeros((3, 3), np.float32), np.zeros((2, 3))),
        (np.zeros((3, 3)), np.zeros((2, 3), np.float32)),
        (np.zeros((3, 3)), np.zeros((3, 2)).T),
        (np.zeros((3, 3)), np.zeros((2, 6))[:, ::2]),
        (np.zeros((2, 2)), np.zeros((2, 3))),
    ],
)
def test_other_arrays_are_refused_by_name(triangle, rows):
    with pytest.raises(ValueError, match=r"add_outer_products\((triangle|rows)=\.\.\.\)"):
        add_outer_products(triangle, rows)
