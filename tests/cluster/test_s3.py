"""A dataset in a bucket is read by the workers; checkpoints are kept in one."""

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


def test_checkpoints_in_a_bucket(bucket, problem, local, same_bits, on_round):
    url, _ = bucket
    data = problem.X, problem.two

    def stop():
        raise KeyboardInterrupt

    def model(**arguments):
        return LogisticRegression(solver="lbfgs", runtime=local, **arguments)

    expected = model().fit(*data)
    place = dml.Checkpoint(f"{url}/fits/nightly", every_rounds=1)
    with pytest.raises(KeyboardInterrupt) as raised:
        model(checkpoint=place, callbacks=[on_round(4, stop)]).fit(*data)
    assert f"{url}/fits/nightly/round-000005" in "".join(raised.value.__notes__)
    # As if killed in mid-write: objects of the newest one are missing, its manifest among them.
    client = boto3.client("s3")
    name = url.removeprefix("s3://")
    prefix = "fits/nightly/"
    client.delete_object(Bucket=name, Key=f"{prefix}round-000005/zarr.json")
    resumed = model(checkpoint=place).fit(*data)
    same_bits(resumed, expected)
    (event,) = resumed.faults_.to_dict("records")
    assert event["round"] == 3
    assert "passed over, since incomplete: round-000005" in event["evidence"]
    n_rounds = len(expected.history_)
    left = {key["Key"] for key in client.list_objects_v2(Bucket=name, Prefix=prefix)["Contents"]}
    assert {key.removeprefix(prefix).split("/")[0] for key in left} == {
        f"round-{n:06d}" for n in (n_rounds - 1, n_rounds)
    }
    same_bits(model(checkpoint=place).fit(*data), expected)
