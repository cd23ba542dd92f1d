"""Products of matrices, compiled, in tiles of eight by eight, each summed in order."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from dask_dml.objective.kernels.compiling import compiled
from dask_dml.objective.kernels.lanes import LANES, load, spread, spread_from, store
from dask_dml.objective.losses import Array

# Its decorators are not typed.
_copied: Any = numba.njit(error_model="numpy", forceinline=True)


def product(left: Array, right: Array) -> Array:
    """``left @ right``, each entry summed in the order of what it is summed over.

    Parameters
    ----------
    left : ndarray of shape (n, q)
    right : ndarray of shape (q, m)

    Returns
    -------
    ndarray of shape (n, m)
    """
    (n, q), m = left.shape, right.shape[1]
    n_panels = -(-m // LANES)
    padded = np.zeros((q, n_panels * LANES))
    padded[:, :m] = right
    panels = np.ascontiguousarray(padded.reshape(q, n_panels, LANES).transpose(1, 0, 2))
    found = np.zeros((-(-n // LANES) * LANES, n_panels * LANES))
    _kernel()(np.require(left, np.float64, ["C", "A"]), panels, found)
    return np.ascontiguousarray(found[:n, :m])


@functools.cache
def _kernel() -> Any:
    left = types.Array(types.float64, 2, "C", readonly=True)
    panels, found = types.Array(types.float64, 3, "C"), types.Array(types.float64, 2, "C")
    return compiled(_add_product, types.void(left, panels, found))


def _add_product(left: Array, panels: Array, found: Array) -> None:
    n, q = left.shape
    n_panels, size = len(panels), q * LANES
    whole = n // LANES * LANES
    for i in range(0, whole, LANES):
        for g in range(n_panels):
            to = (i * n_panels + g) * LANES
            add_tile(left, i * q, q, 1, panels, g * size, q, found, to, n_panels)
    if whole < n:
        edge = np.zeros((LANES, q))
        edge[: n - whole] = left[whole:]
        for g in range(n_panels):
            to = (whole * n_panels + g) * LANES
            add_tile(edge, 0, q, 1, panels, g * size, q, found, to, n_panels)


@_copied
def add_tile(
    scalars: Array,
    at: int,
    output_step: int,
    row_step: int,
    panels: Array,
    panel: int,
    m: int,
    sums: Array,
    to: int,
    n_panels: int,
) -> None:
    """Add, in row order, eight multiples of each row of a panel to eight rows of sums."""
    step = n_panels * LANES
    # Four rows at a time: their sums stay in registers, also where those hold four numbers only.
    for _ in range(2):
        s0 = s1 = s2 = s3 = spread(0.0)
        place = at
        for i in range(m):
            row = load(panels, panel + i * LANES)
            s0 += spread_from(scalars, place) * row
            s1 += spread_from(scalars, place + output_step) * row
            s2 += spread_from(scalars, place + 2 * output_step) * row
            s3 += spread_from(scalars, place + 3 * output_step) * row
            place += row_step
        store(sums, to, load(sums, to) + s0)
        store(sums, to + step, load(sums, to + step) + s1)
        store(sums, to + 2 * step, load(sums, to + 2 * step) + s2)
        store(sums, to + 3 * step, load(sums, to + 3 * step) + s3)
        at += 4 * output_step
        to += 4 * step
