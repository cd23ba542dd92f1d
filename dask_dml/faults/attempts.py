"""The ledger of one round: what was given to whom, what came, and what to do about the rest.

A round is cut into shards, groups of blocks. Each shard is attempted by one worker; the ledger says
when it is to be attempted once more:

- its worker is suspect: another does it as well;
- it is a straggler: three quarters of the round are in, or a worker is idle, and it takes 1.5 times
  the median, and longer by as much as its blocks take to come to it and to another worker;
- it failed because its worker died: another worker does it again, as often as the budget allows.

The first result of a block counts, later ones are dropped by key. A shard under which workers have
died (two, by default) is taken apart, and each of its blocks is tried alone on a worker that has
nothing else of the round, after a pause in which a cluster that is losing many workers at once
comes to rest. A block that is done is innocent. One that has killed `FaultPolicy.poison_deaths`
workers, one after the other, is poison if the last of them died of it alone: with no other attempt
on the worker, and no other worker dying at about that time. Where several die at a time, blocks
are tried one by one.

References
----------
Dean & Ghemawat 2004 (backup tasks); the thresholds are those of Spark's speculation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from dask_dml.faults.policy import FaultPolicy

# What takes no longer than this beyond the usual is not worth a second task.
_STRAGGLER_S = 0.5
# How long a block rests that is to be tried alone; workers that die closer together than this may
# die of the same cause.
REST_S = 2.0
# Deaths closer together than this are one: Dask gives the work of the first worker to the second,
# which is dead by then.
AT_ONCE_S = 0.25
# A failure may be heard of before the death that explains it; so long it waits for that.
SETTLE_S = 0.1
# Deaths under a shard from which on it is taken apart, or one less than make poison.
DEATHS_TO_SPLIT = 2

Blocks = tuple[int, ...]
# Shard of the round, and the how-manieth attempt of it.
AttemptKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a shard.

    Attributes
    ----------
    shard : int
    number : int
        0 for the first.
    blocks : tuple of int
    worker : str
        To whom it was given; Dask may have moved it since.
    started_s : float
    """

    shard: int
    number: int
    blocks: Blocks
    worker: str
    started_s: float

    @property
    def key(self) -> AttemptKey:
        """What its task's key ends with."""
        return self.shard, self.number


