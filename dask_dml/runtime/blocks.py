"""The blocks of a source on a cluster: held by the workers, or read again every pass.

Held blocks are placed once and stay. When a worker leaves, Dask makes again what it can; when a
worker is silent, nobody waits for it: its blocks are made again elsewhere, from what they come
from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol, TypeVar

from dask.delayed import Delayed
from distributed import Client, Future, futures_of, get_worker

from dask_dml.data.source import BlockLoader, DaskSource, GraphLoader, RawBlock, Source
from dask_dml.errors import ClusterError
from dask_dml.objective import Statistics, Survey
from dask_dml.objective.survey import BlockEncoder, Encoder, TargetEncoder
from dask_dml.runtime.keys import itself
from dask_dml.runtime.placement import keepable
from dask_dml.runtime.roster import address_of
from dask_dml.runtime.shard import (
    EncodedBlock,
    RoundWork,
    ShardResult,
    SurveyWork,
    encoded,
    encoded_block,
    read_ahead,
    run_shard,
)
from dask_dml.runtime.waiting import settle

# How long blocks that were lost may take to be made again before a round begins without them.
_MADE_S = 10.0

T = TypeVar("T")

Holders = Mapping[int, Sequence[str]]
# Gives every block to a worker, from who holds which.
Place = Callable[[Holders], dict[int, str]]


class Keeper(Protocol):
    """Care for data on the cluster that is not this fit's own."""

    def recipe(self, keys: Iterable[Hashable]) -> Mapping[Hashable, Mapping[Hashable, Any]]:
        """From keys to the graphs of tasks that make them, of those that can be made."""
        ...

    def keep(self, keys: Iterable[Hashable], n_replicas: int) -> None:
        """Have keys held so many times."""
        ...


