"""A cluster of real processes on this host, made to be disturbed, and mended."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import psutil
from distributed import Client, Scheduler, Worker

from dask_dml.errors import ClusterError
from dask_dml.faults.chaos.hands import grow
from dask_dml.faults.chaos.network import NamespaceNetwork, Network, PlainNetwork, RelayNetwork
from dask_dml.faults.chaos.processes import Child, start_signaller
from dask_dml.faults.schedule import Fault
from dask_dml.objective.blas import blas_environment

NETWORKS: dict[str | None, Callable[[], Network]] = {
    "proxy": RelayNetwork,
    "netns": NamespaceNetwork,
    None: PlainNetwork,
}
_DIRECTIONS = {
    "partition": frozenset({"in", "out"}),
    "partition-in": frozenset({"in"}),
    "partition-out": frozenset({"out"}),
}
_START_S = 120.0
_SETTLE_S = 10.0
_POLL_S = 0.02
# Of a machine: nanny, the process that workers are forked from, its tracker of semaphores, worker.
_MOST_PROCESSES = 4


@dataclass(frozen=True)
class Machine:
    """A nanny and its worker, in a session of their own."""

    number: int
    child: Child

    @property
    def name(self) -> str:
        """Of its worker."""
        return self.child.name

    @property
    def worker(self) -> str:
        """Address of its worker, or of the last one that it had."""
        return str(self.child.reports[-1]["worker"])

    @property
    def pid(self) -> int:
        """Of the process of that worker."""
        return int(self.child.reports[-1]["pid"])


class ChaosCluster:
    """A scheduler and machines, each a process or more of its own, whose faults can be caused.

    Parameters
    ----------
    n_workers : int
        Machines, with one worker each.
    nthreads : int
        Of each worker.
    memory_limit : str or int
        Of each worker, as Dask takes it.
    network : {"proxy", "netns", None}
        How machines can be cut off: by a relay that all they say goes through; in network
        namespaces, which needs root and iproute2; or not at all.
    config : mapping, optional
        Dask configuration of scheduler, nannies and workers.

    Attributes
    ----------
    address : str
        Of the scheduler.
    client : distributed.Client
        Of this cluster, the current one until the cluster is closed.

    Raises
    ------
    ClusterError
        If a process does not start, or the network cannot be had.
    ValueError
        If an argument makes no sense.

    Notes
    -----
    Every machine's processes are a session, which ends with this process at the latest. Workers are
    forked from a process that has all imported, so that a new one is there in half a second.

    Examples
    --------
    >>> from dask_dml.faults.chaos import Chaos, ChaosCluster, draw_schedule
    >>> with ChaosCluster(3) as cluster:                          # doctest: +SKIP
    ...     with Chaos(cluster, draw_schedule(seed=1, n_workers=3, length_s=5.0)):
    ...         model.fit(X, y)
    """

    client: Client

    def __init__(
        self,
        n_workers: int = 3,
        nthreads: int = 1,
        memory_limit: str | int = "1GiB",
        network: Literal["proxy", "netns"] | None = "proxy",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if n_workers < 1:
            raise ValueError(f"ChaosCluster(n_workers={n_workers}) must be at least 1")
        if network not in NETWORKS:
            raise ValueError(f"ChaosCluster(network={network!r}) must be 'proxy', 'netns' or None")
        self.n_workers = n_workers
        self._nthreads = nthreads
        self._memory_limit = memory_limit
        self._config = dict(config or {})
        # Faults are begun and ended by several threads.
        self._lock = threading.Lock()
        self._machines: dict[int, Machine] = {}
        self._signallers: list[subprocess.Popen[bytes]] = []
        self._stopped: dict[int, psutil.Process] = {}
        self._cuts: dict[int, list[frozenset[str]]] = {}
        self._hogs: set[int] = set()
        self._leaving: set[int] = set()
        self._scheduler: Child | None = None
        self._clients: list[Client] = []
        self._network = NETWORKS[network]()
        self._directory = TemporaryDirectory(prefix="dml-chaos-", ignore_cleanup_errors=True)
        with ExitStack() as unfinished:
            unfinished.callback(self.close)
            self._start()
            unfinished.pop_all()

    # -- life ---------------------------------------------------------------------------------

    def _start(self) -> None:
        host = self._network.scheduler_host
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
            self._heartbeat_port = int(probe.getsockname()[1])
        config = self._config | {"dml.heartbeats.port": self._heartbeat_port}
        options = {"host": host, "port": 0, "dashboard": False, "dashboard_address": ":0"}
        spec = {"role": "scheduler", "config": config, "options": options}
        self._scheduler = Child("scheduler", (), spec, self._log_path("scheduler"))
        self.address = str(self._scheduler.wait_for_report(_START_S)["scheduler"])
        for number in range(self.n_workers):
            # All at once; they are waited for together.
            self._switch_on(number)
        self.client = Client(self.address, timeout=_START_S)
        self._clients.append(self.client)
        # Faults are caused through another one, for the fit may be closing its own.
        self._hand = Client(self.address, timeout=_START_S, set_as_default=False)
        self._clients.append(self._hand)
        self._wait_for_workers()

    def _switch_on(self, number: int) -> Machine:
        place = self._network.join(number, self.address, self._heartbeat_port)
        name = f"machine-{number}"
        spec = {
            "role": "machine",
            "config": self._config | {"dml.heartbeats.address": place.heartbeats},
            "options": {
                "machine": number,
                "host": place.host,
                "relay": place.relay,
                "scheduler_ip": place.scheduler,
                "nthreads": self._nthreads,
                "memory_limit": self._memory_limit,
                "name": name,
                "local_directory": self._directory.name,
                "dashboard": False,
                "env": blas_environment(),
            },
        }
        machine = Machine(number, Child(name, place.command, spec, self._log_path(name)))
        with self._lock:
            self._machines[number] = machine
        return machine

    def close(self) -> None:
        """End all processes and leave nothing behind."""
        for client in self._clients:
            client.close(timeout=2)
        self._clients = []
        self._end_signallers()
        for machine in self._machines.values():
            machine.child.end()
        self._machines = {}
        if self._scheduler is not None:
            self._scheduler.end()
            self._scheduler = None
        self._network.close()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- who is there -------------------------------------------------------------------------

    def machine(self, number: int) -> Machine:
        """The machine of a number.

        Raises
        ------
        ClusterError
            If there is none, its nanny has ended, or it has not had a worker yet.
        """
        with self._lock:
            machine = self._machines.get(number)
        if machine is None or not machine.child.is_on or not machine.child.reports:
            raise ClusterError(f"machine-{number} is not there")
        return machine

    def log(self, name: str) -> str:
        """What a process said on standard error.

        Parameters
        ----------
        name : str
            "scheduler", or "machine-" and a number.
        """
        return self._log_path(name).read_text(encoding="utf-8")

    def leftovers(self, known: Collection[str] = ()) -> list[str]:
        """What is left on the cluster that should not be when nothing is going on.

        Parameters
        ----------
        known : collection of str
            Tasks that may be there, as their keys are written.

        Returns
        -------
        list of str
            Tasks on the scheduler, data on workers, and processes that are too many; after some
            seconds, since what is released takes a while to go.
        """
        return settled(lambda: self._left(known))

    def _left(self, known: Collection[str]) -> list[str]:
        tasks = self._hand.run_on_scheduler(task_names)
        data = self._hand.run(_data_names, on_error="ignore")
        found = [f"task {name}" for name in tasks if name not in known]
        found += [
            f"data {name} on {worker}"
            for worker, names in data.items()
            for name in names
            if name not in known
        ]
        for machine in list(self._machines.values()):
            members = machine.child.members()
            earlier = {report["pid"] for report in machine.child.reports} - {machine.pid}
            left = [process for process in members if process.pid in earlier]
            if not left and len(members) > _MOST_PROCESSES:
                left = members
            found += [f"process {process.pid} of {machine.name}" for process in left]
        return found

    def _log_path(self, name: str) -> Path:
        return Path(self._directory.name, f"{name}.log")

    def _wait_for_workers(self) -> None:
        """Wait until the present workers of all machines are registered, and nobody else."""
        end_s = time.monotonic() + _START_S
        pause = threading.Event()
        while not self._all_are_there():
            if time.monotonic() > end_s:
                here = sorted(self._workers())
                machines = {m.name: m.child.reports[-1:] for m in self._machines.values()}
                raise ClusterError(
                    f"after {_START_S:g} s not all workers have joined: the scheduler has "
                    f"{', '.join(here) or 'none'}, and the machines say {machines}"
                )
            pause.wait(_POLL_S)

    def _all_are_there(self) -> bool:
        for number in range(self.n_workers):
            # A nanny ends with a worker that was retired, and takes a while for that.
            if number not in self._machines or not self._machines[number].child.is_on:
                self._switch_on(number)
        machines = list(self._machines.values())
        if not all(machine.child.reports and _is_alive(machine.pid) for machine in machines):
            return False
        return self._workers() == {machine.worker: machine.name for machine in machines}

    def _workers(self) -> dict[str, str]:
        """Names of the scheduler's workers by their addresses."""
        # Not `Client.scheduler_info`, which the client refreshes by itself without the workers.
        scheduler: Any = self._hand.scheduler
        identity = self._hand.sync(scheduler.identity, n_workers=-1)
        return {address: facts["name"] for address, facts in identity["workers"].items()}

    # -- faults -------------------------------------------------------------------------------

    def begin(self, fault: Fault) -> str:
        """Begin a fault; what was done.

        Raises
        ------
        ClusterError
            If the fault has nobody to hit (any more), or this network cannot do it.
        """
        if fault.kind == "join":
            machine = self._switch_on(fault.target)
            return f"join {machine.name}"
        machine = self.machine(fault.target)
        done = f"{fault.kind} {machine.name} ({machine.worker}, process {machine.pid})"
        match fault.kind:
            case "kill":
                _kill(_process(machine))
            case "hang":
                process = _process(machine)
                process.suspend()
                with self._lock:
                    self._stopped[machine.number] = process
            case "slow":
                signaller = start_signaller(machine.pid, "slow", fault.duration_s)
                with self._lock:
                    self._signallers.append(signaller)
            case "memory":
                with self._lock:
                    self._hogs.add(machine.pid)
                self._hand.run(grow, fault.duration_s, workers=[machine.worker])
            case "preempt":
                with self._lock:
                    self._leaving.add(machine.number)
                machine.child.say(deadline_s=time.time() + fault.duration_s)
            case "retire":
                with self._lock:
                    self._leaving.add(machine.number)
                self._hand.retire_workers([machine.worker])
            case _:
                self._cut(fault, begins=True)
        return done

    def end(self, fault: Fault) -> str:
        """End a fault; what was done.

        Raises
        ------
        ClusterError
            If the machine that it hit has left.
        """
        machine = self.machine(fault.target)
        match fault.kind:
            case "hang":
                with self._lock:
                    stopped = self._stopped.pop(machine.number, None)
                if stopped is not None:
                    _resume(stopped)
            case "preempt":
                machine.child.end()
                return f"switched off {machine.name}"
            case "partition" | "partition-in" | "partition-out":
                self._cut(fault, begins=False)
        return f"{fault.kind} of {machine.name} is over"

    def _cut(self, fault: Fault, begins: bool) -> None:
        """Have that cut which any of the partitions that go on cuts."""
        directions = _DIRECTIONS[fault.kind]
        with self._lock:
            going_on = self._cuts.setdefault(fault.target, [])
            if begins:
                going_on.append(directions)
            else:
                going_on.remove(directions)
            self._network.cut(fault.target, frozenset().union(*going_on))

    # -- mending ------------------------------------------------------------------------------

    def mend(self) -> None:
        """Undo all faults; then the workers are as many as at the start, and all in order.

        Raises
        ------
        ClusterError
            If the workers are not there again within a minute.
        """
        self._end_signallers()
        with self._lock:
            stopped, self._stopped = self._stopped, {}
            cuts, self._cuts = self._cuts, {}
            hogs, self._hogs = self._hogs, set()
            leaving, self._leaving = self._leaving, set()
        for process in stopped.values():
            _resume(process)
        for number in cuts:
            self._network.cut(number, ())
        for number, machine in list(self._machines.items()):
            if number >= self.n_workers or number in leaving:
                machine.child.end()
                del self._machines[number]
            elif machine.child.reports and machine.pid in hogs and machine.child.is_on:
                with suppress(psutil.NoSuchProcess):
                    _kill(psutil.Process(machine.pid))
        self._wait_for_workers()

    def _end_signallers(self) -> None:
        with self._lock:
            signallers, self._signallers = self._signallers, []
        for signaller in signallers:
            signaller.terminate()
            signaller.wait()


def _process(machine: Machine) -> psutil.Process:
    """Take hold of a worker's process, so that nobody else's of the same number is meant."""
    try:
        return psutil.Process(machine.pid)
    except psutil.NoSuchProcess as error:
        raise ClusterError(f"the worker of {machine.name} has ended already") from error


def _kill(process: psutil.Process) -> None:
    """Kill a process, and wait until it has gone: until then it looks as before."""
    process.kill()
    process.wait(_SETTLE_S)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _resume(process: psutil.Process) -> None:
    try:
        process.resume()
    except psutil.NoSuchProcess:
        # Evicted and killed meanwhile, as it should be.
        return


def settled(find: Callable[[], list[str]]) -> list[str]:
    """What is still found after some seconds, since what is released takes a while to go."""
    end_s = time.monotonic() + _SETTLE_S
    pause = threading.Event()
    while (found := find()) and time.monotonic() < end_s:
        pause.wait(_POLL_S)
    return found


def task_names(dask_scheduler: Scheduler) -> list[str]:
    """Keys of all tasks of a scheduler, for `Client.run_on_scheduler`."""
    return [str(key) for key in dask_scheduler.tasks]


def _data_names(dask_worker: Worker) -> list[str]:
    return [str(key) for key in dask_worker.data]
