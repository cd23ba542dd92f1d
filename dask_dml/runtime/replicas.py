"""Data that is to be held more than once, against Dask's own wish to hold all of it once."""

from __future__ import annotations

from collections.abc import Collection

from dask.typing import Key
from distributed import Scheduler
from distributed.active_memory_manager import (
    ActiveMemoryManagerExtension,
    ActiveMemoryManagerPolicy,
    ReduceReplicas,
    Suggestion,
    SuggestionGenerator,
)


class KeepReplicas(ActiveMemoryManagerPolicy):
    """Has the scheduler hold some keys several times while runs need it.

    Dask's active memory manager drops all but one replica of everything, every two seconds. While
    there is something to keep this policy stands in for the one that does so: what is kept is
    replicated where a replica is missing, and the rest is reduced as before.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._kept: dict[str, tuple[frozenset[Key], int]] = {}
        self._reducers: list[ReduceReplicas] = []

    def keep(self, run: str, keys: Collection[Key], n_replicas: int) -> None:
        """Hold keys so many times, until the run drops them."""
        if not self._kept:
            memory_manager = self._memory_manager
            self._reducers = [p for p in memory_manager.policies if isinstance(p, ReduceReplicas)]
            memory_manager.policies.difference_update(self._reducers)
            memory_manager.add_policy(self)
        self._kept[run] = (frozenset(keys), n_replicas)

    def drop(self, run: str) -> None:
        """Hold a run's keys as Dask would; more than once does no harm."""
        if self._kept.pop(run, None) is not None and not self._kept:
            memory_manager = self._memory_manager
            memory_manager.policies.discard(self)
            for policy in self._reducers:
                memory_manager.add_policy(policy)

    def run(self) -> SuggestionGenerator:
        """Suggest what the active memory manager is to replicate and to drop."""
        wanted: dict[Key, int] = {}
        for keys, n_replicas in self._kept.values():
            wanted |= {key: max(n_replicas, wanted.get(key, 0)) for key in keys}
        for key, n_replicas in wanted.items():
            task = self._scheduler.tasks.get(key)
            n_held = len(task.who_has or ()) if task is not None else 0
            if task is not None and n_held:
                for _ in range(n_replicas - n_held):
                    yield Suggestion("replicate", task)
        for policy in self._reducers:
            for suggestion in policy.run():
                if suggestion.ts.key not in wanted:
                    yield suggestion

    @property
    def _memory_manager(self) -> ActiveMemoryManagerExtension:
        memory_manager: ActiveMemoryManagerExtension = self._scheduler.extensions["amm"]
        return memory_manager
