"""Rounds by call: one message to all workers in place of a task for each shard.

A task costs milliseconds to schedule, to send and to collect, whatever it computes. In a short
round of a calm fleet that is most of the time; there the blocks' workers are called, by way of the
scheduler's watcher, which passes the call on (`dask_dml.runtime.relay`). A call promises nothing:
what it does not do, in time or at all, tasks do, as in any other round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

from distributed import Client
from distributed.protocol.pickle import dumps

from dask_dml.faults.attempts import straggler_limit_s
from dask_dml.faults.policy import FaultPolicy
from dask_dml.runtime.monitor import Monitor
from dask_dml.runtime.relay import Answer, Call, joined
from dask_dml.runtime.resident import BlockKeys, ResidentShard
from dask_dml.runtime.shard import SentWork
from dask_dml.runtime.waiting import in_loop, is_connected

logger = logging.getLogger(__name__)

# Rounds that usually take longer go by tasks, which show in the dashboard and can be taken back.
LONGEST_S = 0.5
# Requests and sums that are larger go by tasks, which share them, or by the holder.
_LARGEST_REQUEST_BYTES = 64 * 1024
_LARGEST_ANSWER_BYTES = 1024 * 1024
# How long rounds go by tasks after a call that left something undone.
_REST_S = 1.0
# How much longer than the workers may take, and the way to them, a call is waited for.
_MARGIN_S = 1.0

_NOTHING = Answer(b"", [], [])


class Calls:
    """Calls of one run.

    Parameters
    ----------
    client : distributed.Client
    run_id : str
    monitor : Monitor
    policy : FaultPolicy
    n_blocks : int
        Blocks of the run's source.
    """

    def __init__(
        self, client: Client, run_id: str, monitor: Monitor, policy: FaultPolicy, n_blocks: int
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._monitor = monitor
        self._policy = policy
        self._n_blocks = n_blocks
        self._order: list[tuple[str, ResidentShard]] = []
        self._number = 0
        self._rests_until_s = 0.0

    def suit(self, work_nbytes: int, answer_nbytes: int, usual_s: float) -> bool:
        """Whether a round may go by call: it is short and small, and nothing is amiss.

        Parameters
        ----------
        work_nbytes, answer_nbytes : int
            Of the request, and of the sums.
        usual_s : float
            How long such a round usually takes.
        """
        return (
            usual_s <= LONGEST_S
            and work_nbytes <= _LARGEST_REQUEST_BYTES
            and answer_nbytes <= _LARGEST_ANSWER_BYTES
            and self._monitor.is_watching
            and not self._monitor.suspects
            and time.monotonic() >= self._rests_until_s
        )

    def prepared(
        self,
        work: SentWork[Any, Any],
        usual_s: float,
        cut: Sequence[tuple[str, tuple[int, ...]]],
        keys: Sequence[BlockKeys],
    ) -> Callable[[], Answer] | None:
        """Have the workers know their shards, and be ready to call them.

        Parameters
        ----------
        work : SentWork
        usual_s : float
            How long such a round usually takes; what takes much longer is not waited for.
        cut : sequence of (worker, blocks)
            The shards.
        keys : sequence of BlockKeys
            Where each block is.

        Returns
        -------
        callable or None
            Calls, and waits for what comes of it. None where some worker takes no order.
        """
        return partial(self._made, work, usual_s) if self._is_ordered(cut, keys) else None

    def _is_ordered(
        self,
        cut: Sequence[tuple[str, tuple[int, ...]]],
        keys: Sequence[BlockKeys],
    ) -> bool:
        order = [
            (worker, ResidentShard(number, blocks, tuple(keys[block] for block in blocks)))
            for number, (worker, blocks) in enumerate(cut)
        ]
        if order == self._order:
            return True
        self._order = []
        self._number += 1
        shards: dict[str, list[ResidentShard]] = {}
        for worker, shard in order:
            shards.setdefault(worker, []).append(shard)
        packed = {worker: dumps(theirs) for worker, theirs in shards.items()}
        answer = self._asked("dml_order", _MARGIN_S, number=self._number, shards=packed)
        if answer is None or answer["refused"]:
            logger.info("run %s goes on by tasks: %s", self._run_id, answer)
            self._rest()
            return False
        self._order = order
        return True

    def _made(self, work: SentWork[Any, Any], usual_s: float) -> Answer:
        limit_s = straggler_limit_s(usual_s, self._policy.speculation_factor)
        call = Call(self._run_id, self._number, dumps(work), self._n_blocks, limit_s)
        reply = self._asked("dml_call", limit_s + _MARGIN_S, call=call.message)
        if reply is None:
            self._rest()
            return _NOTHING
        answer = joined((Answer(**message) for message in reply["answers"]), self._n_blocks)
        if len(answer.done) < len(self._order):
            logger.info("run %s: left undone by a call: %s", self._run_id, list(answer.undone))
            self._rest()
        return answer

    def _rest(self) -> None:
        self._rests_until_s = time.monotonic() + _REST_S

    def _asked(self, op: str, limit_s: float, **message: Any) -> dict[str, Any] | None:
        """The answer of the scheduler's watcher; None where there is none."""
        scheduler: Any = self._client.scheduler
        if not is_connected(self._client):
            return None
        asking = in_loop(self._client, getattr(scheduler, op)(run=self._run_id, **message))
        try:
            answer = asking.result(limit_s)
        except (OSError, TimeoutError, CancelledError) as error:
            logger.info("run %s: no answer to %s: %r", self._run_id, op, error)
            return None
        finally:
            # After Ctrl-C as well; workers then leave what they have not begun in time.
            asking.cancel()
        return answer if answer is not None and answer["status"] == "OK" else None
