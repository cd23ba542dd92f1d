"""BLAS's sum of outer products of rows, called without the interpreter's lock.

SciPy's own wrapper holds the lock as long as BLAS computes: threads take turns then, and a worker
answers nobody.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import cython_blas

from dask_dml.objective.losses import Array


def add_outer_products(triangle: Array, rows: Array) -> None:
    """Add ``rows.T @ rows`` to the lower triangle of a matrix; what is above is left as it is.

    Parameters
    ----------
    triangle : ndarray of shape (d, d), float64, in C order
    rows : ndarray of shape (n, d), float64, in C order

    Raises
    ------
    ValueError
        If they are not so.
    """
    for name, values in (("triangle", triangle), ("rows", rows)):
        if values.dtype != np.float64 or not (values.flags.carray or not values.size):
            raise ValueError(f"add_outer_products({name}=...) must be float64 in C order, aligned")
    n_rows, d = rows.shape
    if triangle.shape != (d, d):
        raise ValueError(
            f"add_outer_products(triangle=...) must have shape {(d, d)}, got {triangle.shape}"
        )
    if not rows.size:
        return
    n, k, one = ctypes.c_int(d), ctypes.c_int(n_rows), ctypes.c_double(1.0)
    # Fortran sees both transposed, so that its upper triangle is our lower one.
    a, c = rows.ctypes.data, triangle.ctypes.data
    _dsyrk()(b"U", b"N", n, k, one, a, n, one, c, n)


@functools.cache
def _dsyrk() -> Callable[..., None]:
    # What SciPy offers other compiled code; a foreign function is called without the lock.
    capsule = cython_blas.__pyx_capi__["dsyrk"]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    count, number = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_double)
    text, matrix = ctypes.c_char_p, ctypes.c_void_p
    kind: Any = ctypes.CFUNCTYPE(
        None, text, text, count, count, number, matrix, count, number, matrix, count
    )
    function: Callable[..., None] = kind(address)
    return function
