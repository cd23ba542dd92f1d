"""How functions are compiled: for given types, without the GIL, and once for a machine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba

logger = logging.getLogger(__name__)


def compiled(function: Callable[..., Any], signature: Any) -> Any:
    """A function that is called from Python, for arguments of given types.

    Parameters
    ----------
    function : callable
    signature : numba signature
    """
    return _kept(function, numba.njit, signature, nogil=True, error_model="numpy")


def callback(function: Callable[..., Any], signature: Any) -> Any:
    """A function that compiled ones are given as an argument.

    Parameters
    ----------
    function : callable
    signature : numba signature
    """
    return _kept(function, numba.cfunc, signature, error_model="numpy")


def _kept(function: Callable[..., Any], compiler: Any, signature: Any, **options: Any) -> Any:
    """Compile, or take from disk: beside the module, or where users keep such things."""
    try:
        return compiler(signature, cache=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
    logger.info("%s is compiled in each process: no folder to keep it in", function.__name__)
    return compiler(signature, **options)(function)
