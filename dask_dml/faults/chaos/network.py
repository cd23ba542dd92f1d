"""The networks of a chaos cluster, whose machines can be cut off: by a relay, or for real.

A `RelayNetwork` needs no privileges: all that a machine says to the scheduler and all that is said
to the machine goes through ports of a process that can drop either. What a machine that is cut off
asks of other workers still arrives. A `NamespaceNetwork` gives each machine a network namespace of
its own, joined by a router; the kernel drops the packets.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from dask_dml.errors import ClusterError
from dask_dml.faults.chaos import relay

_LOOPBACK = "127.0.0.1"
# A link-layer address that nobody has.
_NOBODY = "02:00:00:00:00:01"
_MOST_MACHINES = 60
_LINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine stands in a network.

    Attributes
    ----------
    host : str
        Its own address.
    scheduler : str
        How it reaches the scheduler.
    heartbeats : str
        Where it sends its heartbeats, as host:port; empty: where the scheduler says.
    relay : str
        Unix socket of the relay through which it is reached; empty: directly.
    command : tuple of str
        What to put before the command of its processes.
    """

    host: str
    scheduler: str
    heartbeats: str = ""
    relay: str = ""
    command: tuple[str, ...] = ()


class Network(Protocol):
    """What a chaos cluster asks of its network."""

    @property
    def scheduler_host(self) -> str:
        """Where the scheduler listens."""
        ...

    def join(self, machine: int, scheduler: str, heartbeat_port: int) -> Place:
        """Make a place for a machine."""
        ...

    def cut(self, machine: int, directions: Collection[str]) -> None:
        """Drop what goes in these directions, "in" and "out", and only these."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class PlainNetwork:
    """The network of the host itself, in which nobody can be cut off."""

    scheduler_host = _LOOPBACK

    def join(self, machine: int, scheduler: str, heartbeat_port: int) -> Place:
        return Place(_LOOPBACK, scheduler)

    def cut(self, machine: int, directions: Collection[str]) -> None:
        if directions:
            raise ClusterError(
                f"machine {machine} cannot be cut off: this cluster's network is the host's own; "
                "use network='proxy' or network='netns'"
            )

    def close(self) -> None:
        """There is nothing to leave behind."""


class RelayControl:
    """Says to a relay what it is to do.

    Parameters
    ----------
    path : str
        Its Unix socket.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_LINE_S)
        self._socket.connect(path)
        self._answers = self._socket.makefile("r", encoding="utf-8")

    def open(self, protocol: str, machine: int, toward: str, host: str, port: int) -> int:
        """Open a port that leads somewhere.

        Parameters
        ----------
        protocol : {"tcp", "udp"}
        machine : int
        toward : {"in", "out"}
            Whether it leads to the machine, or away from it.
        host : str
        port : int

        Returns
        -------
        int
            The port, on the loopback address.
        """
        return int(
            self._ask(
                op="open", protocol=protocol, machine=machine, toward=toward, host=host, port=port
            )["port"]
        )

    def cut(self, machine: int, directions: Collection[str]) -> None:
        """Drop what goes in these directions, and only these."""
        self._ask(op="cut", machine=machine, directions=sorted(directions))

    def _ask(self, **request: Any) -> dict[str, Any]:
        with self._lock:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._answers.readline()
        if not line:
            raise ClusterError("the relay of the chaos cluster has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Close the connection; the relay goes on."""
        self._answers.close()
        self._socket.close()


class RelayNetwork:
    """Machines of this host that talk through a relay, which needs no privileges."""

    scheduler_host = _LOOPBACK

    def __init__(self) -> None:
        self._directory = TemporaryDirectory(prefix="dml-relay-")
        self._path = str(Path(self._directory.name, "control"))
        # By its path: the package's imports would take it longer to start.
        self._process = subprocess.Popen(
            [sys.executable, "-I", relay.__file__, self._path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        with ExitStack() as unfinished:
            unfinished.callback(self._end)
            assert self._process.stdout is not None
            if self._process.stdout.readline() != b"ready\n":
                raise ClusterError(f"the relay at {self._path} did not start: see standard error")
            self._control = RelayControl(self._path)
            unfinished.pop_all()

    def join(self, machine: int, scheduler: str, heartbeat_port: int) -> Place:
        host, port = scheduler.removeprefix("tcp://").rsplit(":", 1)
        out = self._control.open("tcp", machine, "out", host, int(port))
        heartbeats = self._control.open("udp", machine, "out", host, heartbeat_port)
        return Place(_LOOPBACK, f"tcp://{_LOOPBACK}:{out}", f"{_LOOPBACK}:{heartbeats}", self._path)

    def cut(self, machine: int, directions: Collection[str]) -> None:
        self._control.cut(machine, directions)

    def close(self) -> None:
        self._control.close()
        self._end()

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._directory.cleanup()


def why_no_namespaces() -> str | None:
    """Why this process may not make network namespaces, or None if it may."""
    if not sys.platform.startswith("linux"):
        return f"network namespaces are Linux's, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip`: install iproute2"
    name = f"dml-try-{secrets.token_hex(2)}"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "dml-a", "type", "veth", "peer", "name", "dml-b")
            _ip("netns", "exec", name, "true")
        finally:
            _ip("netns", "del", name)
    except ClusterError as error:
        return str(error)
    return None


class NamespaceNetwork:
    """Machines in network namespaces of their own, joined by a router in another one.

    Addresses are from 198.18.0.0/15, which is reserved for tests of networks. Nothing of the
    host is changed but for one link and one route, which go with the namespaces.

    Raises
    ------
    ClusterError
        If this process may not make namespaces.
    """

    def __init__(self) -> None:
        if reason := why_no_namespaces():
            raise ClusterError(f"network='netns' cannot be had here: {reason}")
        token = secrets.token_hex(2)
        self._prefix = f"dml-{token}"
        self._router = f"{self._prefix}-router"
        self._uplink = f"dml{token}"
        self._machines: set[int] = set()
        self._subnet = self._free_subnet()
        self.scheduler_host = f"{self._subnet}.1"
        with ExitStack() as unfinished:
            unfinished.callback(self.close)
            _ip("netns", "add", self._router)
            _ip("link", "add", self._uplink, "type", "veth", "peer", "name", "uplink", "netns", self._router)  # fmt: skip # noqa: E501
            _ip("addr", "add", f"{self._subnet}.1/30", "dev", self._uplink)
            _ip("link", "set", self._uplink, "up")
            self._in_router("addr", "add", f"{self._subnet}.2/30", "dev", "uplink")
            self._in_router("link", "set", "uplink", "up")
            _ip("route", "add", f"{self._subnet}.0/24", "via", f"{self._subnet}.2")
            forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
            _ip("netns", "exec", self._router, "sh", "-c", forward)
            unfinished.pop_all()

    def join(self, machine: int, scheduler: str, heartbeat_port: int) -> Place:
        if machine >= _MOST_MACHINES:
            raise ClusterError(f"a NamespaceNetwork has room for {_MOST_MACHINES} machines")
        name, (gateway, host) = f"{self._prefix}-{machine}", self._hosts(machine)
        if machine not in self._machines:
            self._machines.add(machine)
            _ip("netns", "add", name)
            self._in_router("link", "add", f"m{machine}", "type", "veth", "peer", "name", "uplink", "netns", name)  # fmt: skip # noqa: E501
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"{host}/30", "dev", "uplink")
            _ip("-n", name, "link", "set", "uplink", "up")
            self._in_router("addr", "add", f"{gateway}/30", "dev", f"m{machine}")
            self._in_router("link", "set", f"m{machine}", "up")
            _ip("-n", name, "route", "add", "default", "via", gateway)
        return Place(host, scheduler, command=("ip", "netns", "exec", name))

    def cut(self, machine: int, directions: Collection[str]) -> None:
        name, (gateway, host) = f"{self._prefix}-{machine}", self._hosts(machine)
        link = f"m{machine}"
        if set(directions) == {"in", "out"}:
            self._in_router("link", "set", link, "down")
            return
        self._in_router("link", "set", link, "up")
        # A neighbour of whom we believe the wrong thing gets no packets of ours.
        for direction, where, whom, device in (
            ("in", self._router, host, link),
            ("out", name, gateway, "uplink"),
        ):
            if direction in directions:
                _ip("-n", where, "neigh", "replace", whom, "lladdr", _NOBODY, "dev", device, "nud", "permanent")  # fmt: skip # noqa: E501
            elif _NOBODY in _ip("-n", where, "neigh", "show", whom, "dev", device):
                _ip("-n", where, "neigh", "del", whom, "dev", device)

    def close(self) -> None:
        names = {line.split()[0] for line in _ip("netns", "list").splitlines() if line}
        for name in names:
            if name.startswith(f"{self._prefix}-"):
                _ip("netns", "del", name)
        # It goes with its peer, but not at once.
        if self._uplink in _ip("-o", "link"):
            subprocess.run(["ip", "link", "del", self._uplink], capture_output=True, check=False)

    def _hosts(self, machine: int) -> tuple[str, str]:
        """Addresses of a machine's gateway and of itself."""
        first = 4 * (machine + 1)
        return f"{self._subnet}.{first + 1}", f"{self._subnet}.{first + 2}"

    def _in_router(self, *arguments: str) -> None:
        _ip("-n", self._router, *arguments)

    def _free_subnet(self) -> str:
        taken = _ip("route")
        subnets = [f"198.{a}.{b}" for a in (18, 19) for b in range(256)]
        free = [subnet for subnet in subnets if f"{subnet}." not in taken]
        if not free:
            raise ClusterError("network='netns': all of 198.18.0.0/15 is in use on this host")
        return random.choice(free)


def _ip(*arguments: str) -> str:
    """Run `ip`; what it said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout
