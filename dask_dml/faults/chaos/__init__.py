"""Faults on purpose: seeded schedules against real clusters.

`ChaosCluster` starts a cluster of real processes on this host; `Chaos` lets a schedule of faults
loose on it, or, if told so, on a cluster that others started.
"""

from dask_dml.faults.chaos.harness import ChaosCluster
from dask_dml.faults.chaos.injection import Chaos, Injection
from dask_dml.faults.chaos.metadata import StandInMetadata
from dask_dml.faults.schedule import KINDS, Fault, Schedule, draw_schedule

__all__ = [
    "KINDS",
    "Chaos",
    "ChaosCluster",
    "Fault",
    "Injection",
    "Schedule",
    "StandInMetadata",
    "draw_schedule",
]
