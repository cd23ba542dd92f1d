"""Waiting on a cluster from this thread, by coroutines in the client's loop, and not for long.

What the client's own blocking calls raise lives on in a cycle of frames, and with it the futures
that those frames name: data would stay on the cluster until this process collects its garbage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import Future as ThreadFuture
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar

from distributed import Client, Future, wait

T = TypeVar("T")

# How long a client collects messages before it sends them; Dask's own is ten times that.
_COLLECT_S = 0.001


@contextmanager
def sending_promptly(client: Client) -> Iterator[None]:
    """Have a client collect messages for less long.

    A round is a few messages that somebody waits for, so that each collecting adds to each round.
    """
    stream: Any = client.scheduler_comm
    usual_s = stream.interval
    stream.interval = min(usual_s, _COLLECT_S)
    try:
        yield
    finally:
        # Of several fits on one client the first restores what was, and the others leave it so.
        if usual_s > _COLLECT_S:
            stream.interval = usual_s


def in_loop(client: Client, coroutine: Coroutine[Any, Any, T]) -> ThreadFuture[T]:
    """Start a coroutine in the client's loop."""
    loop: Any = client.loop
    return asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop)


def is_connected(client: Client) -> bool:
    """Whether a client has the scheduler that it was given, or another in its place."""
    return bool(client.status == "running")


def require_connection(client: Client) -> None:
    """Refuse to wait for a scheduler that is gone, as clients do, for as long as it takes.

    Raises
    ------
    ConnectionError
        If the client was closed, or looks for a scheduler. What it had on the cluster is lost then,
        though it may find one.
    """
    if not is_connected(client):
        raise ConnectionError(f"Client is {client.status}, and has no connection to a scheduler")


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
