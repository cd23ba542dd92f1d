"""Child processes that report in lines of JSON, each the leader of a session that ends with it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from dask_dml.errors import ClusterError
from dask_dml.faults.chaos import signals

# Long enough for a gigabyte of memory to be given back on a loaded machine.
_DYING_S = 30.0
_LOOK_S = 0.01


class Child:
    """A process of `dask_dml.faults.chaos.machine`.

    Parameters
    ----------
    name : str
        For messages.
    command : sequence of str
        What to put before the command.
    spec : mapping
        See `dask_dml.faults.chaos.machine.main`.
    log : path
        Gets its standard error.

    Attributes
    ----------
    reports : list of dict
        What it has reported so far.
    """

    def __init__(
        self, name: str, command: Sequence[str], spec: Mapping[str, Any], log: Path
    ) -> None:
        self.name = name
        self.reports: list[dict[str, Any]] = []
        self._log = log
        self._first: queue.SimpleQueue[bool] = queue.SimpleQueue()
        with log.open("a", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                [*command, sys.executable, "-m", "dask_dml.faults.chaos.machine", json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name=f"dml-chaos-{name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.reports.append(json.loads(line))
            self._first.put(True)
        self._first.put(False)

    @property
    def is_on(self) -> bool:
        """Whether it is running."""
        return self._process.poll() is None

    def wait_for_report(self, timeout_s: float) -> dict[str, Any]:
        """Its first report.

        Raises
        ------
        ClusterError
            If there is none within the time, or the process has ended; with what it said.
        """
        with suppress(queue.Empty):
            self._first.get(timeout=timeout_s)
        if not self.reports:
            said = self._log.read_text(encoding="utf-8")[-2000:]
            raise ClusterError(
                f"the process of {self.name} did not start within {timeout_s:g} s; it said: {said}"
            )
        return self.reports[0]

    def say(self, **facts: Any) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(facts) + "\n")
        self._process.stdin.flush()

    def members(self) -> list[psutil.Process]:
        """All processes of its session that have not ended."""
        found = []
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.Error):
                if os.getsid(process.pid) == self._process.pid and (
                    process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
        return found

    def end(self) -> None:
        """Kill its whole session, and return when none of it runs.

        Raises
        ------
        ClusterError
            If a process does not die, since the system waits for something in its place.
        """
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # The leader's children die by the same signal, but not at the same moment.
        deadline_s = time.monotonic() + _DYING_S
        while left := self.members():
            if time.monotonic() > deadline_s:
                pids = ", ".join(str(process.pid) for process in left)
                raise ClusterError(
                    f"processes of {self.name} run {_DYING_S:g} s after SIGKILL: {pids}; "
                    "see whether their disk or network file system answers"
                )
            time.sleep(_LOOK_S)
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            # What was still to be said, nobody hears.
            with suppress(BrokenPipeError):
                stream.close()


def start_signaller(pid: int, action: str, duration_s: float) -> subprocess.Popen[bytes]:
    """Have a process of its own disturb another one for a while.

    Parameters
    ----------
    pid : int
    action : {"hang", "slow"}
    duration_s : float
    """
    # By its path: it is to start at once, and without our imports.
    return subprocess.Popen(
        [sys.executable, "-I", signals.__file__, str(pid), action, str(duration_s)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
