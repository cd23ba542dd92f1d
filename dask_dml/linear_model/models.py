"""Models that were saved."""

from __future__ import annotations

from typing import Any

from dask_dml.errors import StoreFormatError
from dask_dml.estimator import (
    MODEL_FORMAT,
    LinearEstimator,
    plain_value,
)
from dask_dml.linear_model.elastic_net import ElasticNet, Lasso
from dask_dml.linear_model.elastic_net_cv import ElasticNetCV, LassoCV
from dask_dml.linear_model.generalised import GammaRegressor, PoissonRegressor, TweedieRegressor
from dask_dml.linear_model.least_squares import LinearRegression, Ridge, RidgeCV
from dask_dml.linear_model.logistic import LogisticRegression, LogisticRegressionCV
from dask_dml.linear_model.robust import HuberRegressor, QuantileRegressor
from dask_dml.linear_model.svm import LinearSVC, LinearSVR

ESTIMATORS: dict[str, type[LinearEstimator]] = {
    cls.__name__: cls
    for cls in (
        LogisticRegression,
        LogisticRegressionCV,
        LinearRegression,
        Ridge,
        RidgeCV,
        Lasso,
        ElasticNet,
        LassoCV,
        ElasticNetCV,
        PoissonRegressor,
        GammaRegressor,
        TweedieRegressor,
        HuberRegressor,
        QuantileRegressor,
        LinearSVC,
        LinearSVR,
    )
}


def load_model(store: Any) -> Any:
    """Read a model that an estimator's `save` wrote.

    Parameters
    ----------
    store : str, Path or zarr store

    Returns
    -------
    estimator
        Fitted, of the class that was saved; its runtime, checkpoint and callbacks are the defaults.

    Raises
    ------
    StoreFormatError
        If there is no such model, or it is of a newer format.
    """
    from dask_dml.data.store import load_arrays

    arrays, attributes = load_arrays(store)
    name, version = attributes.get("estimator"), attributes.get("format")
    if attributes.get("kind") != "model" or name not in ESTIMATORS or version != MODEL_FORMAT:
        raise StoreFormatError(
            f"{store} does not hold a model that this version reads: found kind "
            f"{attributes.get('kind')!r}, estimator {name!r}, format {version!r}; expected "
            f"'model', one of {', '.join(ESTIMATORS)}, and {MODEL_FORMAT}"
        )
    parameters = {key: plain_value(value) for key, value in attributes["parameters"].items()}
    return ESTIMATORS[name](**parameters)._restore(arrays, attributes)
