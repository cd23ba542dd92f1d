"""How a call goes down a tree of workers, and its sums come up.

A call asks all workers of a run at once to do their share of a round. The scheduler passes it on to
a few of them, each of which does its own share, passes it on to a few of those that are left, and
adds up what comes back: so nobody talks to more than a few, however large the fleet, and the bits
are those of any other order of addition (see `dask_dml.objective.summation`). Who does not answer
in time is missing from the answer, with all that are below: nothing is asked twice here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from distributed.protocol.pickle import dumps, loads

from dask_dml.objective import TreeSum

# How many workers each asks. With 8, a thousand are reached in four steps.
FAN_OUT = 8
# How much longer than those below it somebody waits, so that what they have still comes.
STEP_S = 0.1


@dataclass(frozen=True, slots=True)
class Call:
    """A round's request to a worker, as it travels.

    Attributes
    ----------
    run : str
    order : int
        The standing order by which the worker knows its blocks; see
        `dask_dml.runtime.resident.Resident`.
    work : bytes
        What to do with every block, packed.
    n_blocks : int
        Of the whole sum.
    limit_s : float
        How long each worker may take over its share; what it has not begun by then, it leaves.
    below : tuple of str
        Workers to whom it passes the call on.
    fan_out : int
        To how many of them at most directly.
    """

    run: str
    order: int
    work: bytes
    n_blocks: int
    limit_s: float
    below: tuple[str, ...] = ()
    fan_out: int = FAN_OUT

    @property
    def message(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Call:
        """From plain data."""
        return cls(**{**message, "below": tuple(message["below"])})


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call at a worker and those below it.

    Attributes
    ----------
    nodes : bytes
        Packed list of the nodes of the sum, as few as the blocks allow; empty for none.
    done : list of (worker, shard, busy_s, blas)
        The shards that are in the sum, how long each took, and the BLAS that took part.
    undone : list of (worker, reason)
        Who left something, as far as one knows.
    """

    nodes: bytes
    done: Sequence[tuple[str, int, float, str]]
    undone: Sequence[tuple[str, str]]

    @property
    def message(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def branches(workers: Sequence[str], fan_out: int) -> list[tuple[str, tuple[str, ...]]]:
    """Split workers into a few, each with those below it, which are its neighbours.

    Parameters
    ----------
    workers : sequence of str
        In the order of their blocks, so that sums of neighbours are few nodes.
    fan_out : int
        How many there are at most.

    Returns
    -------
    list of (worker, workers below)

    Examples
    --------
    >>> branches("abcde", 2)
    [('a', ('b', 'c')), ('d', ('e',))]
    """
    n_parts = min(len(workers), fan_out)
    edges = [-(-part * len(workers) // max(n_parts, 1)) for part in range(n_parts + 1)]
    parts = [tuple(workers[edges[i] : edges[i + 1]]) for i in range(n_parts)]
    return [(part[0], part[1:]) for part in parts]


def n_steps(n_workers: int, fan_out: int) -> int:
    """How many steps a call takes to the last of so many workers."""
    steps = 0
    while n_workers > 0:
        steps += 1
        n_workers = -(-n_workers // fan_out) - 1
    return steps


async def asked(
    pool: Callable[[str], Any], server: str, op: str, limit_s: float, /, **message: Any
) -> Any:
    """Ask a worker or nanny.

    Parameters
    ----------
    pool : callable
        Gives the connection to a server: the `rpc` of a scheduler or worker.
    server, op : str
    limit_s : float
        How long it may take to answer.
    **message
        What goes with the question.

    Returns
    -------
    object
        Its answer; None where it does not know the question; the exception where it raised one
        or did not answer in time.
    """

    async def answer() -> Any:
        async with asyncio.timeout(limit_s):
            return await getattr(pool(server), op)(**message)

    # Whatever the other side raises is an answer, and no fault of this one's.
    return (await asyncio.gather(answer(), return_exceptions=True))[0]


async def passed_on(pool: Callable[[str], Any], call: Call) -> list[Answer]:
    """Pass a call on to those below, and wait for their answers, each no longer than it may take.

    Parameters
    ----------
    pool : callable
        See `asked`.
    call : Call
    """

    async def one(worker: str, below: tuple[str, ...]) -> Answer:
        limit_s = call.limit_s + STEP_S * (1 + n_steps(len(below), call.fan_out))
        message = replace(call, below=below).message
        answer = await asked(pool, worker, "dml_call", limit_s, call=message)
        if isinstance(answer, Mapping):
            return Answer(**answer)
        reason = "takes no calls" if answer is None else repr(answer)
        return Answer(b"", [], [(worker, reason)])

    return list(await asyncio.gather(*(one(*b) for b in branches(call.below, call.fan_out))))


def joined(answers: Iterable[Answer], n_blocks: int) -> Answer:
    """Add up what came from several sides."""
    answers = list(answers)
    total: TreeSum[Any] = TreeSum(n_blocks)
    for answer in answers:
        if answer.nodes:
            total.update(loads(answer.nodes))
    return Answer(
        dumps(total.nodes) if total.nodes else b"",
        [shard for answer in answers for shard in answer.done],
        [reason for answer in answers for reason in answer.undone],
    )
