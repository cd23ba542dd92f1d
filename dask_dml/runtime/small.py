"""Small problems: fetched, and fitted in this process, where a cluster costs more than it gives.

A fit on a cluster takes some tenths of a second in round trips, whatever its size. Less than that
takes a small problem as a whole in one process, with its data fetched first. The blocks stay what
they are, and so do the bits.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
from distributed import Client, wait

from dask_dml.data.source import (
    BlockLoader,
    DaskSource,
    RawBlock,
    Source,
    block_rows,
    raw_block,
)
from dask_dml.runtime.config import current_client, is_in_task
from dask_dml.runtime.waiting import in_loop

logger = logging.getLogger(__name__)

# Bytes up to which a problem is fetched, unless ``dml.small-bytes`` says otherwise: a network of
# 1 Gb/s takes 0.07 s for them, and a processor about as long to fit them.
_SMALL_BYTES = 8_000_000
# How long fetching may take: a worker that does not answer is the cluster's business.
_FETCH_S = 5.0


@dataclass(frozen=True, eq=False)
class FetchedSource:
    """Blocks that were fetched into this process.

    Parameters
    ----------
    blocks : list of RawBlock
    feature_names : tuple of str
    row_chunks : tuple of int
    block_nbytes : tuple of float
    """

    blocks: list[RawBlock]
    feature_names: tuple[str, ...]
    row_chunks: tuple[int, ...]
    block_nbytes: tuple[float, ...]

    def loaders(self) -> list[BlockLoader]:
        """One loader a block, which has it already."""
        return [partial(_itself, block) for block in self.blocks]


def _itself(block: RawBlock) -> RawBlock:
    return block


def brought_here(source: Source) -> Source | None:
    """The rows of a small problem in this process, where a fit would go to the current cluster.

    Parameters
    ----------
    source : Source

    Returns
    -------
    Source or None
        None where there is no cluster, more than a few bytes, or where the rows do not come.
    """
    limit = float(dask.config.get("dml.small-bytes", _SMALL_BYTES))
    client = None if is_in_task() else current_client()
    if client is None or client.asynchronous or sum(source.block_nbytes) > limit:
        return None
    return _fetched(source, client) if isinstance(source, DaskSource) else source


def _fetched(source: DaskSource, client: Client) -> Source | None:
    chunks = source.chunks()
    fetching = in_loop(client, _fetch(client, [part for chunk in chunks for part in chunk]))
    values = fetching.result()
    if values is None:
        # What went wrong is found again, and told, by the fit on the cluster.
        logger.info("a small problem stays on the cluster: its rows did not come")
        return None
    column = iter(values)
    fetched = [raw_block([next(column) for _ in chunk]) for chunk in chunks]
    blocks = [block_rows(fetched[cut.chunk], cut.rows) for cut in source.cuts]
    return FetchedSource(blocks, source.feature_names, source.row_chunks, source.block_nbytes)


async def _fetch(client: Client, parts: list[Any]) -> list[Any] | None:
    futures = client.compute(parts)
    try:
        await wait(futures, timeout=_FETCH_S)
        if any(future.status != "finished" for future in futures):
            return None
        gathering = client.gather(futures, asynchronous=True)
        gathered: list[Any] = await asyncio.wait_for(gathering, _FETCH_S)
    except (TimeoutError, CancelledError, OSError):
        return None
    finally:
        for future in futures:
            future.release()
    return gathered
