"""The watcher's end of the heartbeats: one socket that is read from time to time."""

from __future__ import annotations

import socket
from contextlib import suppress
from itertools import repeat

import dask

from dask_dml.faults.telemetry import DATAGRAM_BYTES, DatagramError, unpack, worker_id

# As much as the system gives: between two reads, heartbeats wait here.
_BUFFER_BYTES = 4 * 1024 * 1024
# A flood of foreign datagrams must not hold up the scheduler.
_MOST_A_READ = 5_000


class Receiver:
    """Receives heartbeats of workers that are expected.

    The port is any that is free, or the one that the Dask configuration names as
    ``dml.heartbeats.port``, for sites that open one in a firewall.

    Parameters
    ----------
    key : bytes
        Secret with which heartbeats are signed.
    host : str
        Where the workers find this machine.
    """

    def __init__(self, key: bytes, host: str) -> None:
        self._key = key
        port = int(dask.config.get("dml.heartbeats.port", 0))
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[
            0
        ]
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        try:
            self._socket.bind(address)
        except OSError:
            # Not an address of this machine's own: it stands behind a translation of addresses.
            self._socket.bind(("", port))
        self.port: int = self._socket.getsockname()[1]
        self.n_received = 0
        self.n_refused = 0
        self._workers: dict[int, str] = {}
        # Number of the last heartbeat of each worker.
        self._sequences: dict[int, int] = {}
        self._asked: dict[int, int] = {}

    def expect(self, worker: str) -> None:
        """Take heartbeats of a worker from now on."""
        number = worker_id(worker)
        self._workers[number] = worker
        self._sequences[number] = -1

    def forget(self, worker: str) -> None:
        """Take no more heartbeats of a worker."""
        number = worker_id(worker)
        for known in (self._workers, self._sequences, self._asked):
            known.pop(number, None)

    def receive(self) -> list[tuple[str, bytes]]:
        """Read what has arrived: worker and packed telemetry of each heartbeat that is new."""
        # Little is done for each: on large fleets there are many.
        read, key, sequences = self._socket.recv, self._key, self._sequences
        datagrams: list[bytes] = []
        # Those that were there stay when there are no more.
        with suppress(BlockingIOError):
            datagrams.extend(map(read, repeat(DATAGRAM_BYTES + 1, _MOST_A_READ)))
        heard = []
        for datagram in datagrams:
            try:
                number, sequence, features = unpack(key, datagram)
            except DatagramError:
                self.n_refused += 1
                continue
            if sequence > sequences.get(number, sequence):
                sequences[number] = sequence
                heard.append((self._workers[number], features))
        self.n_received += len(heard)
        return heard

    def heard_since_last(self) -> set[str]:
        """Tell which workers were heard since the last call of this."""
        asked, self._asked = self._asked, dict(self._sequences)
        return {
            self._workers[number]
            for number, sequence in self._sequences.items()
            if sequence > asked.get(number, -1)
        }

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()
