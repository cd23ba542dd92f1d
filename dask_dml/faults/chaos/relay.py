"""A process through which machines talk, and which can drop what goes in one direction.

It runs on its own (`python relay.py SOCKET`), so that it is as quick when its user is busy, and
imports the standard library alone, so that it starts at once. What it is to do it is told on a Unix
socket, a line of JSON a request and a line of JSON an answer:

- ``{"op": "open", "protocol": "tcp" | "udp", "machine": 3, "toward": "in" | "out", "host": ...,
  "port": ...}`` opens a port on this host that leads there and answers ``{"port": ...}``; "in" is
  toward the machine, "out" away from it.
- ``{"op": "cut", "machine": 3, "directions": ["in", "out"]}`` drops what goes that way, and only
  these; an empty list heals all. Answers ``{}``.

Connections stay open while a direction is cut, as they do when a cable is pulled: what was sent
comes when the direction is healed again, also that a connection was closed. Datagrams are lost.
A connection that is made while either direction is cut is not answered before both are healed.
It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any, cast

_OTHER = {"in": "out", "out": "in"}


class Machine:
    """Which directions of a machine are cut, and who wants to know when that changes."""

    def __init__(self) -> None:
        self._cut: frozenset[str] = frozenset()
        self._listeners: set[Callable[[], None]] = set()

    def is_open(self, *directions: str) -> bool:
        return not self._cut & set(directions)

    def cut(self, directions: frozenset[str]) -> None:
        self._cut = directions
        for listener in tuple(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.add(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        self._listeners.discard(listener)


class End(asyncio.Protocol):
    """One end of a connection: passes on what it gets, as long as its direction is open."""

    def __init__(self, machine: Machine, direction: str) -> None:
        self.machine = machine
        self.direction = direction
        self.transport: asyncio.Transport | None = None
        self.peer: End | None = None
        self._peer_is_full = False
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.machine.listen(self.update)
        # Not at once: before Python 3.11.3 or so reading only begins after this, paused or not.
        asyncio.get_running_loop().call_soon(self.update)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self.update()

    def pause_writing(self) -> None:
        self._tell_peer(True)

    def resume_writing(self) -> None:
        self._tell_peer(False)

    def _tell_peer(self, is_full: bool) -> None:
        if self.peer is not None:
            self.peer._peer_is_full = is_full
            self.peer.update()

    def update(self) -> None:
        """Read, or do not, as things stand now; tell the other side of the end."""
        transport = self.transport
        if transport is None:
            return
        is_open = self.machine.is_open(self.direction)
        if self._is_lost:
            if is_open:
                self.machine.forget(self.update)
                if self.peer is not None and self.peer.transport is not None:
                    self.peer.transport.close()
        elif not transport.is_closing():
            if is_open and self.peer is not None and not self._peer_is_full:
                transport.resume_reading()
            else:
                transport.pause_reading()


class Entrance(End):
    """The end that somebody connects to; the other one is made when nothing is cut."""

    def __init__(self, machine: Machine, toward: str, host: str, port: int) -> None:
        super().__init__(machine, toward)
        self._target = host, port
        self._connecting: asyncio.Task[None] | None = None

    def update(self) -> None:
        super().update()
        if self._connecting is None and self.machine.is_open("in", "out"):
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        assert self.transport is not None
        exit_ = End(self.machine, _OTHER[self.direction])
        exit_.peer = self
        try:
            await asyncio.get_running_loop().create_connection(lambda: exit_, *self._target)
        except OSError:
            self.transport.abort()
            return
        self.peer = exit_
        self.update()


class Mouth(asyncio.DatagramProtocol):
    """Where datagrams come in; each sender gets a socket of its own, so that answers find back."""

    def __init__(self, machine: Machine, toward: str, host: str, port: int) -> None:
        self._machine = machine
        self._toward = toward
        self._target = host, port
        self._transport: asyncio.DatagramTransport | None = None
        self._ways: dict[Any, asyncio.Task[asyncio.DatagramTransport]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self._machine.is_open(self._toward):
            return
        way = self._ways.get(addr)
        if way is None:
            way = self._ways[addr] = asyncio.get_running_loop().create_task(self._open(addr))
        if way.done():
            way.result().sendto(data)
        else:
            way.add_done_callback(lambda opened: opened.result().sendto(data))

    async def _open(self, sender: Any) -> asyncio.DatagramTransport:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Answers(self, sender), remote_addr=self._target
        )
        return transport

    def answer(self, data: bytes, sender: Any) -> None:
        if self._transport is not None and self._machine.is_open(_OTHER[self._toward]):
            self._transport.sendto(data, sender)


class Answers(asyncio.DatagramProtocol):
    """What comes back to one sender of datagrams."""

    def __init__(self, mouth: Mouth, sender: Any) -> None:
        self._mouth = mouth
        self._sender = sender

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._mouth.answer(data, self._sender)


class Relay:
    """Does what it is told on the control socket."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._machines: dict[int, Machine] = {}

    async def serve(self, path: str) -> asyncio.AbstractServer:
        """Listen for requests on a Unix socket."""
        return await asyncio.start_unix_server(self._answer, path)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            answer = await self._do(json.loads(line))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        machine = self._machines.setdefault(request["machine"], Machine())
        if request["op"] == "cut":
            machine.cut(frozenset(request["directions"]))
            return {}
        loop = asyncio.get_running_loop()
        target = request["toward"], request["host"], request["port"]
        if request["protocol"] == "udp":
            transport, _ = await loop.create_datagram_endpoint(
                lambda: Mouth(machine, *target), local_addr=(self._host, 0)
            )
            return {"port": transport.get_extra_info("sockname")[1]}
        server = await loop.create_server(lambda: Entrance(machine, *target), self._host, 0)
        return {"port": server.sockets[0].getsockname()[1]}


async def run(path: str) -> None:
    """Serve until standard input ends."""
    await Relay().serve(path)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    # Nobody is left whose connections should be closed in good order.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
