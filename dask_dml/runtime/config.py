"""Where a fit runs: on a cluster, or in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from distributed import Client, default_client, get_worker

from dask_dml.data.source import Source
from dask_dml.runtime.cluster import ClusterExecutor
from dask_dml.runtime.core import Executor
from dask_dml.runtime.local import LocalExecutor


@dataclass(frozen=True)
class Runtime:
    """Where a fit runs.

    Parameters
    ----------
    client : distributed.Client, "local" or None
        A client: on its cluster. "local": in this process, with all its cores. None: on the
        cluster of the current client if there is one, otherwise in this process; a fit that is
        itself a Dask task runs in its process.

    Raises
    ------
    TypeError
        If `client` is none of these.

    Examples
    --------
    >>> import dask_dml as dml
    >>> from dask_dml.linear_model import LogisticRegression
    >>> model = LogisticRegression(runtime=dml.Runtime(client="local"))
    """

    client: Client | Literal["local"] | None = None

    def __post_init__(self) -> None:
        if not (self.client is None or self.client == "local" or isinstance(self.client, Client)):
            raise TypeError(
                "Runtime(client=...) must be a distributed.Client, 'local' or None, got "
                f"{type(self.client).__name__}"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # sklearn.clone copies arguments deeply; a connection is shared, not copied.
        return self

    def executor(self, source: Source, run_id: str) -> Executor:
        """Make an executor for a source.

        Raises
        ------
        ClusterError
            If the cluster cannot run a fit.
        """
        client = self.client
        if client is None:
            client = _current_client()
        if client is None or client == "local":
            return LocalExecutor(source)
        return ClusterExecutor(client, source, run_id)


def _current_client() -> Client | None:
    try:
        get_worker()
    except ValueError:
        pass
    else:
        return None  # in a task: waiting there for other tasks could wait forever
    try:
        client: Client = default_client()
    except ValueError:
        return None
    return client
