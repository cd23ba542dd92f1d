"""What is minimised: losses, penalties, and the sums that one block of rows contributes."""

from dask_dml.objective.blocks import Request, Statistics, block_statistics
from dask_dml.objective.losses import (
    GammaLoss,
    HuberLoss,
    LogisticLoss,
    Loss,
    MultinomialLoss,
    PoissonLoss,
    SquaredEpsilonInsensitiveLoss,
    SquaredHingeLoss,
    SquaredLoss,
    TweedieLoss,
)
from dask_dml.objective.penalties import ElasticNetPenalty, L2Penalty
from dask_dml.objective.problem import Problem
from dask_dml.objective.summation import TreeSum
from dask_dml.objective.survey import Survey, TargetKind, survey_block
from dask_dml.objective.width import WidthProblem

__all__ = [
    "ElasticNetPenalty",
    "GammaLoss",
    "HuberLoss",
    "L2Penalty",
    "LogisticLoss",
    "Loss",
    "MultinomialLoss",
    "PoissonLoss",
    "Problem",
    "Request",
    "SquaredEpsilonInsensitiveLoss",
    "SquaredHingeLoss",
    "SquaredLoss",
    "Statistics",
    "Survey",
    "TargetKind",
    "TreeSum",
    "TweedieLoss",
    "WidthProblem",
    "block_statistics",
    "survey_block",
]