@dataclass(frozen=True, slots=True)
class Submit:
    """Give an attempt to its worker; `reason` is empty for the first one of a shard."""

    attempt: Attempt
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Take back attempts that are of no use any more."""

    keys: tuple[AttemptKey, ...]


@dataclass(frozen=True, slots=True)
class Poison:
    """Workers die under this block."""

    block: int
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exhausted:
    """These blocks have been tried as often as the budget allows."""

    blocks: Blocks
    n_attempts: int


Action = Submit | Cancel | Poison | Exhausted


@dataclass(slots=True)
class _Shard:
    blocks: Blocks
    live: dict[int, Attempt] = field(default_factory=dict)
    n_attempts: int = 0
    n_failed: int = 0
    rests_until_s: float = -math.inf
    # Attempts from this number on are of one block, on a worker that has nothing else.
    alone_from: float = math.inf
    # The worker that died with nothing but this; and whether one died with other attempts, or as
    # others did, so that one cannot say of what.
    proof: str = ""
    is_in_doubt: bool = False
    is_given_up: bool = False

    @property
    def is_alone(self) -> bool:
        return self.alone_from < math.inf


@dataclass(frozen=True, slots=True)
class _Run:
    """A finished attempt."""

    started_s: float
    ended_s: float
    weight: float


class Ledger:
    """One round's attempts.

    Parameters
    ----------
    policy : FaultPolicy
    block_nbytes : sequence of float
        What each block weighs.
    bandwidth : float
        Bytes a second in which blocks come to a worker that is to do them as well; infinite where
        it has them, or has to read them like the first one.
    """

    def __init__(
        self, policy: FaultPolicy, block_nbytes: Sequence[float], bandwidth: float = math.inf
    ) -> None:
        self._policy = policy
        self._bandwidth = bandwidth
        self._weights = [max(nbytes, 1.0) for nbytes in block_nbytes]
        self._total = sum(self._weights)
        self._shards: list[_Shard] = []
        # Those with blocks that are not in; and the shards of each block.
        self._open: dict[int, _Shard] = {}
        self._shards_of: dict[int, list[int]] = {}
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._where: Mapping[AttemptKey, str] = {}
        self._done: set[int] = set()
        self._done_weight = 0.0
        self._runs: dict[str, list[_Run]] = {}
        self._deaths: dict[int, list[str]] = {}
        self._died_s: dict[str, float] = {}
        self._now_s = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every block is in."""
        return not self._open

    @property
    def missing(self) -> Blocks:
        """Blocks that are not in."""
        return tuple(sorted(b for shard in self._open.values() for b in shard.blocks))

    @property
    def live(self) -> dict[AttemptKey, Attempt]:
        """Attempts that are under way."""
        return {a.key: a for shard in self._shards for a in shard.live.values()}

    def open(self, cut: Iterable[tuple[str, Blocks]], now_s: float) -> list[Submit]:
        """Begin the round.

        Parameters
        ----------
        cut : iterable of (worker, blocks)
            The shards; no block is in two of them.
        now_s : float
        """
        self._now_s = now_s
        submits = []
        for worker, blocks in cut:
            number = self._add(_Shard(blocks))
            submits.append(Submit(self._attempt(number, worker, now_s), "", ""))
        return submits

    def finished(self, key: AttemptKey, now_s: float) -> tuple[bool, list[Action]]:
        """Note a result: whether it counts, and which other attempts it makes useless."""
        self._now_s = now_s
        attempt = self._shards[key[0]].live.pop(key[1], None)
        if attempt is None:
            return False, []
        weight = self._weight(attempt.blocks)
        worker = self._where.get(key, attempt.worker)
        self._runs.setdefault(worker, []).append(_Run(attempt.started_s, now_s, weight))
        self._done.update(attempt.blocks)
        self._done_weight += weight
        useless: dict[AttemptKey, None] = {}
        for block in attempt.blocks:
            self._deaths.pop(block, None)
            for number in self._shards_of[block]:
                useless.update((other.key, None) for other in self._shards[number].live.values())
                self._open.pop(number, None)
        for number, attempt_number in useless:
            del self._shards[number].live[attempt_number]
        return True, [Cancel(tuple(useless))] if useless else []

    def died(self, worker: str, keys: Collection[AttemptKey]) -> None:
        """Note that a worker died without another known cause while it had these attempts.

        Parameters
        ----------
        worker : str
        keys : collection of (shard, number)
            Live, or failed by this death. None of them if it had none: it tells that workers die
            of something else.
        """
        self._died_s[worker] = self._now_s
        attempts = [self._attempts[key] for key in keys if key in self._attempts]
        attempts = [a for a in attempts if self._done.isdisjoint(a.blocks)]
        here = {a.key for a in attempts}
        here |= {k for k, a in self.live.items() if self._where.get(k, a.worker) == worker}
        for attempt in attempts:
            for block in attempt.blocks:
                under = self._deaths.setdefault(block, [])
                if worker not in under:
                    under.append(worker)
            shard = self._shards[attempt.shard]
            if attempt.number >= shard.alone_from:
                if len(here) == 1:
                    shard.proof = worker
                else:
                    shard.is_in_doubt = True

    def failed(self, key: AttemptKey, now_s: float) -> list[Action]:
        """Note that an attempt failed because of workers that died, not by an error of its own."""
        self._now_s = now_s
        shard = self._shards[key[0]]
        if shard.live.pop(key[1], None) is None or key[0] not in self._open:
            return []
        shard.n_failed += 1
        shard.rests_until_s = max(shard.rests_until_s, now_s + SETTLE_S)
        return self._judged(key[0], now_s)

    def tick(
        self,
        now_s: float,
        threads: Mapping[str, int],
        suspects: Collection[str],
        where: Mapping[AttemptKey, str],
        computed: Collection[AttemptKey] = (),
    ) -> list[Action]:
        """Say what is to be attempted once more.

        Parameters
        ----------
        now_s : float
        threads : mapping of str to int
            Threads of each worker of the cluster that may be given work; suspects may be among
            them.
        suspects : collection of str
            Workers that are silent or about to be lost. What nobody does is given to them only if
            there are no others.
        where : mapping of (shard, number) to str
            Workers on which attempts are, where they are known to be elsewhere than planned.
        computed : collection of (shard, number)
            Attempts that are done but for what they give back, which is on its way: another one
            would not be there sooner.
        """
        self._now_s = now_s
        self._where = where
        if not threads:
            return []
        suspects, computed = set(suspects), set(computed)
        sound = {worker: n for worker, n in threads.items() if worker not in suspects}
        desk = _Desk(sound or threads, self.live, where, self._weight)
        limits = _Limits(self._runs, threads, self._policy.speculation_factor)
        is_late = self._done_weight >= self._policy.speculation_quorum * self._total
        actions: list[Action] = []
        for number, shard in list(self._open.items()):
            if not shard.live:
                actions += self._again(number, now_s, desk)
                continue
            at = {where.get(a.key, a.worker) for a in shard.live.values()}
            why = ""
            if at <= suspects:
                why = f"{_some(at)} is suspect"
            elif len(shard.live) == 1 and not shard.is_alone:
                (last,) = shard.live.values()
                if last.key in computed:
                    continue
                elapsed_s = now_s - limits.begun_s(last.started_s, *at)
                weight = self._weight(shard.blocks)
                usual_s = limits.usual_s(weight)
                # They may have had to come to the first one, too.
                limit_s = limits.limit_s(usual_s, 2.0 * weight / self._bandwidth)
                if elapsed_s > limit_s and (is_late or desk.n_idle):
                    why = f"{elapsed_s:.2f} s where {usual_s:.2f} s are usual"
            if why and sound and (other := desk.least_busy(at)):
                attempt = self._attempt(number, other, now_s)
                desk.give(attempt, shard.is_alone)
                actions.append(Submit(attempt, "work-duplicated", why))
        return actions

    # -- decisions --------------------------------------------------------------------------

    def _again(self, number: int, now_s: float, desk: _Desk) -> list[Action]:
        """What is to be done about a shard that nobody attempts."""
        actions = self._judged(number, now_s)
        shard = self._shards[number]
        if number not in self._open or shard.is_given_up or now_s < shard.rests_until_s:
            return actions
        if shard.is_alone:
            if not desk.n_idle:
                return actions
            alone = [s for s in self._open.values() if s.is_alone and s.live]
            # One by one, as long as one cannot say of what workers die.
            if alone and (shard.is_in_doubt or any(s.is_in_doubt for s in alone)):
                return actions
        attempt = self._attempt(number, desk.least_busy(()), now_s)
        desk.give(attempt, shard.is_alone)
        why = f"attempt {shard.n_attempts}: its worker died"
        return [*actions, Submit(attempt, "work-resubmitted", why)]

    def _judged(self, number: int, now_s: float) -> list[Action]:
        """Whether a shard that nobody attempts is given up or taken apart."""
        shard = self._shards[number]
        if shard.live or shard.is_given_up:
            return []
        if shard.is_alone and self._died_s:
            rest_s = max(self._died_s.values()) + REST_S
            shard.rests_until_s = max(shard.rests_until_s, rest_s)
        deaths = max((self._deaths.get(b, []) for b in shard.blocks), key=len)
        if shard.proof and self._n_moments(deaths) >= self._policy.poison_deaths:
            if now_s < shard.rests_until_s:
                return []
            died_s = self._died_s[shard.proof]
            near = [w for w, at_s in self._died_s.items() if abs(at_s - died_s) < REST_S]
            if near == [shard.proof]:
                shard.is_given_up = True
                return [Poison(shard.blocks[0], tuple(deaths))]
            shard.is_in_doubt = True
        shard.proof = ""
        if shard.n_failed > self._policy.retries:
            shard.is_given_up = True
            return [Exhausted(shard.blocks, shard.n_attempts)]
        split_from = max(min(DEATHS_TO_SPLIT, self._policy.poison_deaths - 1), 1)
        if len(deaths) >= split_from and not shard.is_alone:
            self._try_alone(number, now_s + REST_S)
        return []

    def _n_moments(self, workers: Sequence[str]) -> int:
        """How many times workers died, one after the other; those that died at once count once."""
        times = sorted(self._died_s[worker] for worker in workers)
        return 1 + sum(later - at > AT_ONCE_S for at, later in pairwise(times))

    def _try_alone(self, number: int, not_before_s: float) -> None:
        shard = self._shards[number]
        if len(shard.blocks) == 1:
            shard.alone_from = shard.n_attempts
            shard.rests_until_s = not_before_s
            return
        del self._open[number]
        for block in shard.blocks:
            # Numbered from 1: Dask tries first attempts once more by itself, and this one must not.
            alone = _Shard(
                (block,),
                n_attempts=1,
                n_failed=shard.n_failed,
                rests_until_s=not_before_s,
                alone_from=1,
            )
            self._add(alone)

    def _add(self, shard: _Shard) -> int:
        number = len(self._shards)
        self._shards.append(shard)
        self._open[number] = shard
        for block in shard.blocks:
            self._shards_of.setdefault(block, []).append(number)
        return number

    def _attempt(self, number: int, worker: str, now_s: float) -> Attempt:
        shard = self._shards[number]
        attempt = Attempt(number, shard.n_attempts, shard.blocks, worker, now_s)
        shard.n_attempts += 1
        shard.live[attempt.number] = attempt
        self._attempts[attempt.key] = attempt
        return attempt

    def _weight(self, blocks: Iterable[int]) -> float:
        return sum(self._weights[block] for block in blocks)


