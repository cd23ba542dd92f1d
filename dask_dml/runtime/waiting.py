"""Waiting on a cluster from this thread, by coroutines in the client's loop.

What the client's own blocking calls raise lives on in a cycle of frames, and with it the futures
that those frames name: data would stay on the cluster until this process collects its garbage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from concurrent.futures import CancelledError
from concurrent.futures import Future as ThreadFuture
from contextlib import suppress
from typing import Any, Literal, TypeVar

from distributed import Client, Future, wait

T = TypeVar("T")


def in_loop(client: Client, coroutine: Coroutine[Any, Any, T]) -> ThreadFuture[T]:
    """Start a coroutine in the client's loop."""
    loop: Any = client.loop
    return asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop)


def settle(
    client: Client,
    futures: Collection[Future[Any]],
    timeout_s: float,
    return_when: Literal["ALL_COMPLETED", "FIRST_COMPLETED"],
) -> None:
    """Wait for futures, no longer than so, whatever becomes of them."""

    async def settled() -> None:
        with suppress(TimeoutError, CancelledError):
            await wait(list(futures), timeout=timeout_s, return_when=return_when)

    if futures:
        in_loop(client, settled()).result()
