"""What a worker says of itself with each heartbeat, and the datagram that carries it.

A datagram has a fixed form: four bytes that name form and version, the worker's id, a number that
rises, the features as float32, and a keyed BLAKE2b code of eight bytes over all of it. Whoever does
not hold the key can neither make one nor change one unnoticed; it hides nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from typing import NamedTuple

import numpy as np

MAGIC = b"dml\x01"


class Telemetry(NamedTuple):
    """What a worker measures of itself.

    Attributes
    ----------
    rss_share : float
        Resident memory over the memory limit; 0 where there is no limit.
    rss_slope : float
        How fast `rss_share` grew over the last 5 s or so, per second.
    loop_lag_s : float
        How long a callback waited for the worker's event loop.
    cpu_share : float
        CPU seconds that the process spent per second; above 1 for several threads.
    steal_share : float
        Share of the machine's CPU time that its hypervisor gave to others.
    swap_share : float
        Swap in use over swap that there is.
    spilled_share : float
        Bytes that the worker spilled to disk over the memory limit.
    executing : float
        Tasks that are running.
    task_s : float
        How long the longest-running of them has taken so far.
    reconnects : float
        How often the worker had to connect to the scheduler again.
    """

    rss_share: float = 0.0
    rss_slope: float = 0.0
    loop_lag_s: float = 0.0
    cpu_share: float = 0.0
    steal_share: float = 0.0
    swap_share: float = 0.0
    spilled_share: float = 0.0
    executing: float = 0.0
    task_s: float = 0.0
    reconnects: float = 0.0


FEATURES = Telemetry._fields
# What a predictor takes of a worker: its features and the watcher's own, the jitter of heartbeats.
PREDICTOR_FEATURES = (*FEATURES, "jitter")
# A row of recorded telemetry. `jitter` is the mean difference between neighbouring heartbeat
# intervals over the nominal interval, both as the watcher sees them.
COLUMNS = ("time_s", "worker", *PREDICTOR_FEATURES)


class DatagramError(ValueError):
    """A datagram that is no heartbeat of ours: foreign, truncated or forged."""


_CODE_BYTES = 8
_BODY = struct.Struct(f"<4sQQ{len(FEATURES)}f")
_DATAGRAM = struct.Struct(f"<4sQQ{4 * len(FEATURES)}s{_CODE_BYTES}s")
_FEATURES = struct.Struct(f"<{len(FEATURES)}f")
DATAGRAM_BYTES = _DATAGRAM.size


def unpacked(features: bytes) -> Telemetry:
    """Telemetry from its packed form, to the precision of float32."""
    return Telemetry._make(_FEATURES.unpack(features))


def feature_matrix(rows: Iterable[Telemetry | bytes]) -> np.ndarray:
    """Telemetry of several workers, packed or not, as rows.

    Returns
    -------
    ndarray of shape (n, len(FEATURES)), float32
    """
    packed = b"".join(row if isinstance(row, bytes) else _FEATURES.pack(*row) for row in rows)
    return np.frombuffer(packed, dtype="<f4").reshape(-1, len(FEATURES))


@lru_cache(maxsize=16)
def _code(key: bytes) -> blake2b:
    """The code of datagrams, begun with its key; to be copied."""
    return blake2b(digest_size=_CODE_BYTES, key=key)


def worker_id(address: str) -> int:
    """Eight bytes that stand for a worker's address in a datagram, as an unsigned integer."""
    return int.from_bytes(blake2b(address.encode(), digest_size=8).digest(), "little")


def pack(key: bytes, worker: str, sequence: int, telemetry: Telemetry) -> bytes:
    """Make the datagram of a heartbeat.

    Parameters
    ----------
    key : bytes
        Secret of at most 64 bytes that the watcher shares with its workers.
    worker : str
        Address of the worker.
    sequence : int
        From 0 to 2**64 - 1, larger than that of the heartbeat before.
    telemetry : Telemetry
        What the worker measured.

    Returns
    -------
    bytes
        `DATAGRAM_BYTES` of them.
    """
    body = _BODY.pack(MAGIC, worker_id(worker), sequence, *telemetry)
    code = _code(key).copy()
    code.update(body)
    return body + code.digest()


def unpack(key: bytes, datagram: bytes) -> tuple[int, int, bytes]:
    """Read the datagram of a heartbeat; see `pack`.

    Returns
    -------
    worker : int
        `worker_id` of the worker's address.
    sequence : int
        Rises with each heartbeat of a worker. UDP may repeat and reorder: one that is not larger
        than the last tells nothing new.
    features : bytes
        The telemetry as it was packed, little-endian float32: on a large fleet it is cheaper to
        read many at once (`feature_matrix`) than each as it comes (`unpacked`).

    Raises
    ------
    DatagramError
        If it is foreign (or of another version), truncated, or was not made with this key.
    """
    # A plain tuple, and a code begun beforehand: the watcher of a large fleet reads many.
    if len(datagram) != DATAGRAM_BYTES:
        raise DatagramError(
            f"a heartbeat has {DATAGRAM_BYTES} bytes, the datagram has {len(datagram)}"
        )
    magic, worker, sequence, features, code = _DATAGRAM.unpack(datagram)
    if magic != MAGIC:
        raise DatagramError(f"a heartbeat begins with {MAGIC!r}, the datagram with {magic!r}")
    expected = _code(key).copy()
    expected.update(datagram[:-_CODE_BYTES])
    if not compare_digest(expected.digest(), code):
        raise DatagramError(f"a heartbeat of worker {worker:016x} was not made with this key")
    return worker, sequence, features
