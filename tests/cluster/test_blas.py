"""Wide Gram matrices are summed by BLAS, whose kernels may differ from worker to worker."""

from __future__ import annotations

import os
import subprocess
import sys

import dask.array as da
import numpy as np
import pytest

from dask_dml.linear_model import LogisticRegression
from dask_dml.objective.blas import blas_environment, blas_name


def wide(p, n=700):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, p)).astype(np.float32)
    y = (X[:, 0] + rng.normal(size=n) > 0.0).astype(int)
    return da.from_array(X, chunks=(n // 4, p)), da.from_array(y, chunks=n // 4)


@pytest.fixture
def two_kinds_of_blas(client):
    """Workers that say by turns that their BLAS is of one kind and of another."""

    def pretend():
        from itertools import cycle

        from dask_dml.runtime import shard

        shard.blas_name = cycle(["openblas Haswell", "openblas Nehalem"]).__next__

    def stop():
        from dask_dml.objective.blas import blas_name
        from dask_dml.runtime import shard

        shard.blas_name = blas_name

    client.run(pretend)
    yield
    client.run(stop)


@pytest.mark.usefixtures("two_kinds_of_blas")
@pytest.mark.parametrize(("p", "n_told"), [(300, 1), (20, 0)])
def test_a_fleet_with_different_blas_is_told_of_once(client, p, n_told):
    fitted = LogisticRegression(solver="newton").fit(*wide(p))
    told = fitted.faults_[fitted.faults_["kind"] == "blas-differs"]
    assert len(told) == n_told
    for event in told.itertuples():
        assert "openblas Haswell on tcp://" in event.evidence
        assert "openblas Nehalem on tcp://" in event.evidence
        assert "OPENBLAS_CORETYPE" in event.action


def test_a_fleet_of_one_blas_is_not_told_of(client):
    fitted = LogisticRegression(solver="newton").fit(*wide(300))
    assert "blas-differs" not in set(fitted.faults_["kind"])


def test_processes_can_be_made_to_compute_as_this_one():
    code = "from dask_dml.objective.blas import blas_name; print(blas_name())"

    def name_in(environment):
        command = [sys.executable, "-c", code]
        clean = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
        found = subprocess.run(
            command, env=clean | environment, capture_output=True, text=True, check=True
        )
        return found.stdout.strip()

    like_this_one = name_in(blas_environment())
    assert like_this_one == blas_name()
    if blas_environment():
        assert name_in({"OPENBLAS_CORETYPE": "Nehalem"}) != like_this_one