class _Desk:
    """Who has how much to do."""

    def __init__(
        self,
        threads: Mapping[str, int],
        live: Mapping[AttemptKey, Attempt],
        where: Mapping[AttemptKey, str],
        weight: Callable[[Iterable[int]], float],
    ) -> None:
        self._threads = threads
        self._weight = weight
        self._load = dict.fromkeys(sorted(threads), 0.0)
        self._idle = set(threads)
        # Whom to leave alone with what they have.
        self._is_reserved = dict.fromkeys(threads, False)
        for key, attempt in live.items():
            self._put(where.get(key, attempt.worker), attempt, False)

    @property
    def n_idle(self) -> int:
        """How many have nothing."""
        return len(self._idle)

    def least_busy(self, but: Collection[str]) -> str:
        """Who has the least to do, except some; empty if there is nobody else."""
        others = [worker for worker in self._load if worker not in but]
        return min(others, key=lambda w: (self._is_reserved[w], self._load[w]), default="")

    def give(self, attempt: Attempt, is_alone: bool) -> None:
        """Note what a worker is given."""
        self._put(attempt.worker, attempt, is_alone)

    def _put(self, worker: str, attempt: Attempt, is_alone: bool) -> None:
        if worker in self._load:
            self._load[worker] += self._weight(attempt.blocks) / self._threads[worker]
            self._is_reserved[worker] |= is_alone
            self._idle.discard(worker)


