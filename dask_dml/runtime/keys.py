"""The names of a fit's tasks on a cluster: how they are made, and how they are read."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

Key = tuple[str | int, ...]

_OURS = "dml-"
# How the keys of tasks begin that make one block.
_BLOCK_TASKS = tuple(f"{_OURS}{name}" for name in ("load", "made", "send", "cut", "move", "target"))


def new_run_id() -> str:
    """Make an identifier that no other run has."""
    return uuid.uuid4().hex[:12]


def run_key(run_id: str, name: str, *numbers: int) -> Key:
    """Key of a task: a name with the run, and numbers."""
    return (f"{_OURS}{name}-{run_id}", *numbers)


def is_ours(key: Hashable) -> bool:
    """Whether a key is of a task of some fit."""
    return isinstance(key, tuple) and isinstance(key[0], str) and key[0].startswith(_OURS)


def block_of(run_id: str, key: Sequence[Any]) -> int | None:
    """The block that a task of a run makes, sends or moves; None for other tasks."""
    name = str(key[0])
    is_one = name.endswith(f"-{run_id}") and name.startswith(_BLOCK_TASKS)
    return int(key[1]) if is_one else None


def itself(value: T) -> T:
    """The task that only has its argument kept on a worker."""
    return value
