"""The parameter holder: parameters of a round, sums that come back, and replicas of both.

One `Holder` is what one host knows of one range of the keys in one run. Its first host is the
*primary*: parameters are published to it and sums pushed to it, and it copies to the others, its
*replicas*, what they do not have yet. An update is acknowledged when every replica has confirmed
it, so that nothing acknowledged is lost while one of the hosts lives. Who the hosts are is decided
elsewhere and told with an *epoch*; a host refuses what comes from an earlier one, so that a primary
that was replaced while it hung acknowledges nothing any more.

Sums are taken along the binary tree of the block numbers. Two nodes of a tree are apart or one
contains the other: a node that is there already, or inside one that is, is a duplicate; one that
contains some that are there takes their place. So each block counts once, and the bits are the same
whatever was pushed, by whom, how often and in which order.

The holder knows no clock and sends nothing itself: it takes messages and says what is to be sent.

References
----------
Li et al. 2014 (parameter server: key ranges, replication before acknowledgement).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

import numpy as np

from dask_dml.errors import StaleRunError
from dask_dml.exchange.consistency import SYNC
from dask_dml.exchange.ranges import Array, KeyRange, NamedArrays
from dask_dml.objective import TreeSum
from dask_dml.objective.summation import Node

# Who waits for an answer, as the edge knows it.
Ticket = Hashable
Nodes = list[tuple[Node, NamedArrays]]


class Outcome(StrEnum):
    """What became of a message."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"  # all of it was there already
    LATE = "late"  # of a version that is over
    UNKNOWN = "unknown"  # of a version that is not here: it has to be published again
    MOVED = "moved"  # this host is not the primary (any more)


@dataclass(frozen=True, slots=True, eq=False)
class Publish:
    """The parameters of a round.

    Attributes
    ----------
    run : str
    version : int
        The round, counted from 0.
    n_blocks : int
        Blocks of the sums that will come back.
    values : NamedArrays
        Only those that are others than in the version before.
    """

    run: str
    version: int
    n_blocks: int
    values: NamedArrays


