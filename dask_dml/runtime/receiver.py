"""The watcher's end of the heartbeats: one socket that is read from time to time."""

from __future__ import annotations

import socket
from collections.abc import Iterator

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
        self._sequences: dict[int, int] = {}
        self._heard: set[str] = set()

    def expect(self, worker: str) -> None:
        """Take heartbeats of a worker from now on."""
        self._workers[worker_id(worker)] = worker

    def forget(self, worker: str) -> None:
        """Take no more heartbeats of a worker."""
        self._workers.pop(worker_id(worker), None)
        self._sequences.pop(worker_id(worker), None)
        self._heard.discard(worker)

    def receive(self) -> Iterator[tuple[str, bytes]]:
        """Read what has arrived: worker and packed telemetry of each heartbeat that is new."""
        read, key, sequences = self._socket.recv, self._key, self._sequences
        for _ in range(_MOST_A_READ):
            try:
                datagram = read(DATAGRAM_BYTES + 1)
            except BlockingIOError:
                return
            try:
                number, sequence, features = unpack(key, datagram)
            except DatagramError:
                self.n_refused += 1
                continue
            worker = self._workers.get(number)
            if worker is None or sequence <= sequences.get(number, -1):
                continue
            sequences[number] = sequence
            self.n_received += 1
            self._heard.add(worker)
            yield worker, features

    def heard_since_last(self) -> set[str]:
        """Tell which workers were heard since the last call of this."""
        heard, self._heard = self._heard, set()
        return heard

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()
