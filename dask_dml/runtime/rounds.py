"""One round on a cluster: a call or futures as its ledger wants them, until every block is in."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import wait as futures_wait
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from distributed import Client, Future, KilledWorker, wait
from distributed.protocol.pickle import loads

from dask_dml.errors import DaskDMLError, FitError, HolderLostError
from dask_dml.faults import FaultPolicy
from dask_dml.faults.attempts import (
    Action,
    Attempt,
    AttemptKey,
    Cancel,
    Exhausted,
    Ledger,
    Poison,
    Submit,
)
from dask_dml.objective.summation import Node
from dask_dml.runtime.blocks import Blocks
from dask_dml.runtime.fault_log import FaultLog
from dask_dml.runtime.holder import HeldWork, HolderClient
from dask_dml.runtime.keys import Key, block_of, itself, run_key
from dask_dml.runtime.monitor import Monitor
from dask_dml.runtime.relay import Answer
from dask_dml.runtime.roster import Roster, address_of
from dask_dml.runtime.shard import Contribution, SentWork, ShardResult
from dask_dml.runtime.waiting import in_loop, require_connection, settle

C = TypeVar("C", bound=Contribution)

# A worker, and the blocks that one task of its does.
Shard = tuple[str, tuple[int, ...]]

# A request larger than this goes to the workers once, and not with each task.
_INLINE_BYTES = 64 * 1024
# How often a round that is not over is looked at, and the cluster while it goes on.
_TICK_S = 0.1
_LOOK_S = 0.5

_LOST = (
    ". The cluster was restarted, the client closed, or the data is gone: what was scattered to a "
    "worker that left cannot be made again; persist it from its source, or have it held twice: "
    "Runtime(faults=FaultPolicy(replicas=2))"
)


@dataclass(frozen=True)
class Run:
    """What all rounds of a run share.

    Attributes
    ----------
    client : distributed.Client
    run_id : str
    policy : FaultPolicy
    blocks : Blocks
    roster : Roster
    monitor : Monitor
    log : FaultLog
    block_nbytes : list of float
    holder : HolderClient
    """

    client: Client
    run_id: str
    policy: FaultPolicy
    blocks: Blocks
    roster: Roster
    monitor: Monitor
    log: FaultLog
    block_nbytes: list[float]
    holder: HolderClient

    def key(self, name: str, *numbers: int) -> Key:
        """Key of a task of this run."""
        return run_key(self.run_id, name, *numbers)


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker did of a round: its blocks, the time they took, and BLAS if it took part."""

    worker: str
    blocks: tuple[int, ...]
    busy_s: float
    blas: str


@dataclass(slots=True)
class Gathered(Generic[C]):
    """What came of a round.

    Attributes
    ----------
    nodes : list of (node, contribution)
        Of the sum's tree; those that were kept elsewhere are missing.
    shares : list of Share
    nbytes : int
        Of requests and answers.
    """

    nodes: list[tuple[Node, C]] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    nbytes: int = 0


