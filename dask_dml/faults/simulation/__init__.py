"""A simulated cluster on a virtual clock, which runs the state machines that the real one runs.

Verdicts come from `Membership`, attempts from `Ledger`, parameters and sums are with `Holder`, and
add up by `TreeSum`: only machines, network and what Dask does are played. So thousands of schedules
of faults can be run a minute, and each again from its seed.
"""

from dask_dml.faults.simulation.clock import Noise, VirtualClock
from dask_dml.faults.simulation.fit import Recovery, SimulatedFit, simulate
from dask_dml.faults.simulation.fleet import FleetFigures, watch_fleet
from dask_dml.faults.simulation.summary import Summary, simulate_all

__all__ = [
    "FleetFigures",
    "Noise",
    "Recovery",
    "SimulatedFit",
    "Summary",
    "VirtualClock",
    "simulate",
    "simulate_all",
    "watch_fleet",
]
