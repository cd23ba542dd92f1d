"""The process's BLAS: its number of threads and its kernels, both of which decide on the bits."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from threadpoolctl import ThreadpoolController


class BlasLibrary(Protocol):
    """What is used of threadpoolctl's controller of one loaded library."""

    internal_api: str

    @property
    def num_threads(self) -> int | None: ...
    def set_num_threads(self, num_threads: int, /) -> object: ...


class BlasThreads:
    """Runs BLAS on one thread, and restores what was when nobody needs that any more.

    BLAS gives other bits with two threads than with one. Most libraries have one number of threads
    for the process: blocks on several threads of one worker must not restore it under each other,
    so the first to come sets it and the last to leave restores it. OpenBLAS over OpenMP has a
    number for each calling thread, which each sets and restores for itself.

    Parameters
    ----------
    libraries : sequence of BlasLibrary

    Attributes
    ----------
    libraries : tuple of BlasLibrary
    n_uses : int
        How often it was asked for.
    """

    def __init__(self, libraries: Sequence[BlasLibrary]) -> None:
        self.libraries = tuple(libraries)
        self.n_uses = 0
        known = [lib for lib in libraries if lib.num_threads is not None]
        self._own = [lib for lib in known if _is_per_thread(lib)]
        self._shared = [lib for lib in known if not _is_per_thread(lib)]
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[int] = []

    @contextmanager
    def single(self) -> Iterator[None]:
        """Run BLAS on one thread within the block."""
        own = _limit(self._own)
        with self._lock:
            if self._users == 0:
                self._before = _limit(self._shared)
            self._users += 1
            self.n_uses += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    _set_threads(self._shared, self._before)
            _set_threads(self._own, own)


def _is_per_thread(lib: BlasLibrary) -> bool:
    return lib.internal_api == "openblas" and getattr(lib, "threading_layer", "") == "openmp"


def _limit(libraries: Sequence[BlasLibrary]) -> list[int]:
    before = [int(lib.num_threads or 1) for lib in libraries]
    _set_threads(libraries, [1] * len(before))
    return before


def _set_threads(libraries: Sequence[BlasLibrary], numbers: Sequence[int]) -> None:
    for lib, number in zip(libraries, numbers, strict=True):
        # threadpoolctl 3.7 and later let one Python thread have control of OpenBLAS, for good, and
        # ignore all others without a word.
        give_up_control = getattr(lib, "clear_controlling_thread", None)
        if give_up_control is not None:
            give_up_control(force=True)
        lib.set_num_threads(number)
        if give_up_control is not None:
            give_up_control(force=True)


_first_use = threading.Lock()


@functools.cache
def _blas_threads() -> BlasThreads:
    libraries = ThreadpoolController().lib_controllers
    return BlasThreads([lib for lib in libraries if lib.user_api == "blas"])


def single_threaded_blas() -> AbstractContextManager[None]:
    """Run BLAS on one thread in this process until the last such block is left."""
    return _first_blas_threads().single()


def blas_uses() -> int:
    """How often this process has run BLAS on one thread."""
    return _first_blas_threads().n_uses


def _first_blas_threads() -> BlasThreads:
    with _first_use:  # two instances would restore the number of threads under each other
        return _blas_threads()


def blas_name() -> str:
    """What computes in this process's BLAS, such as "openblas Haswell": it decides on the bits."""
    libraries = _first_blas_threads().libraries
    return ", ".join(sorted({f"{lib.internal_api} {_architecture(lib)}" for lib in libraries}))


def blas_environment() -> dict[str, str]:
    """Variables that make processes started with them compute by the BLAS kernels of this one."""
    libraries = _first_blas_threads().libraries
    kernels = {_architecture(lib) for lib in libraries if lib.internal_api == "openblas"}
    return {"OPENBLAS_CORETYPE": kernels.pop()} if len(kernels) == 1 else {}


def _architecture(library: BlasLibrary) -> str:
    return str(getattr(library, "architecture", "of unknown kernels"))