class Round(Generic[C]):
    """One round's tasks.

    Parameters
    ----------
    run : Run
    work : SentWork
        What is to be done with every block.
    kind : {"survey", "gradient", "hessian"}
    number : int
        Of the round; the survey is -1.

    Attributes
    ----------
    overtaken : list of (worker, bytes per second)
        Workers that others overtook, and the speed that they did not reach.
    """

    def __init__(self, run: Run, work: SentWork[Any, C], kind: str, number: int) -> None:
        self.number = number
        self.overtaken: list[tuple[str, float]] = []
        self._run = run
        self.kind = kind
        self._work = work
        self._request: Any = work
        bandwidth = run.roster.bandwidth if run.blocks.is_resident else math.inf
        self._ledger = Ledger(run.policy, run.block_nbytes, bandwidth)
        self._futures: dict[AttemptKey, Future[Any]] = {}
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._gathered: Gathered[C] = Gathered()
        self._called: dict[AttemptKey, Attempt] = {}
        self._fetches: list[tuple[tuple[AttemptKey, ...], ThreadFuture[Any]]] = []
        self._where: dict[AttemptKey, str] = {}
        self._threads = dict(run.roster.threads)
        self._looked_s = time.monotonic()
        self._alone_since_s: float | None = None
        self._never = threading.Event()
        self._cause: BaseException | None = None

    @property
    def name(self) -> str:
        """As people call it."""
        what = "the survey" if self.number < 0 else f"round {self.number}"
        return f"{what} of run {self._run.run_id}"

    def evaluate(
        self, cut: Sequence[Shard], call: Callable[[], Answer] | None = None
    ) -> Gathered[C]:
        """Have every block done once, whatever dies.

        Parameters
        ----------
        cut : sequence of (worker, blocks)
            The shards.
        call : callable, optional
            Has the workers do them by a call; tasks do what it leaves.

        Returns
        -------
        Gathered

        Raises
        ------
        FitError
            If a block is poison, was tried too often, failed by an error of its own, or if no
            worker came for too long.
        """
        try:
            self._attempt(cut, call)
        except DaskDMLError:
            raise
        except (Exception, CancelledError) as error:
            raise self.explain(error) from error
        finally:
            # After Ctrl-C as well: nothing goes on on a cluster that is to be used again.
            self.cancel()
        return self._gathered

    def _attempt(self, cut: Sequence[Shard], call: Callable[[], Answer] | None) -> None:
        require_connection(self._run.client)
        first = self._ledger.open(cut, time.monotonic())
        if call is not None:
            first = self._by_call(call, first)
            if not first:
                return
        if self._work.nbytes > _INLINE_BYTES:
            self._request = self._run.client.submit(
                itself, self._work, key=self._run.key("request", self.number), pure=False
            )
        self._do(first)
        self._all_at_once()
        while not self._ledger.is_complete:
            require_connection(self._run.client)
            self._fetch()
            self._listen()
            if self._ledger.is_complete:
                break
            self._look()
            computed = [key for key, f in self._futures.items() if f.status == "finished"]
            suspects = self._run.monitor.suspects
            now_s = time.monotonic()
            self._do(self._ledger.tick(now_s, self._threads, suspects, self._where, computed))

    def cancel(self) -> None:
        """Take back what is under way."""
        self._end_all_fetches()
        client = self._run.client
        # By key: what Ctrl-C met while it was being submitted has no future here.
        keys = self._futures.keys() | self._ledger.live.keys()
        if keys and client.status == "running":
            client.cancel(
                [Future(self._run.key(self.kind, self.number, *key), client) for key in keys]
            )
        self._futures = {}

    def blocks_of(self, keys: Collection[Hashable]) -> set[int]:
        """Blocks that tasks of this round were to do."""
        return {b for key in self._attempts_of(keys) for b in self._attempts[key].blocks}

    # -- what comes -------------------------------------------------------------------------

    def _by_call(self, call: Callable[[], Answer], first: Sequence[Submit]) -> list[Submit]:
        """Take in what a call does; the attempts that it leaves to tasks."""
        self._called = {submit.attempt.key: submit.attempt for submit in first}
        self._attempts |= self._called
        answer = call()
        now_s = time.monotonic()
        workers = set()
        for worker, shard, busy_s, blas in answer.done:
            self._ledger.finished((shard, 0), now_s)
            attempt = self._called.pop((shard, 0))
            self._gathered.shares.append(Share(worker, attempt.blocks, busy_s, blas))
            workers.add(worker)
        nodes = loads(answer.nodes) if answer.nodes else []
        self._gathered.nodes += nodes
        # Each has sent one sum at least to the next one up.
        self._gathered.nbytes += len(workers) * self._work.nbytes
        self._gathered.nbytes += max(len(workers), len(nodes)) * max(
            (value.nbytes for _, value in nodes), default=0
        )
        return [submit for submit in first if submit.attempt.key in self._called]

    def _all_at_once(self) -> None:
        """In a short round, and nothing amiss, all results come by one message."""
        self._begin_fetch(tuple(self._futures))
        self._end_fetches(_TICK_S)
        if any(future.status != "finished" for future in self._futures.values()):
            # It waits for the last one; from here on they are fetched as they come.
            self._end_all_fetches()

    def _fetch(self) -> None:
        """Wait a little for results, and note those that failed."""
        suspects = self._run.monitor.suspects
        # A fetch may wait long for one that does not answer: others do not wait for it.
        coming = {key for keys, _ in self._fetches for key in keys}
        status = {key: f.status for key, f in self._futures.items() if key not in coming}
        for key in [key for key, at in status.items() if at == "error"]:
            self._fail(key)
        gone = [self._attempts[key].blocks for key, at in status.items() if at == "cancelled"]
        if gone:
            raise CancelledError(f"tasks of blocks {gone}")
        ready = tuple(
            key
            for key, at in status.items()
            if at == "finished" and not self._at((key,)) & suspects
        )
        if ready:
            self._begin_fetch(ready)
        if self._fetches:
            self._end_fetches(_TICK_S)
            return
        # What is lost, the scheduler makes again; or it says that it is cancelled.
        pending = [self._futures[key] for key, at in status.items() if at in ("pending", "lost")]
        if not pending:
            # What is left is where nobody answers, or rests.
            self._never.wait(_TICK_S)
            return
        settle(self._run.client, pending, _TICK_S, "FIRST_COMPLETED")

    def _begin_fetch(self, keys: tuple[AttemptKey, ...]) -> None:
        client = self._run.client
        futures = [self._futures[key] for key in keys]
        # The sample of a survey is large, and twice on its way where the scheduler passes it on.
        is_direct = self.kind == "survey" and self._run.roster.is_on_this_machine

        async def gather() -> Any:
            # Gathered once all are done: cut short while it waits, it would leave tasks behind.
            await wait(futures)
            return await client.gather(futures, direct=is_direct or None, asynchronous=True)

        self._fetches.append((keys, in_loop(client, gather())))

    def _end_fetches(self, timeout_s: float) -> None:
        """Take in what has come, after a while at most."""
        fetching = [fetch for _, fetch in self._fetches]
        done, _ = futures_wait(fetching, timeout=timeout_s, return_when="FIRST_COMPLETED")
        arrived = [(keys, fetch) for keys, fetch in self._fetches if fetch in done]
        self._fetches = [(keys, fetch) for keys, fetch in self._fetches if fetch not in done]
        for keys, fetch in arrived:
            try:
                results = fetch.result()
            except CancelledError:
                continue  # lost before they came: made again, or cancelled for good
            except Exception:
                if not self._is_troubled(keys):
                    raise
                continue  # which one failed, and of what, is looked at one by one
            self._take_in(keys, results)

    def _take_in(self, keys: Sequence[AttemptKey], results: Sequence[ShardResult[C]]) -> None:
        now_s = time.monotonic()
        for key, result in zip(keys, results, strict=True):
            counts, actions = self._ledger.finished(key, now_s)
            self._let_go(key)
            if counts:
                blocks = self._attempts[key].blocks
                self._gathered.nodes += result.nodes
                self._gathered.shares.append(
                    Share(result.worker, blocks, result.busy_s, result.blas)
                )
                self._gathered.nbytes += result.nbytes
            self._do(actions)

    def _end_all_fetches(self) -> None:
        for _, fetch in self._fetches:
            fetch.cancel()
        self._fetches = []

    def _let_go(self, key: AttemptKey) -> None:
        # Not left to the collector: a traceback, or a fetch that failed, would keep it.
        if (future := self._futures.pop(key, None)) is not None:
            future.release()

    def _is_troubled(self, keys: Collection[AttemptKey]) -> bool:
        futures = [self._futures[key] for key in keys if key in self._futures]
        return len(futures) < len(keys) or any(f.status != "finished" for f in futures)

    def _fail(self, key: AttemptKey) -> None:
        """Judge a task that failed: of a death, or of an error of its own."""
        error = self._futures[key].exception()
        if not isinstance(error, HolderLostError | KilledWorker | MemoryError):
            raise error
        self._let_go(key)
        self._cause = error
        if isinstance(error, HolderLostError):
            renewed: Any = self._run.holder.renewed()
            self._request = self._work = renewed
        elif isinstance(error, KilledWorker):
            # The task that was killed is this one, or makes a block that it needs.
            self._listen()
            self._ledger.died(str(error.last_worker.address), [key])
        self._do(self._ledger.failed(key, time.monotonic()))

    def _listen(self) -> None:
        """Hear what the monitor has seen of workers that died."""
        for notice in self._run.log.hear():
            if notice.blamed:
                running = notice.processing[: notice.threads]
                here = [k for k, a in self._called.items() if a.worker == notice.event.worker]
                self._ledger.died(notice.event.worker, [*self._attempts_of(running), *here])

    def _look(self) -> None:
        """Look at the cluster, now and then: who is there, and who does what."""
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        self._threads = self._run.roster.look()
        if not self._threads:
            self._await_workers(now_s)
            return
        self._alone_since_s = None
        for worker, keys in self._run.client.processing().items():
            for key in self._attempts_of(keys):
                self._where[key] = worker
        if suspects := self._run.monitor.suspects:
            for key, attempt in self._ledger.live.items():
                # An attempt that waits for blocks of a suspect is no better off than one there.
                if at := self._run.blocks.kept_by(attempt.blocks, suspects):
                    self._where[key] = at

    def _await_workers(self, now_s: float) -> None:
        limit_s = self._run.policy.wait_for_workers_s
        if self._alone_since_s is None:
            self._alone_since_s = now_s
            self._run.log.note(
                "workers-awaited",
                "",
                f"the cluster at {address_of(self._run.client)} has no workers any more",
                f"waiting for new ones, at most {limit_s:g} s",
                0,
            )
        elif now_s - self._alone_since_s > limit_s:
            raise FitError(
                f"{self.name} could not be finished: the cluster at "
                f"{address_of(self._run.client)} has had no workers for {limit_s:g} s "
                "(FaultPolicy(wait_for_workers_s=...)): start some and fit again",
                self._run.run_id,
                self.number,
                self._ledger.missing,
            )

    # -- what is done -----------------------------------------------------------------------

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Submit):
                self._submit(action)
            elif isinstance(action, Cancel):
                self._take_back(action.keys)
            else:
                raise self._given_up(action) from self._cause

    def _submit(self, submit: Submit) -> None:
        attempt = submit.attempt
        run = self._run
        if submit.kind:
            suspects = run.monitor.suspects
            # A straggler is not waited for, neither for its result nor for the blocks it has.
            slow = {self._where.get(a.key, a.worker) for a in self._others_of(attempt)}
            for avoided in dict.fromkeys((suspects | slow, suspects)):
                if run.blocks.can_run(attempt.blocks, avoided):
                    break
            else:
                if submit.kind == "work-duplicated":
                    # Nobody can make these blocks but who has them: their worker is waited for.
                    self._attempts[attempt.key] = attempt
                    return
            again = run.blocks.remake(attempt.blocks, attempt.worker, avoided)
            action = f"blocks {some(attempt.blocks)} given to {attempt.worker}"
            run.log.note(submit.kind, attempt.worker, submit.reason, action, len(again))
        task = run.blocks.survey_task if self.kind == "survey" else run.blocks.round_task
        function, arguments = task(attempt.blocks)
        self._attempts[attempt.key] = attempt
        self._gathered.nbytes += self._work.nbytes
        # Whoever has the request that all share may be the one who does not answer.
        request = self._work if submit.kind else self._request
        if attempt.number and isinstance(request, HeldWork):
            request = replace(request, attempt=attempt.number)
        self._futures[attempt.key] = run.client.submit(
            function,
            len(run.block_nbytes),
            attempt.blocks,
            request,
            *arguments,
            key=run.key(self.kind, self.number, *attempt.key),
            workers=[attempt.worker],
            allow_other_workers=True,
            pure=False,
        )

    def _take_back(self, keys: Collection[AttemptKey]) -> None:
        now_s = time.monotonic()
        for key in keys:
            attempt = self._attempts[key]
            if attempt.number == 0:
                nbytes = sum(self._run.block_nbytes[block] for block in attempt.blocks)
                worker = self._where.get(key, attempt.worker)
                self.overtaken.append((worker, nbytes / (now_s - attempt.started_s)))
        futures = [self._futures.pop(key) for key in keys if key in self._futures]
        self._run.client.cancel(futures)

    def _given_up(self, action: Poison | Exhausted) -> FitError:
        run = self._run
        if isinstance(action, Poison):
            what = (
                f"block {action.block} of {len(run.block_nbytes)} is poison: "
                f"{len(action.workers)} workers died under it, one after the other "
                f"({', '.join(action.workers)}), the last while it was tried alone. Look at its "
                "rows, at the code that makes them, and at the memory that takes"
            )
            blocks: tuple[int, ...] = (action.block,)
            worker = action.workers[-1]
        else:
            blocks, worker = action.blocks, None
            what = (
                f"blocks {some(blocks)} of {len(run.block_nbytes)} were tried "
                f"{action.n_attempts} times and failed with their workers each time "
                f"(FaultPolicy(retries={run.policy.retries}))"
            )
        message = f"{self.name} could not be finished: {what}"
        run.log.note("poison-block", worker or "", message, "the fit was stopped", 0)
        return FitError(message, run.run_id, self.number, blocks, worker)

    def explain(self, error: BaseException) -> FitError:
        """Say which run, round and blocks it was."""
        blocks = tuple(
            sorted(
                {
                    block
                    for key, future in self._futures.items()
                    if future.status in ("error", "cancelled")
                    for block in self._attempts[key].blocks
                }
            )
        )
        which = f"blocks {some(blocks)} of {len(self._run.block_nbytes)} failed with "
        return FitError(
            f"{self.name} could not be finished: {which if blocks else ''}"
            f"{type(error).__name__}: {error}{_LOST if isinstance(error, CancelledError) else ''}",
            self._run.run_id,
            self.number,
            blocks,
        )

    # -- who and where ----------------------------------------------------------------------

    def _attempts_of(self, keys: Collection[Hashable]) -> list[AttemptKey]:
        """Attempts of this round that tasks are, or make blocks for."""
        start = self._run.key(self.kind, self.number)
        found = []
        for key in keys:
            if not isinstance(key, tuple | list):
                continue
            if tuple(key[:2]) == start:
                attempt = (int(key[2]), int(key[3]))
                if attempt in self._attempts:
                    found.append(attempt)
            elif (block := block_of(self._run.run_id, key)) is not None:
                live = self._ledger.live.items()
                found.extend(key for key, attempt in live if block in attempt.blocks)
        return found

    def _others_of(self, attempt: Attempt) -> list[Attempt]:
        """Other attempts at its blocks that are under way."""
        blocks = set(attempt.blocks)
        return [
            other
            for other in self._ledger.live.values()
            if other.key != attempt.key and blocks & set(other.blocks)
        ]

    def _at(self, keys: Collection[AttemptKey]) -> set[str]:
        return {self._where.get(key, self._attempts[key].worker) for key in keys}


def some(blocks: Sequence[int]) -> str:
    """Numbers of blocks, the first few of many."""
    shown = ", ".join(str(block) for block in blocks[:8])
    return shown + (f" and {len(blocks) - 8} more" if len(blocks) > 8 else "")
