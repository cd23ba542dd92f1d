"""Which worker holds which block: decided by bytes and speed, from plain data."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

# A worker may have this much more than its share before blocks are moved away from it.
TOLERANCE = 1.05
# A shard takes about as long as this, and a thread has no more shards than that.
SHARD_S = 0.5
MOST_SHARDS = 4


def place(
    block_nbytes: Sequence[float],
    capacity: Mapping[str, float],
    holders: Mapping[int, Collection[str]],
    worth: float = math.inf,
) -> dict[int, str]:
    """Give every block to a worker, evenly, moving as few as that takes and no more than pays.

    Parameters
    ----------
    block_nbytes : sequence of float
        Bytes of each block.
    capacity : mapping of str to float
        Speed of each worker, in any unit; shares of the bytes are proportional to it.
    holders : mapping of int to collection of str
        Workers on which a block already is; others are placed anew.
    worth : float
        Bytes that may be moved to or from one worker for each byte over its speed by which the
        busiest worker has less to do a round: rounds to come, times the bytes that are sent while
        a worker of speed 1 does one. Positive; infinite where moving costs nothing.

    Returns
    -------
    dict of int to str
        Worker of each block. The busiest worker is within a twentieth of its share, or cannot be
        made less busy by giving away one block, or further moves would not pay.

    Raises
    ------
    ValueError
        If there is no worker, or a speed is not positive.
    """
    if not capacity or min(capacity.values()) <= 0.0:
        raise ValueError(f"place(capacity=...) needs workers of positive speed, got {capacity}")
    placed: dict[int, str] = {}
    load = dict.fromkeys(capacity, 0.0)

    def busy(worker: str, more: float = 0.0) -> float:
        return (load[worker] + more) / capacity[worker]

    # Those with few holders first, so that copies go where they are needed.
    held = {b for b in range(len(block_nbytes)) if set(holders.get(b, ())) & set(capacity)}
    for block in sorted(held, key=lambda b: (len(holders[b]), b)):
        candidates = [w for w in capacity if w in holders[block]]
        worker = min(candidates, key=lambda w: busy(w, block_nbytes[block]))
        placed[block] = worker
        load[worker] += block_nbytes[block]

    _fill(block_nbytes, capacity, placed, load)
    fair = sum(block_nbytes) / sum(capacity.values())
    start = max(map(busy, capacity))
    sent = dict.fromkeys(capacity, 0.0)
    moves: list[tuple[int, str]] = []
    n_paying, most = 0, 0.0
    trial = dict(placed)
    # One move alone may save nothing, where two workers are equally busy: as many of the moves are
    # made as together save most.
    while busy(busiest := max(capacity, key=busy)) > TOLERANCE * fair:
        move = _best_move(block_nbytes, capacity, trial, load, busiest)
        if move is None:
            break
        moves.append(move)
        block, worker = move
        load[busiest] -= block_nbytes[block]
        load[worker] += block_nbytes[block]
        trial[block] = worker
        if block in held and worker not in holders[block]:
            sent[busiest] += block_nbytes[block]
            sent[worker] += block_nbytes[block]
        saved = start - max(map(busy, capacity)) - max(sent.values()) / worth
        if saved >= most:
            n_paying, most = len(moves), saved
    return placed | dict(moves[:n_paying])


def keepable(
    block_nbytes: Sequence[float],
    placed: Mapping[int, str],
    room_bytes: Mapping[str, float],
    joined: Collection[int] = (),
) -> set[int]:
    """Choose blocks that stay with their workers where not all can.

    Parameters
    ----------
    block_nbytes : sequence of float
        Bytes of each block.
    placed : mapping of int to str
        Worker of each block.
    room_bytes : mapping of str to float
        What the blocks of a worker may take of its memory; nothing where it is missing.
    joined : collection of int
        Blocks that are read with the one before them, and stay with it.

    Returns
    -------
    set of int
        As many as there is room for, spread evenly over the blocks of each worker: while one of
        them is in use, another one can be read.
    """
    chosen = set()
    for worker, room in room_bytes.items():
        own = runs((block for block, at in placed.items() if at == worker), joined)
        nbytes = [sum(block_nbytes[block] for block in run) for run in own]
        share = min(room / max(sum(nbytes), 1.0), 1.0)
        passed = kept = 0.0
        for run, run_nbytes in zip(own, nbytes, strict=True):
            passed += run_nbytes
            if kept + run_nbytes <= share * passed:
                kept += run_nbytes
                chosen.update(run)
    return chosen


def runs(blocks: Iterable[int], joined: Collection[int]) -> list[list[int]]:
    """Put blocks in order, together where they are read together.

    Parameters
    ----------
    blocks : iterable of int
    joined : collection of int
        Blocks that are read with the one before them.
    """
    found: list[list[int]] = []
    for block in sorted(blocks):
        if block in joined and found and found[-1][-1] == block - 1:
            found[-1].append(block)
        else:
            found.append([block])
    return found


def _fill(
    block_nbytes: Sequence[float],
    capacity: Mapping[str, float],
    placed: dict[int, str],
    load: dict[str, float],
) -> None:
    """Place the rest in runs of neighbours, whose sums add up on their worker."""
    rest = [b for b in range(len(block_nbytes)) if b not in placed]
    total = sum(block_nbytes)
    speed = sum(capacity.values())
    room = {w: max(total * capacity[w] / speed - load[w], 0.0) for w in capacity}
    scale = sum(block_nbytes[b] for b in rest) / max(sum(room.values()), 1e-300)
    workers = iter(capacity)
    worker = next(workers)
    left = room[worker] * scale
    for block in rest:
        # A block goes where its middle lies.
        while left < block_nbytes[block] / 2:
            following = next(workers, None)
            if following is None:
                break
            worker = following
            left += room[worker] * scale
        placed[block] = worker
        load[worker] += block_nbytes[block]
        left -= block_nbytes[block]


def _best_move(
    block_nbytes: Sequence[float],
    capacity: Mapping[str, float],
    placed: Mapping[int, str],
    load: Mapping[str, float],
    busiest: str,
) -> tuple[int, str] | None:
    """The move off the busiest worker that leaves the busier of the two least busy."""
    best = None
    best_busy = load[busiest] / capacity[busiest] * (1.0 - 1e-9)
    for block in (b for b, w in placed.items() if w == busiest):
        here = (load[busiest] - block_nbytes[block]) / capacity[busiest]
        for worker in capacity:
            if worker == busiest:
                continue
            there = (load[worker] + block_nbytes[block]) / capacity[worker]
            if max(here, there) < best_busy:
                best, best_busy = (block, worker), max(here, there)
    return best


def shards_a_thread(thread_s: float) -> int:
    """How many shards a worker's thread gets, from the time that its blocks are expected to take.

    Parameters
    ----------
    thread_s : float
        Expected seconds of one thread in the round; 0 while nothing is known.

    Returns
    -------
    int
        1 to 4. A task costs some milliseconds to send and to collect, so that short rounds are not
        cut; in long ones, what has to be done again after the loss of a worker is small.
    """
    return min(max(round(thread_s / SHARD_S), 1), MOST_SHARDS)


def shards(
    placed: Mapping[int, str],
    block_nbytes: Sequence[float],
    per_worker: Mapping[str, int],
    joined: Collection[int] = (),
) -> list[tuple[str, tuple[int, ...]]]:
    """Cut each worker's blocks into shards, the units of scheduling.

    Parameters
    ----------
    placed : mapping of int to str
        Worker of each block.
    block_nbytes : sequence of float
    per_worker : mapping of str to int
        Most shards of each worker.
    joined : collection of int
        Blocks that are read with the one before them, and are in its shard.

    Returns
    -------
    list of (worker, blocks)
        Each with neighbouring blocks of one worker, in order, and about as many bytes as the
        worker's others.
    """
    of_worker: dict[str, list[int]] = {}
    for block in sorted(placed):
        of_worker.setdefault(placed[block], []).append(block)
    cut = []
    for worker, blocks in of_worker.items():
        target = sum(block_nbytes[b] for b in blocks) / per_worker[worker]
        shard: list[int] = []
        done = 0.0
        n_cut = 0
        for run in runs(blocks, joined):
            nbytes = sum(block_nbytes[block] for block in run)
            if shard and done + nbytes / 2 > target * (n_cut + 1):
                cut.append((worker, tuple(shard)))
                shard = []
                n_cut += 1
            shard.extend(run)
            done += nbytes
        cut.append((worker, tuple(shard)))
    return cut
