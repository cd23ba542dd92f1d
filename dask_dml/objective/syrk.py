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
from numpy.typing import NDArray
from scipy.linalg import cython_blas

# By item size: what SciPy offers other compiled code, and its numbers.
_ROUTINES: dict[int, tuple[object, type[Any]]] = {
    4: (cython_blas.__pyx_capi__["ssyrk"], ctypes.c_float),
    8: (cython_blas.__pyx_capi__["dsyrk"], ctypes.c_double),
}


def add_outer_products(
    triangle: NDArray[np.floating[Any]], rows: NDArray[np.floating[Any]]
) -> None:
    """Add ``rows.T @ rows`` to the lower triangle of a matrix; what is above is left as it is.

    Parameters
    ----------
    triangle : ndarray of shape (d, d), float64 or float32, in C order
    rows : ndarray of shape (n, d), of the same type, in C order

    Raises
    ------
    ValueError
        If they are not so.
    """
    for name, values in (("triangle", triangle), ("rows", rows)):
        is_in_order = values.flags.carray or not values.size
        if values.dtype not in (np.float64, np.float32) or not is_in_order:
            raise ValueError(
                f"add_outer_products({name}=...) must be float64 or float32 in C order, aligned"
            )
    n_rows, d = rows.shape
    if triangle.shape != (d, d):
        raise ValueError(
            f"add_outer_products(triangle=...) must have shape {(d, d)}, got {triangle.shape}"
        )
    if rows.dtype != triangle.dtype:
        raise ValueError(
            f"add_outer_products(rows=...) must be {triangle.dtype} like the triangle, got "
            f"{rows.dtype}"
        )
    if not rows.size:
        return
    function, number = _routine(triangle.dtype.itemsize)
    n, k, one = ctypes.c_int(d), ctypes.c_int(n_rows), number(1.0)
    # Fortran sees both transposed, so that its upper triangle is our lower one.
    a, c = rows.ctypes.data, triangle.ctypes.data
    function(b"U", b"N", n, k, one, a, n, one, c, n)


@functools.cache
def _routine(itemsize: int) -> tuple[Callable[..., None], type[Any]]:
    # A foreign function is called without the lock.
    capsule, number_type = _ROUTINES[itemsize]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    count, number = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(number_type)
    text, matrix = ctypes.c_char_p, ctypes.c_void_p
    kind: Any = ctypes.CFUNCTYPE(
        None, text, text, count, count, number, matrix, count, number, matrix, count
    )
    function: Callable[..., None] = kind(address)
    return function, number_type
