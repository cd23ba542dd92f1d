"""How it is minimised: solvers that are asked what they want to know, and are told."""

from dask_dml.solvers.core import Ask, Goal, Solver, SolverState, StoredState
from dask_dml.solvers.first_order import GradientDescent
from dask_dml.solvers.lbfgs import LBFGS
from dask_dml.solvers.newton import Newton
from dask_dml.solvers.perspective import PerspectiveNewton
from dask_dml.solvers.proximal import ProximalNewton
from dask_dml.solvers.relay import Relay
from dask_dml.solvers.smoothing import SmoothingNewton
from dask_dml.solvers.subsampled import SubsampledNewton

__all__ = [
    "LBFGS",
    "Ask",
    "Goal",
    "GradientDescent",
    "Newton",
    "PerspectiveNewton",
    "ProximalNewton",
    "Relay",
    "SmoothingNewton",
    "Solver",
    "SolverState",
    "StoredState",
    "SubsampledNewton",
]
