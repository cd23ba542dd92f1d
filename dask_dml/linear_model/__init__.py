"""Linear models: scikit-learn's names and objectives, on data of any size."""

from dask_dml.linear_model.elastic_net import ElasticNet, Lasso
from dask_dml.linear_model.elastic_net_cv import ElasticNetCV, LassoCV
from dask_dml.linear_model.generalised import GammaRegressor, PoissonRegressor, TweedieRegressor
from dask_dml.linear_model.least_squares import LinearRegression, Ridge, RidgeCV
from dask_dml.linear_model.logistic import LogisticRegression, LogisticRegressionCV
from dask_dml.linear_model.models import load_model
from dask_dml.linear_model.robust import HuberRegressor, QuantileRegressor
from dask_dml.linear_model.svm import LinearSVC, LinearSVR

__all__ = [
    "ElasticNet",
    "ElasticNetCV",
    "GammaRegressor",
    "HuberRegressor",
    "Lasso",
    "LassoCV",
    "LinearRegression",
    "LinearSVC",
    "LinearSVR",
    "LogisticRegression",
    "LogisticRegressionCV",
    "PoissonRegressor",
    "QuantileRegressor",
    "Ridge",
    "RidgeCV",
    "TweedieRegressor",
    "load_model",
]
