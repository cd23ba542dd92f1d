"""Stops a process for a while, or lets it run a tenth of the time: a process of its own.

It runs as `python signals.py PID ACTION SECONDS`, with action "hang" or "slow", imports the
standard library alone, and lets the process go on when it ends or gets SIGTERM. A process that has
ended is left alone, also when its number was given to another one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

RUN_S = 0.004
STOP_S = 0.036


def started(pid: int) -> str:
    """When a process was started, as Linux says it; empty where it does not."""
    try:
        # The name, in brackets, may have spaces in it.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return ""


def disturb(pid: int, action: str, duration_s: float) -> None:
    """Stop a process, all the time or nine tenths of it."""
    same = started(pid)
    end_s = time.monotonic() + duration_s
    try:
        while (left_s := end_s - time.monotonic()) > 0.0 and started(pid) == same:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(min(left_s, STOP_S))
            if action == "slow":
                os.kill(pid, signal.SIGCONT)
                time.sleep(RUN_S)
    except ProcessLookupError:
        return
    finally:
        if started(pid) == same:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    disturb(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