@dataclass(frozen=True, slots=True, eq=False)
class Push:
    """Sums of some blocks.

    Attributes
    ----------
    run : str
    version : int
        Of the parameters that they were made from.
    blocks : tuple of int
    attempt : int
        How many times these blocks were tried before.
    nodes : list of (node, NamedArrays)
        Nodes of the sum's tree.
    """

    run: str
    version: int
    blocks: tuple[int, ...]
    attempt: int
    nodes: Nodes


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """What a primary sends to a replica.

    Attributes
    ----------
    run : str
    epoch : int
    after : int
        Sequence number that the replica must be at; -1 when this is the whole state.
    sequence : int
        Sequence number that it will be at.
    state : dict of str to ndarray
        As `Holder.snapshot` gives it, or the part that is new.
    """

    run: str
    epoch: int
    after: int
    sequence: int
    state: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Replicate:
    """Send this to a replica, again and again until it answers or the hosts change."""

    to: str
    copy: Copy


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell whoever waits for it what became of a message."""

    ticket: Ticket
    outcome: Outcome


Action = Replicate | Acknowledge


@dataclass(slots=True)
class _Link:
    """What the primary knows of one replica: one copy is under way at a time."""

    confirmed: int = -1
    in_flight: int | None = None
    version: int = -1
    nodes: set[Node] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Waiting:
    sequence: int
    outcome: Outcome


class OnceSum:
    """A sum over blocks in which each block counts once, whatever comes how often.

    Parameters
    ----------
    n_blocks : int
    """

    def __init__(self, n_blocks: int) -> None:
        self._tree: TreeSum[NamedArrays] = TreeSum(n_blocks)

    @property
    def n_blocks(self) -> int:
        """Blocks of the whole sum."""
        return self._tree.n_blocks

    @property
    def nodes(self) -> Nodes:
        """Nodes that are there, as few as the blocks allow."""
        return self._tree.nodes

    @property
    def missing(self) -> tuple[int, ...]:
        """Blocks that are not there."""
        return self._tree.missing

    @property
    def value(self) -> NamedArrays:
        """The total; a ValueError while blocks are missing."""
        return self._tree.value

    def add(self, nodes: Iterable[tuple[Node, NamedArrays]]) -> bool:
        """Add what is new; whether anything was."""
        is_new = False
        for node, sums in nodes:
            there = self._tree.nodes
            if any(_contains(other, node) for other, _ in there):
                continue
            apart = [(other, value) for other, value in there if not _contains(node, other)]
            if len(apart) < len(there):
                self._tree = TreeSum(self._tree.n_blocks)
                self._tree.update(apart)
            self._tree.add(node, sums)
            is_new = True
        return is_new


class Holder:
    """What one host holds of one range of keys in one run.

    Parameters
    ----------
    run : str
    host : str
        Address of this host.
    keys : KeyRange
    """

    def __init__(self, run: str, host: str, keys: KeyRange) -> None:
        self.run = run
        self.host = host
        self.keys = keys
        self.epoch = -1
        self.hosts: tuple[str, ...] = ()
        self.version = -1
        self._sequence = -1  # nothing has come yet
        self._values: dict[str, Array] = {}
        self._changed: dict[str, int] = {}  # version at which each value was last another
        self._sums = OnceSum(1)
        self._links: dict[str, _Link] = {}
        self._waiting: dict[Ticket, _Waiting] = {}

    @property
    def is_primary(self) -> bool:
        """Whether this host is the one that parameters and sums are sent to."""
        return bool(self.hosts) and self.hosts[0] == self.host

    @property
    def is_installed(self) -> bool:
        """Whether it has had all that there was, at least once, and so may become primary."""
        return self._sequence >= 0

    @property
    def nbytes(self) -> int:
        """Bytes of values and sums."""
        return sum(value.nbytes for value in self._values.values()) + sum(
            sums.nbytes for _, sums in self._sums.nodes
        )

    # -- messages ---------------------------------------------------------------------------

    def configure(self, epoch: int, hosts: tuple[str, ...]) -> list[Action]:
        """Learn who the hosts are; the first is the primary."""
        if epoch <= self.epoch:
            return []
        self.epoch, self.hosts = epoch, hosts
        if not self.is_primary:
            return self._step_down()
        self._sequence = max(self._sequence, 0)
        # One that was no primary has no links: all that it has goes to every replica.
        self._links = {host: self._links.get(host, _Link()) for host in hosts[1:]}
        for link in self._links.values():
            # A copy of the epoch before may be refused: what it brought is sent again.
            if link.in_flight is not None:
                link.in_flight, link.confirmed = None, -1
        return [*self._copies(), *self._acknowledged()]

    def publish(self, ticket: Ticket, message: Publish) -> list[Action]:
        """Take the parameters of a new round; the sums of the last one are let go."""
        self.check_run(message.run)
        if not self.is_primary:
            return [Acknowledge(ticket, Outcome.MOVED)]
        if message.version < self.version:
            return [Acknowledge(ticket, Outcome.LATE)]
        if message.version == self.version:
            return self._answer(ticket, Outcome.DUPLICATE)
        self._begin(message.version, message.n_blocks)
        self._values |= message.values.arrays
        self._changed |= dict.fromkeys(message.values.arrays, message.version)
        self._sequence += 1
        return self._answer(ticket, Outcome.ACCEPTED)

    def push(self, ticket: Ticket, message: Push) -> list[Action]:
        """Take sums of some blocks.

        Raises
        ------
        StaleRunError
            If they are of another run.
        ValueError
            If a node is not one of the tree, or has blocks that the message does not name.
        """
        self.check_run(message.run)
        if not self.is_primary:
            return [Acknowledge(ticket, Outcome.MOVED)]
        if message.version > self.version:
            return [Acknowledge(ticket, Outcome.UNKNOWN)]
        if not SYNC.admits(self.version - message.version):
            return [Acknowledge(ticket, Outcome.LATE)]
        self._check_blocks(message)
        if not self._sums.add(message.nodes):
            # Not before the replicas have it, if the one that came first is still under way.
            return self._answer(ticket, Outcome.DUPLICATE)
        self._sequence += 1
        return self._answer(ticket, Outcome.ACCEPTED)

    def copy(self, ticket: Ticket, message: Copy) -> list[Action]:
        """Take, as a replica, what the primary has sent."""
        self.check_run(message.run)
        if message.epoch < self.epoch or (message.epoch == self.epoch and self.is_primary):
            return [Acknowledge(ticket, Outcome.MOVED)]
        actions: list[Action] = []
        if message.epoch > self.epoch:
            self.epoch, self.hosts = message.epoch, ()
            actions += self._step_down()
        elif message.sequence <= self._sequence:
            return [Acknowledge(ticket, Outcome.DUPLICATE)]
        if message.after < 0:
            self._values, self._changed = {}, {}
            self._begin(-1, 1)
        elif message.after != self._sequence:
            # Nothing here is of use any more: the primary is to send all of it.
            self._sequence = -1
            return [*actions, Acknowledge(ticket, Outcome.UNKNOWN)]
        self._take(message.state)
        self._sequence = message.sequence
        return [*actions, Acknowledge(ticket, Outcome.ACCEPTED)]

    def confirm(self, host: str, message: Copy, outcome: Outcome) -> list[Action]:
        """Learn what a replica answered to a copy."""
        link = self._links.get(host)
        if message.epoch != self.epoch or link is None or link.in_flight != message.sequence:
            return []
        link.in_flight = None
        if outcome is Outcome.MOVED:
            # The replica follows another primary by now.
            self.hosts = ()
            return self._step_down()
        link.confirmed = -1 if outcome is Outcome.UNKNOWN else message.sequence
        return [*self._copies(), *self._acknowledged()]

    # -- questions --------------------------------------------------------------------------

    def check_run(self, run: str) -> None:
        """Refuse what is of another run."""
        if run != self.run:
            raise StaleRunError(
                f"a message of run {run} came to the holder of run {self.run} at {self.host}: it "
                "is from a fit that is over, and is refused"
            )

    def values(self, run: str, version: int, have: int = -1) -> NamedArrays | None:
        """Parameters of a version, without those that are as they were in version `have`.

        None when that version is not here.
        """
        self.check_run(run)
        if version != self.version:
            return None
        return NamedArrays(
            {name: value for name, value in self._values.items() if self._changed[name] > have}
        )

    def sums(self, run: str, version: int) -> Nodes | None:
        """Nodes of the sum that have come, as few as their blocks allow.

        None when that version is not here.
        """
        self.check_run(run)
        return self._sums.nodes if version == self.version else None

    # -- state as data ----------------------------------------------------------------------

    def snapshot(self) -> dict[str, Array]:
        """All it holds, as plain arrays: what a replica or a store needs."""
        return self._state(-1, set())

    @classmethod
    def restored(cls, run: str, host: str, keys: KeyRange, state: Mapping[str, Array]) -> Self:
        """A holder as it was when `snapshot` was taken; it is nobody's host yet."""
        holder = cls(run, host, keys)
        holder._take(state)
        holder._sequence = 0
        return holder

    def _state(self, have_version: int, have_nodes: Collection[Node]) -> dict[str, Array]:
        """What is held and not had by somebody who has these nodes of that version."""
        new_values = {k: v for k, v in self._values.items() if self._changed[k] > have_version}
        nodes = [(node, sums) for node, sums in self._sums.nodes if node not in have_nodes]
        state: dict[str, Array] = {
            "version": np.asarray(self.version),
            "n_blocks": np.asarray(self._sums.n_blocks),
            "values": np.array(list(new_values), dtype=np.str_),
            "changed": np.array([self._changed[name] for name in new_values], dtype=np.int64),
            "nodes": np.array([node for node, _ in nodes], dtype=np.int64).reshape(-1, 2),
        }
        for number, value in enumerate(new_values.values()):
            state[f"value-{number}"] = value
        if nodes:
            names = sorted(nodes[0][1].arrays)
            state["sums"] = np.array(names, dtype=np.str_)
            for number, (_, sums) in enumerate(nodes):
                for at, name in enumerate(names):
                    state[f"sum-{number}-{at}"] = np.asarray(sums.arrays[name])
        return state

    def _take(self, state: Mapping[str, Array]) -> None:
        if (version := int(state["version"])) > self.version:
            self._begin(version, int(state["n_blocks"]))
        pairs = zip(state["values"].tolist(), state["changed"].tolist(), strict=True)
        for number, (name, changed) in enumerate(pairs):
            self._values[name] = state[f"value-{number}"]
            self._changed[name] = changed
        names = state["sums"].tolist() if "sums" in state else []
        self._sums.add(
            (
                (level, index),
                NamedArrays({name: state[f"sum-{k}-{at}"] for at, name in enumerate(names)}),
            )
            for k, (level, index) in enumerate(state["nodes"].tolist())
        )

    # -- the sum ----------------------------------------------------------------------------

    def _begin(self, version: int, n_blocks: int) -> None:
        self.version = version
        self._sums = OnceSum(n_blocks)
        for link in self._links.values():
            link.nodes.clear()

    def _check_blocks(self, message: Push) -> None:
        named = set(message.blocks)
        for (level, index), _ in message.nodes:
            blocks = range(index << level, min((index + 1) << level, self._sums.n_blocks))
            if not blocks or not named.issuperset(blocks):
                raise ValueError(
                    f"node {(level, index)} of round {message.version} of run {message.run} has "
                    f"blocks {list(blocks)} of {self._sums.n_blocks}, and the message is of blocks "
                    f"{list(message.blocks)}"
                )

    # -- replicas ---------------------------------------------------------------------------

    def _answer(self, ticket: Ticket, outcome: Outcome) -> list[Action]:
        self._waiting[ticket] = _Waiting(self._sequence, outcome)
        return [*self._copies(), *self._acknowledged()]

    def _copies(self) -> list[Action]:
        """What the replicas do not have, to those that wait for no answer."""
        actions: list[Action] = []
        for host, link in self._links.items():
            if link.in_flight is not None or link.confirmed == self._sequence:
                continue
            if link.confirmed < 0:
                link.version, link.nodes = -1, set()
            state = self._state(link.version, link.nodes)
            copy = Copy(self.run, self.epoch, link.confirmed, self._sequence, state)
            link.in_flight = self._sequence
            link.version = self.version
            link.nodes = {node for node, _ in self._sums.nodes}
            actions.append(Replicate(host, copy))
        return actions

    def _acknowledged(self) -> list[Action]:
        confirmed = min((link.confirmed for link in self._links.values()), default=self._sequence)
        done = [ticket for ticket, w in self._waiting.items() if w.sequence <= confirmed]
        return [Acknowledge(ticket, self._waiting.pop(ticket).outcome) for ticket in done]

    def _step_down(self) -> list[Action]:
        tickets, self._waiting, self._links = list(self._waiting), {}, {}
        return [Acknowledge(ticket, Outcome.MOVED) for ticket in tickets]


def _contains(outer: Node, inner: Node) -> bool:
    return outer[0] >= inner[0] and inner[1] >> (outer[0] - inner[0]) == outer[1]


def choose_hosts(
    machines: Mapping[str, str],
    held: Mapping[str, int],
    keep: Iterable[str],
    count: int,
) -> tuple[str, ...]:
    """Choose who hosts a range: those that do already, and others on machines of their own.

    Parameters
    ----------
    machines : mapping of str to str
        Machine of each worker that may be given something.
    held : mapping of str to int
        Ranges that workers host already; those with fewest come first.
    keep : iterable of str
        Hosts that stay, in order.
    count : int
        Hosts that are wanted; fewer when there are fewer workers.

    Returns
    -------
    tuple of str
    """
    hosts = list(keep)
    # Machines of hosts that are kept though nothing more may be given to them are not known.
    taken = {machines[host] for host in hosts if host in machines}
    while len(hosts) < count:
        free = [worker for worker in machines if worker not in hosts]
        if not free:
            break
        best = min(free, key=lambda w: (machines[w] in taken, held.get(w, 0), w))
        hosts.append(best)
        taken.add(machines[best])
    return tuple(hosts)