class Blocks(Protocol):
    """Blocks on a cluster.

    Attributes
    ----------
    placed : dict of int to str
        Worker of each block.
    is_resident : bool
        Whether blocks stay in the workers' memory.
    """

    placed: dict[int, str]
    is_resident: bool

    def encode(self, encoder: Encoder) -> None:
        """Prepare targets and weights for the rounds."""
        ...

    def place(self, place: Place, suspects: Collection[str]) -> int:
        """Place all blocks anew; how many had to move or to be made again."""
        ...

    def remake(self, blocks: Collection[int], worker: str, suspects: Collection[str]) -> set[int]:
        """Make blocks again on a worker where only suspects have them; which those were."""
        ...

    def can_run(self, blocks: Collection[int], suspects: Collection[str]) -> bool:
        """Whether blocks are there, or can be made, without the suspects."""
        ...

    def kept_by(self, blocks: Collection[int], suspects: Collection[str]) -> str:
        """A suspect that alone has some of these blocks; empty if there is none."""
        ...

    def survey_task(self, numbers: Sequence[int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The function of a survey's task, and what it takes after the work."""
        ...

    def round_task(self, numbers: Sequence[int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The function of a round's task, and what it takes after the work."""
        ...

    def keys(self) -> Sequence[tuple[Hashable, Hashable]]:
        """Under which X and the encoded target of each block are on the cluster, if they stay."""
        ...

    def held_in(self, keys: Collection[Hashable]) -> set[int]:
        """Blocks to which these keys belong."""
        ...

    def release(self) -> None:
        """Let go of all that is held for this run; what others hold stays."""
        ...


@dataclass(slots=True)
class _Kept:
    """A block that is not read again: who was to have it, and its futures."""

    worker: str
    raw: Future[RawBlock]
    encoded: Future[EncodedBlock] | None = None


class StreamedBlocks:
    """Blocks that are read again every pass, but for those that there is room to keep.

    Parameters
    ----------
    client : distributed.Client
    source : Source
    key : callable
        Makes the key of a task of this run from a name and numbers.
    room_bytes : mapping of str to float
        What blocks that stay may take of each worker's memory.
    """

    is_resident = False

    def __init__(
        self,
        client: Client,
        source: Source,
        key: Callable[..., Hashable],
        room_bytes: Mapping[str, float],
    ) -> None:
        self._client = client
        self._key = key
        self._room_bytes = room_bytes
        self._nbytes = source.block_nbytes
        self._loaders = source.loaders()
        self._encoder: Encoder = TargetEncoder()
        self._serial = itertools.count()
        self._kept: dict[int, _Kept] = {}
        self.placed: dict[int, str] = {}

    def encode(self, encoder: Encoder) -> None:
        """Encode what is kept, and remember how the others are encoded as they are read."""
        self._encoder = encoder
        for block, kept in self._kept.items():
            one = encoder.of_block(block)
            kept.encoded = self._make(encoded_block, kept.raw, one, name="target", block=block)

    def place(self, place: Place, suspects: Collection[str]) -> int:
        """Say who reads what, and, the first time, what stays; how many cannot stay any more."""
        is_first = not self.placed
        self.placed = place({block: [kept.worker] for block, kept in self._kept.items()})
        if is_first:
            for block in sorted(keepable(self._nbytes, self.placed, self._room_bytes)):
                raw = self._make(self._loaders[block], name="load", block=block)
                self._kept[block] = _Kept(self.placed[block], raw)
            return 0
        moved = {b for b, kept in self._kept.items() if kept.worker != self.placed[b]}
        return len(self._let_go(moved))

    def _make(
        self, function: Callable[..., T], *arguments: Any, name: str, block: int
    ) -> Future[T]:
        future: Future[T] = self._client.submit(
            function,
            *arguments,
            key=self._key(name, block, next(self._serial)),
            workers=[self.placed[block]],
            allow_other_workers=True,
            pure=False,
        )
        return future

    def _let_go(self, blocks: Collection[int]) -> set[int]:
        """Have blocks read again every pass from now on."""
        return {block for block in blocks if self._kept.pop(block, None) is not None}

    def _now(self, block: int) -> Future[RawBlock] | Future[EncodedBlock] | BlockLoader:
        """How a block is had: kept, or to be read."""
        kept = self._kept.get(block)
        if kept is None:
            return self._loaders[block]
        return kept.raw if kept.encoded is None else kept.encoded

    def _kept_at(self, blocks: Collection[int], suspects: Collection[str]) -> list[int]:
        return [b for b in blocks if b in self._kept and self._kept[b].worker in suspects]

    def remake(self, blocks: Collection[int], worker: str, suspects: Collection[str]) -> set[int]:
        """Let go of what suspects keep: whoever needs a block reads it."""
        return self._let_go(self._kept_at(blocks, suspects))

    def can_run(self, blocks: Collection[int], suspects: Collection[str]) -> bool:
        """Always."""
        return True

    def kept_by(self, blocks: Collection[int], suspects: Collection[str]) -> str:
        """A suspect that keeps some of these blocks; empty if there is none."""
        kept = self._kept_at(blocks, suspects)
        return self._kept[kept[0]].worker if kept else ""

    def survey_task(self, numbers: Sequence[int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Read and survey."""
        return _survey_streamed, ([self._now(block) for block in numbers],)

    def round_task(self, numbers: Sequence[int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Read, encode and add up."""
        encoders = [self._encoder.of_block(block) for block in numbers]
        return _round_streamed, ([self._now(block) for block in numbers], encoders)

    def keys(self) -> Sequence[tuple[Hashable, Hashable]]:
        """None."""
        return ()

    def held_in(self, keys: Collection[Hashable]) -> set[int]:
        """Blocks to which these keys belong."""
        return {block for block, kept in self._kept.items() if kept.raw.key in keys}

    def release(self) -> None:
        """Let go of what is kept."""
        self._loaders = []
        self._kept = {}


@dataclass(frozen=True)
class _Held:
    """Futures of one block on the cluster."""

    X: Future[Any]
    y: Future[Any]
    sample_weight: Future[Any] | None

    @property
    def futures(self) -> tuple[Future[Any], ...]:
        return tuple(f for f in (self.X, self.y, self.sample_weight) if f is not None)


class HeldBlocks:
    """Blocks that stay in the workers' memory.

    Parameters
    ----------
    client : distributed.Client
    source : Source
    key : callable
        Makes the key of a task of this run from a name and numbers.
    keeper : Keeper
        Knows how to make again, and how to keep, what somebody else put on the cluster.
    replicas : int
        Copies of what nothing can make again.
    """

    is_resident = True

    def __init__(
        self,
        client: Client,
        source: Source,
        key: Callable[..., Hashable],
        keeper: Keeper,
        replicas: int,
    ) -> None:
        self._client = client
        self._source = source
        self._key = key
        self._keeper = keeper
        self._replicas = replicas
        self._serial = itertools.count()
        self._held: list[_Held] = []
        self._targets: list[Future[Any]] = []
        self._encoder: Encoder = TargetEncoder()
        self._own: dict[Hashable, Future[Any]] = {}
        self._others: dict[Hashable, Future[Any]] = {}
        self._loaders: dict[int, BlockLoader] = {}
        self.placed: dict[int, str] = {}

    # -- having them ------------------------------------------------------------------------

    def place(self, place: Place, suspects: Collection[str]) -> int:
        """Have every block on its worker: made there, copied, or found where it is."""
        if self._held:
            return self._place_anew(place, suspects)
        if isinstance(self._source, DaskSource):
            self._find(self._source, place)
        else:
            self.placed = place({})
            self._held = [
                self._send(block, loader()) for block, loader in enumerate(self._source.loaders())
            ]
        return 0

    def _find(self, source: DaskSource, place: Place) -> None:
        parts = source.parts()
        futures = {future.key: future for future in futures_of(source.arrays)}
        self._check_here(futures.values())
        self._others = dict(futures)
        found = {
            block: futures[part[0].key]
            for block, part in enumerate(parts)
            if part[0].key in futures
        }
        graph = dict(parts[0][0].__dask_graph__())
        origins = {
            block: origin
            for block, part in enumerate(parts)
            if (origin := _made_from(graph, part[0].key, futures)) is not None
        }
        self.placed = place(self._holders(origins))
        missing: dict[str, list[Delayed]] = {}
        for block, worker in self.placed.items():
            absent = [part for part in parts[block] if part.key not in futures]
            missing.setdefault(worker, []).extend(absent)
        for worker, absent in missing.items():
            if absent:
                made = self._client.persist(absent, workers=[worker], allow_other_workers=True)
                self._own.update((future.key, future) for future in futures_of(made))
        futures |= self._own
        self._held = [
            _Held(*(futures[part.key] for part in block), *[None] * (3 - len(block)))
            for block in parts
        ]
        if self._replicas > 1 and self._others:
            self._hold_twice()
        self._move_to_place(self._holders(found))

    def _hold_twice(self) -> None:
        made = self._keeper.recipe(self._others)
        scattered = {key: future for key, future in self._others.items() if key not in made}
        if scattered:
            # Told first that they are to stay: Dask drops replicas that nobody asked for.
            self._keeper.keep(scattered, self._replicas)
            self._client.replicate(list(scattered.values()), n=self._replicas)

    def _check_here(self, futures: Iterable[Future[Any]]) -> None:
        here = address_of(self._client)
        others = {future.client for future in futures} - {self._client}
        elsewhere = sorted({address_of(client) for client in others} - {here})
        if elsewhere:
            raise ClusterError(
                f"the data is held by the cluster at {', '.join(elsewhere)} and the fit runs at "
                f"{here}: give Runtime(client=...) the client that the data was persisted with"
            )

    def _send(self, block: int, raw: RawBlock) -> _Held:
        """Send a block of this process as the argument of a task, which Dask can run again."""

        def send(name: str, value: Any) -> Future[Any]:
            return self._keep(itself, value, name=f"send-{name}", block=block)

        weight = raw.sample_weight
        return _Held(
            send("X", raw.X), send("y", raw.y), None if weight is None else send("weight", weight)
        )

    def _keep(
        self, function: Callable[..., Any], *arguments: Any, name: str, block: int
    ) -> Future[Any]:
        """Have something made on a block's worker that stays until it is released."""
        future: Future[Any] = self._client.submit(
            function,
            *arguments,
            key=self._key(name, block, next(self._serial)),
            workers=[self.placed[block]],
            allow_other_workers=True,
            pure=False,
        )
        self._own[future.key] = future
        return future

    def encode(self, encoder: Encoder) -> None:
        """Prepare targets and weights on the workers that hold the blocks."""
        self._encoder = encoder
        self._targets = [self._encoded(block) for block in range(len(self._held))]

    def _encoded(self, block: int) -> Future[Any]:
        held = self._held[block]
        return self._keep(
            self._encoder.of_block(block).encode,
            held.y,
            held.sample_weight,
            name="target",
            block=block,
        )

    # -- having them elsewhere --------------------------------------------------------------

    def _place_anew(self, place: Place, suspects: Collection[str]) -> int:
        lacking, holders = self._lacking(self.placed, suspects)
        self.placed = place(holders)
        made = self._make(lacking if suspects else [])
        return len(made) + self._move_to_place(
            {block: where for block, where in holders.items() if block not in made}
        )

    def remake(self, blocks: Collection[int], worker: str, suspects: Collection[str]) -> set[int]:
        """Make blocks again on a worker where only suspects have them; which those were."""
        lacking, _ = self._lacking(blocks, suspects)
        self.placed |= dict.fromkeys(lacking, worker)
        return self._make(lacking)

    def can_run(self, blocks: Collection[int], suspects: Collection[str]) -> bool:
        """Whether blocks are there, or can be made, without the suspects."""
        lacking, _ = self._lacking(blocks, suspects)
        return len(self._loaders_of(lacking)) == len(lacking)

    def kept_by(self, blocks: Collection[int], suspects: Collection[str]) -> str:
        """A suspect that alone has some of these blocks; empty if there is none."""
        lacking, holders = self._lacking(blocks, suspects)
        keepers = {
            worker for block in lacking for worker in holders[block] or (self.placed[block],)
        }
        return min(keepers, default="")

    def _lacking(
        self, blocks: Collection[int], suspects: Collection[str]
    ) -> tuple[list[int], Holders]:
        """Blocks that failed or that only suspects have, and who has which."""
        holders = self._holders({block: self._held[block].X for block in blocks}, suspects)

        def is_lacking(block: int) -> bool:
            if any(future.status == "error" for future in self._held[block].futures):
                return True
            return set(holders[block] or (self.placed[block],)) <= set(suspects)

        return [block for block in blocks if is_lacking(block)], holders

    def _make(self, blocks: Sequence[int]) -> set[int]:
        loaders = self._loaders_of(blocks)
        for block, loader in loaders.items():
            for future in self._held[block].futures:
                self._let_go(future)
            if isinstance(self._source, DaskSource):
                raw = self._keep(loader, name="load", block=block)
                X, y, weight = (
                    self._keep(itemgetter(i), raw, name=f"made-{name}", block=block)
                    for i, name in enumerate(("X", "y", "weight"))
                )
                self._let_go(raw)
                has_weight = self._held[block].sample_weight is not None
                self._held[block] = _Held(X, y, weight if has_weight else None)
            else:
                self._held[block] = self._send(block, loader())
            if self._targets:
                self._let_go(self._targets[block])
                self._targets[block] = self._encoded(block)
        return set(loaders)

    def _loaders_of(self, blocks: Sequence[int]) -> dict[int, BlockLoader]:
        """How blocks are made from what they come from, of those of which that is known."""
        unknown = [block for block in blocks if block not in self._loaders]
        if unknown and isinstance(self._source, DaskSource) and self._source.is_on_cluster:
            self._loaders |= self._loaders_by_recipe(self._source, unknown)
        elif unknown:
            self._loaders = dict(enumerate(self._source.loaders()))
        return {block: self._loaders[block] for block in blocks if block in self._loaders}

    def _loaders_by_recipe(
        self, source: DaskSource, blocks: Sequence[int]
    ) -> dict[int, BlockLoader]:
        parts = source.parts()
        graph = dict(parts[0][0].__dask_graph__())
        recipes = self._keeper.recipe(self._others)
        loaders: dict[int, BlockLoader] = {}
        for block in blocks:
            keys = tuple(part.key for part in parts[block])
            if (own := _joined(graph, keys, recipes)) is not None:
                loaders[block] = GraphLoader(own, keys)
        return loaders

    def _holders(
        self, blocks: Mapping[int, Future[Any]], suspects: Collection[str] = ()
    ) -> dict[int, Sequence[str]]:
        """Workers on which blocks are, once they have been made."""
        if not blocks:
            return {}
        futures = list(blocks.values())
        if not suspects:
            # One that was lost for good fails the next round, which says which it is; so does one
            # that nobody is left to make.
            settle(self._client, futures, _MADE_S, "ALL_COMPLETED")
        who_has = self._client.who_has(futures)
        return {block: who_has.get(future.key, ()) for block, future in blocks.items()}

    def _move_to_place(self, holders: Holders) -> int:
        """Copy blocks to the workers they were given to; the number that had to move."""
        moved = 0
        for block, where in holders.items():
            if self.placed[block] in where or not where:
                continue
            moved += 1
            held = self._held[block]
            X = self._move("X", block, held.X)
            self._held[block] = _Held(X, held.y, held.sample_weight)
            if self._targets:
                self._targets[block] = self._move("target", block, self._targets[block])
        return moved

    def _move(self, name: str, block: int, future: Future[Any]) -> Future[Any]:
        copy = self._keep(itself, future, name=f"move-{name}", block=block)
        # The scheduler keeps how it was made; the copy alone stays in memory.
        self._let_go(future)
        return copy

    def _let_go(self, future: Future[Any]) -> None:
        """Release a future if it is ours; what others hold stays."""
        # Not left to the collector: a traceback that somebody keeps would keep it.
        if (own := self._own.pop(future.key, None)) is not None:
            own.release()

    # -- using them -------------------------------------------------------------------------

    def survey_task(self, numbers: Sequence[int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Survey what is held."""
        held = [self._held[block] for block in numbers]
        X, y = [block.X for block in held], [block.y for block in held]
        return _survey_held, (X, y, [block.sample_weight for block in held])

    def round_task(self, numbers: Sequence[int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Add up over what is held."""
        X = [self._held[block].X for block in numbers]
        return _round_held, (X, [self._targets[block] for block in numbers])

    def keys(self) -> Sequence[tuple[Hashable, Hashable]]:
        """Under which X and the encoded target of each block are on the cluster."""
        pairs = zip(self._held, self._targets, strict=True)
        return [(held.X.key, target.key) for held, target in pairs]

    def held_in(self, keys: Collection[Hashable]) -> set[int]:
        """Blocks to which these keys belong."""
        keys = set(keys)
        return {
            block
            for block, held in enumerate(self._held)
            if any(future.key in keys for future in held.futures)
            or (self._targets and self._targets[block].key in keys)
        }

    def release(self) -> None:
        """Let go of all futures; what others hold stays."""
        # Not left to the collector: a traceback that somebody keeps would keep them.
        for future in self._own.values():
            future.release()
        self._own, self._targets, self._held, self._others = {}, [], [], {}


def _made_from(
    graph: Mapping[Any, Any], key: Any, futures: Mapping[Any, Future[Any]]
) -> Future[Any] | None:
    """What is already on the cluster of that from which something is made, or itself."""
    pending = [key]
    # A look at the nearest tasks; whatever is made from more than that is shuffled anyway.
    for _ in range(64):
        if not pending:
            break
        key = pending.pop()
        if key in futures:
            return futures[key]
        pending.extend(getattr(graph.get(key), "dependencies", ()))
    return None


def _joined(
    graph: Mapping[Any, Any],
    keys: Iterable[Hashable],
    recipes: Mapping[Hashable, Mapping[Hashable, Any]],
) -> dict[Hashable, Any] | None:
    """The tasks that make keys: this process's, and of what is on the cluster, the scheduler's."""
    joined: dict[Hashable, Any] = {}
    pending = list(keys)
    while pending:
        key = pending.pop()
        if key in joined:
            continue
        if key in recipes:
            joined |= recipes[key]
        elif key in graph and not type(graph[key]).__module__.startswith("distributed"):
            joined[key] = graph[key]
            pending.extend(getattr(graph[key], "dependencies", ()))
        else:
            return None
    return joined


def _survey_held(
    n_blocks: int,
    numbers: Sequence[int],
    work: SurveyWork,
    X: list[Any],
    y: list[Any],
    sample_weight: list[Any],
) -> ShardResult[Survey]:
    blocks = map(RawBlock, X, y, sample_weight)
    return run_shard(n_blocks, numbers, work, blocks, get_worker().address)


def _round_held(
    n_blocks: int, numbers: Sequence[int], work: RoundWork, X: list[Any], targets: list[Any]
) -> ShardResult[Statistics]:
    blocks = (EncodedBlock(x, *target) for x, target in zip(X, targets, strict=True))
    return run_shard(n_blocks, numbers, work, blocks, get_worker().address)


def _survey_streamed(
    n_blocks: int,
    numbers: Sequence[int],
    work: SurveyWork,
    blocks: list[RawBlock | BlockLoader],
) -> ShardResult[Survey]:
    return run_shard(n_blocks, numbers, work, read_ahead(blocks), get_worker().address)


def _round_streamed(
    n_blocks: int,
    numbers: Sequence[int],
    work: RoundWork,
    blocks: list[EncodedBlock | RawBlock | BlockLoader],
    encoders: list[BlockEncoder],
) -> ShardResult[Statistics]:
    ready = encoded(read_ahead(blocks), encoders)
    return run_shard(n_blocks, numbers, work, ready, get_worker().address)
