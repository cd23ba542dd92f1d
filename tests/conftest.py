from __future__ import annotations

import gc
from collections.abc import Iterator

import dask
import pytest
from hypothesis import HealthCheck, settings

# No deadlines, since machines are busy at times; the same examples each time, so that a failure
# comes from a change.
settings.register_profile(
    "project",
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def patient_clusters() -> Iterator[None]:
    """Have a LocalCluster keep its nannies.

    It closes the nanny of a worker that is away some seconds after it was lost, though it may have
    come back in between and been killed once more by the next test.
    """
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}):
        yield


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Have nothing released by luck, because this process happens to collect its garbage."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()
