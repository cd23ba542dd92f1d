"""Where a fit runs: on a cluster, or in this process."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from distributed import Client, default_client, get_worker, secede

from dask_dml.data.source import DaskSource, Source
from dask_dml.faults import FaultPolicy
from dask_dml.runtime.cluster import ClusterExecutor
from dask_dml.runtime.core import Executor
from dask_dml.runtime.local import LocalExecutor
from dask_dml.runtime.speeds import USUAL_ROUNDS


@dataclass(frozen=True)
class Runtime:
    """Where a fit runs.

    Parameters
    ----------
    client : distributed.Client, "local" or None
        A client: on its cluster. "local": in this process, with all its cores. None: on the
        cluster of the current client if there is one, otherwise in this process; a fit that is
        itself a Dask task runs in its process.
    faults : FaultPolicy, optional
        How workers that fall silent, die or leave are dealt with.

    Raises
    ------
    TypeError
        If `client` or `faults` is none of these.

    Examples
    --------
    >>> import dask_dml as dml
    >>> from dask_dml.linear_model import LogisticRegression
    >>> model = LogisticRegression(runtime=dml.Runtime(client="local"))
    """

    client: Client | Literal["local"] | None = None
    faults: FaultPolicy = field(default_factory=FaultPolicy)

    def __post_init__(self) -> None:
        if not (self.client is None or self.client == "local" or isinstance(self.client, Client)):
            raise TypeError(
                "Runtime(client=...) must be a distributed.Client, 'local' or None, got "
                f"{type(self.client).__name__}"
            )
        if not isinstance(self.faults, FaultPolicy):
            raise TypeError(
                "Runtime(faults=...) must be a dask_dml.FaultPolicy, got "
                f"{type(self.faults).__name__}"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # sklearn.clone copies arguments deeply; a connection is shared, not copied.
        return self

    def executor(self, source: Source, run_id: str, n_rounds: int = USUAL_ROUNDS) -> Executor:
        """Make an executor for a source, and for about so many rounds.

        Raises
        ------
        ClusterError
            If the cluster cannot run a fit.
        """
        client = self.client
        in_task = is_in_task()
        if client is None and not in_task:
            client = current_client()
        waits = isinstance(client, Client) or _is_on_cluster(source)
        if in_task and waits:
            # Other tasks will be waited for, and this one may hold the only thread there is.
            with suppress(KeyError, AttributeError):  # not in a slot: has left it before
                secede()
        if client is None or client == "local":
            return LocalExecutor(source)
        return ClusterExecutor(client, source, run_id, self.faults, n_rounds)


def is_in_task() -> bool:
    """Whether this is called by a task of a Dask cluster."""
    try:
        get_worker()
    except ValueError:
        return False
    return True


def _is_on_cluster(source: Source) -> bool:
    return isinstance(source, DaskSource) and source.is_on_cluster


def current_client() -> Client | None:
    """The client that Dask uses by default, if there is one."""
    try:
        client: Client = default_client()
    except ValueError:
        return None
    return client
