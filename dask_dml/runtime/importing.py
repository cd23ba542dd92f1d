"""Importing modules in another process, whose event loop and whose end do not wait for that."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any


def importer() -> Callable[..., Coroutine[Any, Any, str]]:
    """What imports modules in a thread that does not hold up the end of its process.

    The threads that asyncio has for this do, for seconds, and a nanny does not wait so long. Made
    within a function, it is pickled with its code: where this package is missing, it is not needed.

    Returns
    -------
    callable
        A coroutine function of names of modules; the version of the first of them, which says it.
    """

    async def imported(*names: str) -> str:
        import asyncio
        import importlib
        from contextlib import suppress

        from distributed.threadpoolexecutor import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        thread: Any = ThreadPoolExecutor(1, thread_name_prefix="dml-import")
        try:
            # What the event loop itself is likely to import next, to read a task: two threads that
            # begin a package by different modules of it wait for each other, and one of them is
            # given a module that is not finished.
            with suppress(ImportError):
                await loop.run_in_executor(thread, importlib.import_module, "dask.array.core")
            first, *_ = [
                await loop.run_in_executor(thread, importlib.import_module, name) for name in names
            ]
        finally:
            thread.shutdown(wait=False)
        return str(first.__version__)

    return imported
