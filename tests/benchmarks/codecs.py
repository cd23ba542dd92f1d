"""How fast blocks are read and decoded, by codec, block size, pipeline and kind of storage.

    python tests/benchmarks/codecs.py FOLDER

FOLDER holds matrices as NAME.npy, and has room for stores. Prints a list of JSON objects. Storage
is played on a local folder: what a disk or an object store would take to give the bytes is slept.
Needs NumPy, zarr and zarrs, and nothing of dask_dml; started by reading.py.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, WrapperStore

CODECS = {
    "none": [],
    "blosc-lz4": [BloscCodec(cname="lz4", shuffle="shuffle")],
    "blosc-zstd": [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")],
    "zstd": [ZstdCodec(level=1)],
}
PIPELINES = {
    "zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarrs": "zarrs.ZarrsCodecPipeline",
}
BLOCKS_MB = (4, 32, 64)
# The block size at which codecs are compared.
BLOCK_MB = 32
# Of each kind of storage: seconds until the first byte, bytes a second, and whether readers share
# them. A fast local disk, a cloud's network disk, an object store over one connection a reader.
STORAGE = {
    "memory": (0.0, np.inf, True),
    "disk, 2 GB/s": (1e-4, 2e9, True),
    "disk, 500 MB/s": (1e-3, 5e8, True),
    "object store": (0.03, 1e8, False),
}
READERS = 2
# Blocks that a reader has on their way: the one in use, and the one that is read ahead.
IN_FLIGHT = 2
TURNS = 3


class SlowStore(WrapperStore[LocalStore]):
    """A folder that takes as long as other storage would."""

    def __init__(self, store: LocalStore, first_s: float, speed: float, is_shared: bool) -> None:
        super().__init__(store)
        self._first_s, self._speed, self._is_shared = first_s, speed, is_shared
        self._free_s = 0.0

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        value = await super().get(key, *args, **options)
        if value is None or np.isinf(self._speed):
            return value
        now_s = time.monotonic()
        # Those that share the storage wait for each other's bytes.
        begin_s = max(now_s, self._free_s) if self._is_shared else now_s
        self._free_s = begin_s + len(value) / self._speed
        await asyncio.sleep(self._first_s + self._free_s - now_s)
        return value


def blocks_of(array: zarr.Array[Any]) -> list[slice]:
    height = array.chunks[0]
    return [slice(start, start + height) for start in range(0, array.shape[0], height)]


def read(array: zarr.Array[Any]) -> None:
    """Read all blocks, as two workers do: each some ahead of their use."""

    def read_some(blocks: list[slice]) -> None:
        for block in blocks:
            array[block]

    blocks = blocks_of(array)
    n_threads = READERS * IN_FLIGHT
    with ThreadPoolExecutor(n_threads) as readers:
        list(readers.map(read_some, [blocks[i::n_threads] for i in range(n_threads)]))


def measurements(folder: Path) -> Iterator[dict[str, Any]]:
    for path, (codec, compressors), block_mb in product(
        sorted(folder.glob("*.npy")), CODECS.items(), BLOCKS_MB
    ):
        X = np.load(path)
        n_blocks = max(round(X.nbytes / (block_mb * 1e6)), 1)
        store = LocalStore(folder / f"{path.stem}-{codec}-{block_mb}.zarr")
        array = zarr.create_array(
            store,
            shape=X.shape,
            chunks=(-(-len(X) // n_blocks), X.shape[1]),
            dtype=X.dtype,
            filters=None,
            compressors=[*compressors, Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        array[...] = X
        n_stored = sum(file.stat().st_size for file in store.root.rglob("*") if file.is_file())
        for (pipeline, name), (storage, kind) in product(PIPELINES.items(), STORAGE.items()):
            if storage != "memory" and (pipeline == "zarrs" or block_mb != BLOCK_MB):
                continue
            with zarr.config.set({"codec_pipeline.path": name}):
                # Its pipeline reads local folders by itself, past a wrapper.
                closed = LocalStore(store.root, read_only=True)
                slow = closed if storage == "memory" else SlowStore(closed, *kind)
                reopened = zarr.open_array(slow, mode="r")
                taken = []
                for _ in range(TURNS):
                    start_s, cpu_s = time.perf_counter(), time.process_time()
                    read(reopened)
                    taken.append((time.perf_counter() - start_s, time.process_time() - cpu_s))
            gigabytes = X.nbytes / 1e9
            yield {
                "data": path.stem,
                "codec": codec,
                "block_mb": block_mb,
                "pipeline": pipeline,
                "storage": storage,
                "ratio": X.nbytes / n_stored,
                "seconds": float(np.median([wall for wall, _ in taken])) / gigabytes,
                "cpu_s": min(cpu for _, cpu in taken) / gigabytes,
            }


if __name__ == "__main__":
    print(json.dumps(list(measurements(Path(sys.argv[1])))))
