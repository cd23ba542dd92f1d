"""The ledger of one round: what was given to whom, what came, and what to do about the rest.

A round is cut into shards, groups of blocks. Each shard is attempted by one worker; the ledger says
when it is to be attempted once more:

- its worker is suspect: another does it as well;
- it is a straggler: three quarters of the round are in, and it takes 1.5 times the median;
- it failed because its worker died: another worker does it again, as often as the budget allows.

The first result of a shard counts, later ones are dropped by key. A shard under which two workers
have died is taken apart, and each of its blocks is tried alone, after a pause in which a cluster
that is losing many workers at once comes to rest. A block that is done is innocent; one that has
killed `FaultPolicy.poison_deaths` workers, the last one alone, is poison.

References
----------
Dean & Ghemawat 2004 (backup tasks); the thresholds are those of Spark's speculation.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dask_dml.faults.policy import FaultPolicy

# Rounds shorter than this have no stragglers worth a second task.
STRAGGLER_S = 0.5
# How long a block rests that is to be tried alone.
REST_S = 2.0
# Deaths under a shard from which on it is taken apart.
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
    rests_until_s: float = 0.0
    is_alone: bool = False
    done_s: float | None = None


class Ledger:
    """One round's attempts.

    Parameters
    ----------
    policy : FaultPolicy
    block_nbytes : sequence of float
        What each block weighs.
    """

    def __init__(self, policy: FaultPolicy, block_nbytes: Sequence[float]) -> None:
        self._policy = policy
        self._nbytes = block_nbytes
        self._shards: list[_Shard] = []
        self._done: set[int] = set()
        self._deaths: dict[int, list[str]] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every block is in."""
        return all(block in self._done for shard in self._shards for block in shard.blocks)

    @property
    def missing(self) -> Blocks:
        """Blocks that are not in."""
        blocks = {block for shard in self._shards for block in shard.blocks}
        return tuple(sorted(blocks - self._done))

    @property
    def live(self) -> dict[AttemptKey, Attempt]:
        """Attempts that are under way."""
        return {a.key: a for shard in self._shards for a in shard.live.values()}

    def open(self, cut: Iterable[tuple[str, Blocks]], now_s: float) -> list[Submit]:
        """Begin the round.

        Parameters
        ----------
        cut : iterable of (worker, blocks)
            The shards.
        now_s : float
        """
        submits = []
        for worker, blocks in cut:
            self._shards.append(_Shard(blocks))
            attempt = self._attempt(len(self._shards) - 1, worker, now_s)
            submits.append(Submit(attempt, "", ""))
        return submits

    def finished(self, key: AttemptKey, now_s: float) -> tuple[bool, list[Action]]:
        """Note a result: whether it counts, and which other attempts it makes useless."""
        shard = self._shards[key[0]]
        attempt = shard.live.pop(key[1], None)
        if attempt is None or not self._done.isdisjoint(shard.blocks):
            return False, []
        shard.done_s = now_s - attempt.started_s
        self._done.update(shard.blocks)
        for block in shard.blocks:
            self._deaths.pop(block, None)
        useless = tuple(
            other.key
            for other_shard in self._shards
            if not self._done.isdisjoint(other_shard.blocks)
            for other in other_shard.live.values()
        )
        for number, attempt_number in useless:
            del self._shards[number].live[attempt_number]
        return True, [Cancel(useless)] if useless else []

    def died(self, worker: str, keys: Collection[AttemptKey]) -> None:
        """Note that a worker died without another known cause while it had these attempts."""
        for number, attempt_number in keys:
            if number < len(self._shards) and attempt_number in self._shards[number].live:
                for block in self._shards[number].blocks:
                    under = self._deaths.setdefault(block, [])
                    if worker not in under:
                        under.append(worker)

    def failed(self, key: AttemptKey, now_s: float) -> list[Action]:
        """Note that an attempt failed because of workers that died, not by an error of its own."""
        shard = self._shards[key[0]]
        if shard.live.pop(key[1], None) is None or not self._done.isdisjoint(shard.blocks):
            return []
        shard.n_failed += 1
        deaths = max(len(self._deaths.get(block, ())) for block in shard.blocks)
        if shard.n_failed > self._policy.retries:
            return [Exhausted(shard.blocks, shard.n_attempts)]
        if shard.is_alone or len(shard.blocks) == 1:
            under = tuple(self._deaths.get(shard.blocks[0], ()))
            if len(under) >= self._policy.poison_deaths:
                return [Poison(shard.blocks[0], under)]
        if deaths >= DEATHS_TO_SPLIT:
            self._try_alone(shard, now_s + REST_S)
        return []

    def tick(
        self,
        now_s: float,
        threads: Mapping[str, int],
        suspects: Collection[str],
        where: Mapping[AttemptKey, str],
    ) -> list[Action]:
        """Say what is to be attempted once more.

        Parameters
        ----------
        now_s : float
        threads : mapping of str to int
            Threads of each worker of the cluster that may be given work; suspects may be among
            them.
        suspects : collection of str
            Workers that are silent or about to be lost.
        where : mapping of (shard, number) to str
            Workers on which attempts are, where they are known to be elsewhere than planned.
        """
        able = {worker: n for worker, n in threads.items() if worker not in suspects}
        if not able:
            return []
        load = self._load(able, where)
        actions: list[Action] = []
        for number, shard in enumerate(self._shards):
            if not self._done.isdisjoint(shard.blocks) or not shard.blocks:
                continue
            at = {where.get(a.key, a.worker) for a in shard.live.values()}
            others = {w: busy for w, busy in load.items() if w not in at}
            if not shard.live:
                if now_s < shard.rests_until_s or self._is_taken(shard, where):
                    continue
                worker = min(load, key=lambda w: load[w])
                tried = f"attempt {shard.n_attempts + 1}: its worker died"
                actions.append(self._submit(number, worker, now_s, "work-resubmitted", tried))
            elif others and at <= set(suspects):
                worker = min(others, key=lambda w: others[w])
                why = f"{_some(at)} is suspect"
                actions.append(self._submit(number, worker, now_s, "work-duplicated", why))
            elif others and len(shard.live) == 1 and (why := self._straggles(shard, now_s)):
                worker = min(others, key=lambda w: others[w])
                actions.append(self._submit(number, worker, now_s, "work-duplicated", why))
            else:
                continue
            load[worker] += self._weight(shard.blocks) / able[worker]
        return actions

    # -- decisions --------------------------------------------------------------------------

    def _attempt(self, number: int, worker: str, now_s: float) -> Attempt:
        shard = self._shards[number]
        attempt = Attempt(number, shard.n_attempts, shard.blocks, worker, now_s)
        shard.n_attempts += 1
        shard.live[attempt.number] = attempt
        return attempt

    def _submit(self, number: int, worker: str, now_s: float, kind: str, reason: str) -> Submit:
        return Submit(self._attempt(number, worker, now_s), kind, reason)

    def _try_alone(self, shard: _Shard, not_before_s: float) -> None:
        if len(shard.blocks) == 1:
            shard.is_alone = True
            shard.rests_until_s = not_before_s
            return
        for block in shard.blocks:
            # Numbered from 1: Dask tries first attempts once more by itself, and this one must not.
            alone = _Shard((block,), n_attempts=1, is_alone=True, rests_until_s=not_before_s)
            self._shards.append(alone)
        shard.blocks = ()

    def _is_taken(self, shard: _Shard, where: Mapping[AttemptKey, str]) -> bool:
        """Whether a block that is to be alone would not be: one at a time is tried so."""
        if not shard.is_alone or len(self._deaths.get(shard.blocks[0], ())) < DEATHS_TO_SPLIT:
            return False
        return any(other.is_alone and other.live for other in self._shards)

    def _straggles(self, shard: _Shard, now_s: float) -> str:
        """Why a shard is a straggler; empty if it is none."""
        times = [s.done_s / self._weight(s.blocks) for s in self._shards if s.done_s is not None]
        if not times:
            return ""
        everything = self._weight(range(len(self._nbytes)))
        in_share = self._weight(self._done) / everything
        last = next(iter(shard.live.values()))
        rest = {a.worker for s in self._shards for a in s.live.values()}
        if in_share < self._policy.speculation_quorum and rest != {last.worker}:
            return ""
        usual_s = statistics.median(times) * self._weight(shard.blocks)
        elapsed_s = now_s - last.started_s
        limit_s = max(self._policy.speculation_factor * usual_s, usual_s + STRAGGLER_S)
        if elapsed_s <= limit_s:
            return ""
        return f"{elapsed_s:.2f} s where {usual_s:.2f} s are usual"

    def _load(
        self, threads: Mapping[str, int], where: Mapping[AttemptKey, str]
    ) -> dict[str, float]:
        load = dict.fromkeys(sorted(threads), 0.0)
        for key, attempt in self.live.items():
            worker = where.get(key, attempt.worker)
            if worker in load:
                load[worker] += self._weight(attempt.blocks) / threads[worker]
        return load

    def _weight(self, blocks: Iterable[int]) -> float:
        return sum(max(self._nbytes[block], 1.0) for block in blocks)


def _some(workers: Collection[str]) -> str:
    return ", ".join(sorted(workers)) or "its worker"
