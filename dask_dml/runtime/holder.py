"""The parameter holder as a fit and its tasks use it.

The client publishes the parameters of a round; tasks pull them, once a worker, and push their sums;
the client collects the total. Parameters and sums so cross between workers and not through the
client. They live on a primary host and on replicas, and move when a host is lost: see
`dask_dml.exchange.holder` for what each host does, `dask_dml.runtime.holder_directory` for who
the hosts are. When all are lost at once, tasks give their sums back themselves, the client
publishes again, and the blocks that are missing then are asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client, get_worker
from distributed.protocol.serialize import to_serialize
from distributed.utils import sync

from dask_dml.errors import ClusterError, HolderLostError, StaleRunError
from dask_dml.exchange.holder import Nodes, OnceSum, Outcome, Publish, Push
from dask_dml.exchange.ranges import (
    KeyRange,
    NamedArrays,
    as_arrays,
    as_statistics,
    joined,
    key_ranges,
)
from dask_dml.objective import Request, Statistics
from dask_dml.objective.blocks import GramDtype
from dask_dml.objective.losses import Loss
from dask_dml.objective.summation import Node
from dask_dml.runtime.holder_directory import NAME, HolderDirectory
from dask_dml.runtime.holder_host import HolderAddress, HolderHost, Place
from dask_dml.runtime.shard import RoundWork
from dask_dml.version import __version__

# The directory may leave the cluster just as a run comes; then it is sent once more.
_TIMES = 3


@dataclass(frozen=True, slots=True)
class HeldWork:
    """Sums of encoded blocks, by parameters that are with the holder, where the sums go too.

    Attributes
    ----------
    request : HeldRequest
    attempt : int
        How many times the same was tried before.
    """

    request: HeldRequest
    attempt: int = 0

    def begin(self) -> RoundWork:
        """Pull the parameters."""
        return RoundWork(self.request.pull())

    def keep(self, numbers: Sequence[int], nodes: list[tuple[Node, Any]]) -> bool:
        """Push the sums."""
        return self.request.push(numbers, self.attempt, nodes)

    @property
    def nbytes(self) -> int:
        """Bytes that go with each task, about."""
        return sum(len(host) for place in self.request.holder.places for host in place.hosts)


@dataclass(frozen=True, slots=True)
class HeldRequest:
    """A request whose parameters are with the holder.

    Attributes
    ----------
    holder : HolderAddress
    version : int
        The round.
    loss : Loss
    order : {1, 2}
    shape : (int, int)
        Of theta.
    parameters_nbytes : int
        Bytes of theta and center.
    share, gram_share : float
        See `Request`.
    gram_dtype : {numpy.float64, numpy.float32}
    """

    holder: HolderAddress
    version: int
    loss: Loss
    order: int
    shape: tuple[int, int]
    parameters_nbytes: int
    share: float
    gram_share: float
    gram_dtype: GramDtype

    def pull(self) -> Request:
        """Get the request; called in a task.

        Raises
        ------
        HolderLostError
            If no host has the parameters any more.
        StaleRunError
            If the run is over.
        """
        host = _host(self.holder)
        if host is None:
            raise HolderLostError(
                f"this worker has no holder for run {self.holder.run}: it is new, or the run over"
            )
        plugin, loop = host
        values: NamedArrays = sync(
            loop, plugin.pull, self.holder, self.version, self.parameters_nbytes
        )
        theta, center = values.arrays["theta"], values.arrays["center"]
        return Request(
            self.loss,
            theta.reshape(self.shape),
            center,
            self.order,
            self.share,
            self.gram_share,
            gram_dtype=self.gram_dtype,
        )

    def push(
        self, blocks: Sequence[int], attempt: int, nodes: Iterable[tuple[Node, Statistics]]
    ) -> bool:
        """Give sums to the holder; called in a task.

        Returns
        -------
        bool
            Whether it has them: otherwise the task has to give them back itself.

        Raises
        ------
        StaleRunError
            If the run is over.
        """
        host = _host(self.holder)
        if host is None:
            return False
        plugin, loop = host
        named = [(node, as_arrays(sums)) for node, sums in nodes]
        message = Push(self.holder.run, self.version, tuple(blocks), attempt, named)
        is_there: bool = sync(loop, plugin.push, self.holder, message)
        return is_there


def _host(holder: HolderAddress) -> tuple[HolderHost, Any] | None:
    worker: Any = get_worker()
    plugin = worker.plugins.get(holder.plugin)
    return None if plugin is None else (plugin, worker.loop)


class HolderClient:
    """The holder of one run, as its client sees it; it is put on the cluster by its first use.

    Parameters
    ----------
    client : distributed.Client
        Synchronous.
    run_id : str
    n_blocks : int
        Blocks of each sum.
    replicas : int
        Hosts of each range besides the primary.
    n_ranges : int
        Ranges of the keys, each with hosts of its own.
    """

    def __init__(
        self, client: Client, run_id: str, n_blocks: int, replicas: int = 1, n_ranges: int = 1
    ) -> None:
        self._client = client
        self._run = run_id
        self._n_blocks = n_blocks
        self._replicas = replicas
        self._keys = key_ranges(n_ranges)
        self._events: list[Mapping[str, str]] = []
        self._published: dict[str, np.ndarray] = {}
        self._plugin = ""
        self._is_open = False
        self._generation = 0
        self._places: tuple[Place, ...] = ()
        self._last: tuple[int, Request] | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """Hosts of each range, when last heard."""
        return self._places

    def publish(self, version: int, request: Request) -> HeldRequest:
        """Have the holder take the parameters of a round; again, if it was lost meanwhile.

        Parameters
        ----------
        version : int
            The round; larger than before, or the same.
        request : Request

        Returns
        -------
        HeldRequest
            What tasks need to know.

        Raises
        ------
        HolderLostError
            If no worker can host it.
        ClusterError
            If the scheduler refuses plugins, or lacks this package.
        StaleRunError
            If the run is over, or the round.
        """
        if not self._plugin:
            self._open()
        self._last = version, request
        arrays = {"theta": request.theta.reshape(-1), "center": request.center}
        for _ in range(_TIMES):
            # What is as it was need not be sent: center, as a rule.
            new = {
                name: array
                for name, array in arrays.items()
                if name == "theta" or self._published.get(name) is not array
            }
            named = NamedArrays(new)
            messages = [
                to_serialize(Publish(self._run, version, self._n_blocks, named.of(keys)))
                for keys in self._keys
            ]
            answer = self._ask(
                "dml_holder_send",
                generation=self._generation,
                nbytes=named.nbytes,
                messages=messages,
            )
            self._take_note(answer)
            if answer["status"] == "anew":
                self._published = {}
                continue
            if Outcome.LATE.value in answer["outcomes"]:
                raise StaleRunError(
                    f"round {version} of run {self._run} was published after a later one: rounds "
                    "of a run go up"
                )
            self._published = arrays
            nbytes = sum(array.nbytes for array in arrays.values())
            address = HolderAddress(self._run, self._plugin, self._places)
            return HeldRequest(
                address,
                version,
                request.loss,
                request.order,
                request.theta.shape,
                nbytes,
                request.share,
                request.gram_share,
                request.gram_dtype,
            )
        raise HolderLostError(
            f"round {version} of run {self._run} could not be published: the hosts of its holder "
            f"were lost {_TIMES} times in a row"
        )

    def collect(
        self,
        request: HeldRequest,
        nbytes: int,
        given_back: Iterable[tuple[Node, Statistics]] = (),
    ) -> tuple[Statistics | None, tuple[int, ...]]:
        """Fetch the sums of a round.

        Parameters
        ----------
        request : HeldRequest
        nbytes : int
            Size of the total, by which an answer may take longer.
        given_back : iterable of (node, Statistics)
            Sums that tasks could not push.

        Returns
        -------
        total : Statistics or None
            None while blocks are missing.
        missing : tuple of int
            Those blocks.
        """
        answer = self._ask("dml_holder_collect", version=request.version, nbytes=nbytes)
        self._take_events(answer)
        named: Nodes = [(node, as_arrays(sums)) for node, sums in given_back]
        totals = [
            self._total(keys, reply.get("nodes", ()), named)
            for keys, reply in zip(self._keys, answer["ranges"], strict=True)
        ]
        missing = tuple(sorted({block for total in totals for block in total.missing}))
        if missing:
            return None, missing
        whole = joined([total.value for total in totals])
        # Arrays from the wire need not be aligned, and then a product has other bits.
        aligned = {
            name: np.require(array, None, ["C", "A", "W"]) for name, array in whole.arrays.items()
        }
        return as_statistics(NamedArrays(aligned), request.shape), ()

    def renewed(self) -> HeldWork | RoundWork:
        """The work of this round for tasks that are tried again after all hosts were lost."""
        if self._last is None:
            raise StaleRunError(f"run {self._run} has published nothing yet")
        version, request = self._last
        try:
            return HeldWork(self.publish(version, request), 1)
        except HolderLostError:
            return RoundWork(request)

    def take_events(self) -> list[Mapping[str, str]]:
        """Kind, worker, evidence and action of what happened to the hosts since the last call."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Have all workers forget this run."""
        is_open, self._is_open = self._is_open, False
        # The scheduler notices by itself that a client is gone.
        if is_open and self._client.status == "running":
            self._call("dml_holder_end")

    # -- the directory ----------------------------------------------------------------------

    def _total(self, keys: KeyRange, held: Nodes, given_back: Nodes) -> OnceSum:
        total = OnceSum(self._n_blocks)
        total.add(held)
        total.add((node, sums.of(keys)) for node, sums in given_back)
        return total

    def _open(self) -> None:
        for _ in range(_TIMES):
            try:
                # A scheduler that has it already looks at the name alone.
                self._client.register_plugin(HolderDirectory(), name=NAME)
            except (ImportError, AttributeError, ValueError, TypeError) as error:
                raise ClusterError(
                    f"the scheduler takes no plugin for the parameter holder of run {self._run}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            answer = self._call(
                "dml_holder_begin",
                client=self._client.id,
                version=__version__,
                replicas=self._replicas,
                count=len(self._keys),
            )
            if answer is None:
                continue
            if answer["status"] != "OK":
                raise ClusterError(answer["message"])
            self._plugin = str(answer["plugin"])
            self._is_open = True
            self._take_note(answer)
            return
        raise ClusterError("the scheduler took the holder's plugin and does not know it")

    def _take_note(self, answer: Mapping[str, Any]) -> None:
        self._take_events(answer)
        self._generation = int(answer["generation"])
        self._places = tuple(Place(epoch, tuple(hosts)) for epoch, hosts in answer["places"])

    def _take_events(self, answer: Mapping[str, Any]) -> None:
        self._events.extend(answer["events"])

    def _ask(self, op: str, **message: Any) -> dict[str, Any]:
        answer = self._call(op, **message)
        if answer is None:
            raise StaleRunError(
                f"run {self._run} asked for its parameter holder, and the scheduler knows of none: "
                "the cluster was restarted, or the run is over"
            )
        if answer["status"] == "refused":
            raise StaleRunError(answer["message"])
        return answer

    def _call(self, op: str, **message: Any) -> dict[str, Any] | None:
        """The handler's answer; None where the scheduler has no such handler."""
        answer: dict[str, Any] | None = self._client.sync(
            getattr(self._client.scheduler, op), run=self._run, **message
        )
        return answer
