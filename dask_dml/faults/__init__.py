"""Workers that fall silent, die or leave: how that is noticed, decided and recorded."""

from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.timeline import KINDS, TOPIC, FaultEvent

__all__ = ["KINDS", "TOPIC", "FaultEvent", "FaultPolicy"]
