"""BLAS runs on one thread where it is asked to, and is left as it was found."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from threadpoolctl import threadpool_info, threadpool_limits

from dask_dml.objective.blas import BlasThreads, single_threaded_blas


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blocks_that_overlap_in_time_leave_blas_as_they_found_it():
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        inside, first_has_left = Barrier(2, timeout=60), Barrier(2, timeout=60)

        def leaves_first():
            with single_threaded_blas():
                inside.wait()
            first_has_left.wait()

        def leaves_last():
            with single_threaded_blas():
                inside.wait()
                first_has_left.wait()
                return blas_threads()

        with ThreadPoolExecutor(2) as pool:
            first, last = pool.submit(leaves_first), pool.submit(leaves_last)
            first.result()
            assert set(last.result()) == {1}
        assert blas_threads() == before


def test_any_thread_limits_blas_whichever_thread_did_so_before():
    with threadpool_limits(2, user_api="blas"), single_threaded_blas():
        pass
    seen = []
    for _ in range(2):
        # A new pool each time, and the last one's thread is still there.
        pool = ThreadPoolExecutor(1)
        with threadpool_limits(2, user_api="blas"):
            seen.append((pool, pool.submit(blas_threads_of_a_block).result()))
    for pool, threads in seen:
        pool.shutdown()
        assert set(threads) == {1}


def blas_threads_of_a_block():
    with single_threaded_blas():
        return blas_threads()


class PerThreadLibrary:
    """A stand-in for OpenBLAS over OpenMP, which counts threads for each calling thread."""

    internal_api = "openblas"
    threading_layer = "openmp"

    def __init__(self):
        self.local = threading.local()

    @property
    def num_threads(self):
        return getattr(self.local, "number", 4)

    def set_num_threads(self, number):
        self.local.number = number


def test_a_library_that_counts_for_each_thread_is_limited_in_each():
    library = PerThreadLibrary()
    threads = BlasThreads([library])
    inside = Barrier(2, timeout=60)

    def block():
        with threads.single():
            inside.wait()
            within = library.num_threads
        return within, library.num_threads

    with ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in [pool.submit(block), pool.submit(block)]]
    assert found == [(1, 4), (1, 4)]
