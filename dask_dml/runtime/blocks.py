"""The blocks of a source on a cluster: held by the workers, or read again every pass.

Held blocks are placed once and stay. When a worker leaves, Dask makes again what it can; when a
worker is silent, nobody waits for it: its blocks are made again elsewhere, from what they come
from.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Protocol, TypeVar

from dask.delayed import Delayed
from distributed import Client, Future, futures_of, get_worker

from dask_dml.data.source import (
    WHOLE,
    BlockLoader,
    Cut,
    DaskSource,
    GraphLoader,
    PartLoader,
    RawBlock,
    Rows,
    Source,
    block_rows,
    joined,
    rows_of,
)
from dask_dml.errors import ClusterError
from dask_dml.objective import Statistics, Survey
from dask_dml.objective.survey import BlockEncoder, Encoder, TargetEncoder
from dask_dml.runtime.keys import itself
from dask_dml.runtime.placement import keepable, runs
from dask_dml.runtime.resident import BlockKeys
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
    joined : frozenset of int
        Blocks that are read with the one before them.
    """

    placed: dict[int, str]
    is_resident: bool
    joined: frozenset[int]

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

    def keys(self) -> Sequence[BlockKeys]:
        """Where each block is on the cluster, if they stay."""
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
    room_bytes : callable
        From the most bytes that are read at once, what blocks that stay may take of each worker's
        memory.
    """

    is_resident = False

    def __init__(
        self,
        client: Client,
        source: Source,
        key: Callable[..., Hashable],
        room_bytes: Callable[[float], Mapping[str, float]],
    ) -> None:
        self._client = client
        self._key = key
        self._nbytes = source.block_nbytes
        self._loaders = source.loaders()
        self.joined = joined(self._loaders)
        read = runs(range(len(self._nbytes)), self.joined)
        self._room_bytes = room_bytes(
            max(sum(self._nbytes[block] for block in run) for run in read)
        )
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
        for block in sorted(self.joined):
            self.placed[block] = self.placed[block - 1]
        if is_first:
            stay = keepable(self._nbytes, self.placed, self._room_bytes, self.joined)
            for run in runs(stay, self.joined):
                self._keep(run)
            return 0
        moved = {b for b, kept in self._kept.items() if kept.worker != self.placed[b]}
        return len(self._let_go(moved))

    def _keep(self, blocks: Sequence[int]) -> None:
        """Have blocks that are read together stay."""
        first = self._loaders[blocks[0]]
        whole = first.whole if isinstance(first, PartLoader) else first
        read = self._make(whole, name="load", block=blocks[0])
        for block in blocks:
            loader, raw = self._loaders[block], read
            if isinstance(loader, PartLoader):
                raw = self._make(block_rows, read, loader.cut.rows, name="made", block=block)
            self._kept[block] = _Kept(self.placed[block], raw)

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

    def keys(self) -> Sequence[BlockKeys]:
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
    """One block on the cluster: the futures of a chunk, and which of its rows."""

    X: Future[Any]
    y: Future[Any]
    sample_weight: Future[Any] | None
    rows: Rows = WHOLE

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
    joined: frozenset[int] = frozenset()

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
        self._cuts = (
            source.cuts
            if isinstance(source, DaskSource)
            else [Cut(block, WHOLE) for block in range(len(source.row_chunks))]
        )
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
        chunks = source.chunks()
        futures = {future.key: future for future in futures_of(source.arrays)}
        self._check_here(futures.values())
        self._others = dict(futures)
        graph = dict(chunks[0][0].__dask_graph__())
        origins = [_made_from(graph, chunk[0].key, futures) for chunk in chunks]
        self.placed = place(
            self._holders(
                {
                    block: origin
                    for block, cut in enumerate(self._cuts)
                    if (origin := origins[cut.chunk]) is not None
                }
            )
        )
        home = self._homes(self.placed)
        missing: dict[str, list[Delayed]] = {}
        for chunk, worker in home.items():
            absent = [part for part in chunks[chunk] if part.key not in futures]
            missing.setdefault(worker, []).extend(absent)
        for worker, absent in missing.items():
            if absent:
                made = self._client.persist(absent, workers=[worker], allow_other_workers=True)
                self._own.update((future.key, future) for future in futures_of(made))
        here = futures | self._own
        self._held = [
            _Held(here[X.key], here[y.key], here[weight[0].key] if weight else None, cut.rows)
            for cut in self._cuts
            for X, y, *weight in (chunks[cut.chunk],)
        ]
        if self._replicas > 1 and self._others:
            self._hold_twice()
        found = {b: held.X for b, held in enumerate(self._held) if held.X.key in futures}
        made_at = {block: (home[cut.chunk],) for block, cut in enumerate(self._cuts)}
        self._move_to_place(made_at | self._holders(found))

    def _homes(self, blocks: Iterable[int]) -> dict[int, str]:
        """Where the chunk of each block is made: with most of these blocks."""
        placed: dict[int, list[str]] = {}
        for block in blocks:
            placed.setdefault(self._cuts[block].chunk, []).append(self.placed[block])
        return {chunk: statistics.mode(workers) for chunk, workers in placed.items()}

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
        self, function: Callable[..., Any], *arguments: Any, name: str, block: int, worker: str = ""
    ) -> Future[Any]:
        """Have something made on a worker, the block's if none is named, that stays."""
        future: Future[Any] = self._client.submit(
            function,
            *arguments,
            key=self._key(name, block, next(self._serial)),
            workers=[worker or self.placed[block]],
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
        held, encoder = self._held[block], self._encoder.of_block(block)
        arguments = held.y, held.sample_weight, held.rows
        return self._keep(_target, encoder, *arguments, name="target", block=block)

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
        # With all that is lacking of their chunks, which would be made once more for it.
        chunks = {self._cuts[block].chunk for block in blocks}
        related = [block for block, cut in enumerate(self._cuts) if cut.chunk in chunks]
        lacking, _ = self._lacking(related, suspects)
        self.placed |= dict.fromkeys(lacking, worker)
        return self._make(lacking)

    def can_run(self, blocks: Collection[int], suspects: Collection[str]) -> bool:
        """Whether blocks are there, or can be made, without the suspects."""
        lacking, _ = self._lacking(blocks, suspects)
        chunks = {self._cuts[block].chunk for block in lacking}
        return len(self._loaders_of(chunks)) == len(chunks)

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
        home = self._homes(blocks)
        loaders = self._loaders_of(home)
        made: dict[int, _Held] = {}
        again = {block for block in blocks if self._cuts[block].chunk in loaders}
        for block in sorted(again):
            chunk, rows = self._cuts[block]
            if chunk not in made:
                made[chunk] = self._made(loaders[chunk], block, home[chunk])
            self._held[block] = replace(made[chunk], rows=rows)
            if self.placed[block] != home[chunk]:
                self._bring(block, home[chunk])
            if self._targets:
                self._targets[block] = self._encoded(block)
        self._sweep()
        return again

    def _made(self, loader: BlockLoader, block: int, worker: str) -> _Held:
        """Have a chunk made again that begins with a block, or is it."""
        if not isinstance(self._source, DaskSource):
            return self._send(block, loader())
        raw = self._keep(loader, name="load", block=block, worker=worker)
        X, y, weight = (
            self._keep(itemgetter(i), raw, name=f"made-{name}", block=block, worker=worker)
            for i, name in enumerate(("X", "y", "weight"))
        )
        has_weight = self._held[block].sample_weight is not None
        return _Held(X, y, weight if has_weight else None)

    def _loaders_of(self, chunks: Collection[int]) -> dict[int, BlockLoader]:
        """How chunks are made from what they come from, of those of which that is known."""
        unknown = [chunk for chunk in chunks if chunk not in self._loaders]
        if unknown and isinstance(self._source, DaskSource):
            if self._source.is_on_cluster:
                self._loaders |= self._loaders_by_recipe(self._source, unknown)
            else:
                self._loaders = dict(enumerate(self._source.chunk_loaders()))
        elif unknown:
            self._loaders = dict(enumerate(self._source.loaders()))
        return {chunk: self._loaders[chunk] for chunk in chunks if chunk in self._loaders}

    def _loaders_by_recipe(
        self, source: DaskSource, numbers: Sequence[int]
    ) -> dict[int, BlockLoader]:
        chunks = source.chunks()
        graph = dict(chunks[0][0].__dask_graph__())
        recipes = self._keeper.recipe(self._others)
        loaders: dict[int, BlockLoader] = {}
        for number in numbers:
            keys = tuple(part.key for part in chunks[number])
            if (own := _joined(graph, keys, recipes)) is not None:
                loaders[number] = GraphLoader(own, keys)
        return loaders

    def _holders(
        self, blocks: Mapping[int, Future[Any]], suspects: Collection[str] = ()
    ) -> dict[int, Sequence[str]]:
        """Workers on which blocks are, once they have been made."""
        if not blocks:
            return {}
        futures = list({future.key: future for future in blocks.values()}.values())
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
            self._bring(block, where[0])
            if self._targets:
                target = self._targets[block]
                self._targets[block] = self._keep(itself, target, name="move-target", block=block)
        self._sweep()
        return moved

    def _bring(self, block: int, worker: str) -> None:
        """Copy a block to its place from a worker that has its chunk: its rows and no others."""
        held = self._held[block]
        if held.rows != WHOLE:

            def cut(name: str, chunk: Future[Any]) -> Future[Any]:
                name = f"cut-{name}"
                return self._keep(rows_of, chunk, held.rows, name=name, block=block, worker=worker)

            weight = held.sample_weight
            held = _Held(
                cut("X", held.X),
                cut("y", held.y),
                None if weight is None else cut("weight", weight),
            )
        X = self._keep(itself, held.X, name="move-X", block=block)
        self._held[block] = replace(held, X=X)

    def _sweep(self) -> None:
        """Release what is ours and no block needs any more; what others hold stays."""
        # The scheduler keeps how copies were made. Not left to the collector: a traceback that
        # somebody keeps would keep futures.
        needed = {future.key for held in self._held for future in held.futures}
        needed |= {target.key for target in self._targets}
        for key in self._own.keys() - needed:
            self._own.pop(key).release()

    # -- using them -------------------------------------------------------------------------

    def survey_task(self, numbers: Sequence[int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Survey what is held."""
        held = [self._held[block] for block in numbers]
        X, y = [block.X for block in held], [block.y for block in held]
        weights = [block.sample_weight for block in held]
        return _survey_held, (X, y, weights, [block.rows for block in held])

    def round_task(self, numbers: Sequence[int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Add up over what is held."""
        X = [self._held[block].X for block in numbers]
        rows = [self._held[block].rows for block in numbers]
        return _round_held, (X, rows, [self._targets[block] for block in numbers])

    def keys(self) -> Sequence[BlockKeys]:
        """Where each block is on the cluster."""
        pairs = zip(self._held, self._targets, strict=True)
        return [BlockKeys(held.X.key, target.key, held.rows) for held, target in pairs]

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


def _target(encoder: BlockEncoder, y: Any, sample_weight: Any, rows: Rows) -> tuple[Any, ...]:
    weight = None if sample_weight is None else rows_of(sample_weight, rows)
    return encoder.encode(rows_of(y, rows), weight)


def _survey_held(
    n_blocks: int,
    numbers: Sequence[int],
    work: SurveyWork,
    X: list[Any],
    y: list[Any],
    sample_weight: list[Any],
    rows: list[Rows],
) -> ShardResult[Survey]:
    blocks = map(block_rows, map(RawBlock, X, y, sample_weight), rows)
    return run_shard(n_blocks, numbers, work, blocks, get_worker().address)


def _round_held(
    n_blocks: int,
    numbers: Sequence[int],
    work: RoundWork,
    X: list[Any],
    rows: list[Rows],
    targets: list[Any],
) -> ShardResult[Statistics]:
    parts = map(rows_of, X, rows)
    blocks = (EncodedBlock(x, *target) for x, target in zip(parts, targets, strict=True))
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