def straggler_limit_s(usual_s: float, factor: float) -> float:
    """How long something may take before it is late.

    Parameters
    ----------
    usual_s : float
    factor : float
        `FaultPolicy.speculation_factor`.
    """
    return max(factor * usual_s, usual_s + _STRAGGLER_S)


class _Limits:
    """How long attempts usually take, once somebody wants to know."""

    def __init__(
        self, runs: Mapping[str, list[_Run]], threads: Mapping[str, int], factor: float
    ) -> None:
        self._runs = runs
        self._threads = threads
        self._factor = factor

    @cached_property
    def _unit_s(self) -> float:
        """Median time of what weighs 1; infinite while nothing is done."""
        times = []
        for worker, runs in self._runs.items():
            n_threads = self._threads.get(worker, 1)
            for number, run in enumerate(runs):
                # It waited in the queue until a thread was free.
                free_s = runs[number - n_threads].ended_s if number >= n_threads else -math.inf
                times.append((run.ended_s - max(run.started_s, free_s)) / run.weight)
        return statistics.median(times) if times else math.inf

    def usual_s(self, weight: float) -> float:
        """How long that usually takes."""
        return self._unit_s * weight

    def limit_s(self, usual_s: float, coming_s: float) -> float:
        """How long it may take, where its blocks come to another worker in so many seconds.

        Whoever waits as long as the other way would take loses at most that.
        """
        return straggler_limit_s(usual_s, self._factor) + coming_s

    def begun_s(self, started_s: float, worker: str) -> float:
        """When a worker has begun what it was given at a time, at the latest."""
        runs = self._runs.get(worker)
        return max(started_s, runs[-1].ended_s) if runs else started_s


def _some(workers: Collection[str]) -> str:
    return ", ".join(sorted(workers)) or "its worker"
