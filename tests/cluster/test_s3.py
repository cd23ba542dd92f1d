"""A dataset in a bucket is read by the workers."""

from __future__ import annotations

import uuid

import boto3
import pytest
import s3fs
from distributed import Client, LocalCluster
from moto.server import ThreadedMotoServer

import dask_dml as dml
from dask_dml.linear_model import LogisticRegression


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket on an S3 server of this process; its whereabouts in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"b{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}", environment
    server.stop()


def test_a_fit_from_a_bucket(bucket, problem, local, same_bits, monkeypatch):
    url, environment = bucket
    store = f"{url}/rows.zarr"
    dml.write_dataset(store, problem.X, problem.three, chunks=(128, 6))
    expected = LogisticRegression(runtime=local).fit(
        problem.lazy(problem.X), problem.lazy(problem.three)
    )
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        # The workers find the server by their environment, which they had from here.
        found = client.run(lambda: __import__("os").environ["AWS_ENDPOINT_URL"])
        assert set(found.values()) == {environment["AWS_ENDPOINT_URL"]}
        same_bits(LogisticRegression().fit(store), expected)
        monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", 0.0)
        same_bits(LogisticRegression().fit(store), expected)
