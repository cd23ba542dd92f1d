"""The parameter holder on real processes: hosts are killed and stopped, and the bits stay."""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import chain

import cloudpickle
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed import Event as ClusterEvent

from dask_dml.errors import ClusterError, HolderLostError, StaleRunError
from dask_dml.linear_model import LogisticRegression
from dask_dml.objective import Request, Statistics, TreeSum
from dask_dml.objective.losses import LogisticLoss
from dask_dml.runtime.holder import HolderClient

N_WORKERS = 3
N_BLOCKS = 8
N_KEYS = 2_000
SHARDS = [(0, 1, 2), (3, 7), (4, 5, 6)]
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def fleet():
    """A cluster that may lose workers: its nannies start new ones."""
    # Workers cannot import this module.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with LocalCluster(
        n_workers=N_WORKERS,
        threads_per_worker=1,
        memory_limit="1GiB",
        dashboard_address=":0",
        silence_logs=50,
    ) as cluster:
        yield cluster
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def chief(fleet, until):
    """A client of it; afterwards nothing of a holder may be left anywhere."""
    with Client(fleet) as client:
        client.wait_for_workers(N_WORKERS, timeout=DEADLINE_S)
        yield client
        client.wait_for_workers(N_WORKERS, timeout=2 * DEADLINE_S)
        until(lambda: not left_on(client), f"nothing of a holder left: {left_on(client)}")


@pytest.fixture
def holders(chief):
    """Make holders, and close them all."""
    made = []

    def make(run, **arguments):
        made.append(HolderClient(chief, run, N_BLOCKS, **arguments))
        return made[-1]

    yield make
    for holder in made:
        holder.close()


def workers_of(client):
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def left_on(client):
    def of_worker(dask_worker):
        return [n for n in (*dask_worker.plugins, *dask_worker.handlers) if "holder" in n]

    def of_scheduler(dask_scheduler):
        names = (*dask_scheduler.plugins, *dask_scheduler.handlers, *dask_scheduler.worker_plugins)
        return [name for name in names if "holder" in name]

    found = client.run(of_worker, on_error="ignore")
    return [*chain.from_iterable(found.values()), *client.run_on_scheduler(of_scheduler)]


def request(version=0):
    theta = np.random.default_rng(version).normal(size=(2, N_KEYS // 2))
    return Request(LogisticLoss(), theta, np.zeros(N_KEYS // 2 - 1), 1)


def sums_of(block, asked):
    rng = np.random.default_rng(block)
    gradient = rng.normal(size=asked.theta.shape) * 10.0 ** rng.integers(-8, 8) * asked.theta
    return Statistics(block + 1, float(rng.normal()), gradient, None)


def nodes_of(blocks, asked):
    total = TreeSum(N_BLOCKS)
    for block in blocks:
        total.add((0, block), sums_of(block, asked))
    return total.nodes


def contribute(held, blocks, attempt=0, gate=None):
    """A task: sums of some blocks, given to the holder, or back."""
    asked = held.pull()
    nodes = nodes_of(blocks, asked)
    if gate is not None:
        ClusterEvent(f"{gate}-waits-{blocks[0]}").set()
        ClusterEvent(gate).wait(DEADLINE_S)
    return [] if held.push(blocks, attempt, nodes) else nodes


def submit(client, held, blocks, workers=None, **arguments):
    # A function without a name is sent by value, as are those of this module that it calls.
    task = lambda: contribute(held, blocks, **arguments)  # noqa: E731
    return client.submit(task, workers=workers, pure=False)


def start(client, held, shards=SHARDS, **arguments):
    return [submit(client, held, blocks, **arguments) for blocks in shards]


def total_of(client, holder, held, futures):
    given_back = [node for nodes in client.gather(futures) for node in nodes]
    return holder.collect(held, 8 * N_KEYS, given_back)


def assert_undisturbed(total, version=0):
    expected = TreeSum(N_BLOCKS)
    expected.update(nodes_of(range(N_BLOCKS), request(version)))
    assert total.n_rows == N_BLOCKS * (N_BLOCKS + 1) // 2
    assert total.loss == expected.value.loss
    np.testing.assert_array_equal(total.gradient, expected.value.gradient, strict=True)
    assert total.gradient.flags.aligned


def pid_of(client, worker):
    (pid,) = client.run(os.getpid, workers=[worker]).values()
    return pid


def kill(client, until, *workers):
    pids = [pid_of(client, worker) for worker in workers]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not set(workers) & set(workers_of(client)), "the scheduler has noticed")


def moved(holder, before):
    """Whether the hosts are others than before, all of them there."""
    answer = holder._ask("dml_holder_where")
    holder._take_note(answer)
    return all(
        place.epoch > old.epoch and len(place.hosts) == 2
        for place, old in zip(holder.places, before, strict=True)
    )


@pytest.mark.parametrize("n_ranges", [1, 3])
def test_rounds_have_the_bits_of_the_tree(chief, holders, n_ranges):
    holder = holders("run", n_ranges=n_ranges)
    for version in range(3):
        held = holder.publish(version, request(version))
        total, missing = total_of(chief, holder, held, start(chief, held))
        assert missing == ()
        assert_undisturbed(total, version)
    assert holder.take_events() == []
    assert all(len(set(place.hosts)) == 2 for place in holder.places)


def test_parameters_cross_once_to_a_worker(chief, holders):
    holder = holders("run")
    held = holder.publish(0, request())
    (other,) = set(workers_of(chief)) - set(holder.places[0].hosts)

    def identities(held):
        return id(held.pull().theta.base), id(held.pull().theta.base)

    one, again = chief.submit(identities, held, workers=[other]).result()
    assert one == again


def test_only_missing_blocks_are_named(chief, holders):
    holder = holders("run")
    held = holder.publish(0, request())
    total, missing = total_of(chief, holder, held, start(chief, held, SHARDS[:2]))
    assert total is None
    assert missing == (4, 5, 6)
    # What comes twice, or from a round that is over, does not count.
    again = [submit(chief, held, (0, 1, 2), attempt=1)]
    rest = start(chief, held, [(4, 5, 6)])
    total, _ = total_of(chief, holder, held, again + rest)
    assert_undisturbed(total)


@pytest.mark.parametrize("which", [0, 1])
def test_a_host_is_killed_in_mid_round(chief, holders, until, which):
    holder = holders("run")
    held = holder.publish(0, request())
    before = holder.places
    assert chief.gather(start(chief, held, SHARDS[:1])) == [[]]
    kill(chief, until, before[0].hosts[which])
    total, missing = total_of(chief, holder, held, start(chief, held, SHARDS[1:]))
    assert missing == ()
    assert_undisturbed(total)
    until(lambda: moved(holder, before), "another host")
    kinds = [(event["kind"], event["worker"]) for event in holder.take_events()]
    assert kinds == ([("holder-promoted", before[0].hosts[0])] if which == 0 else [])
    # The third host has all of it.
    kill(chief, until, holder.places[0].hosts[0])
    total, missing = holder.collect(held, 8 * N_KEYS)
    assert missing == ()
    assert_undisturbed(total)


def test_both_hosts_are_killed_at_once(chief, holders, until):
    holder = holders("run")
    held = holder.publish(0, request())
    (other,) = set(workers_of(chief)) - set(holder.places[0].hosts)
    assert chief.gather(start(chief, held, SHARDS[:1])) == [[]]
    waiting = start(chief, held, SHARDS[1:2], workers=[other], gate="both-killed")
    assert ClusterEvent("both-killed-waits-3", client=chief).wait(DEADLINE_S)
    kill(chief, until, *holder.places[0].hosts)
    ClusterEvent("both-killed", client=chief).set()
    # It cannot push, and gives back itself what it has.
    (given_back,) = chief.gather(waiting)
    assert {
        block for (level, i), _ in given_back for block in range(i << level, i + 1 << level)
    } == {
        3,
        7,
    }
    _, missing = holder.collect(held, 8 * N_KEYS, given_back)
    assert missing == (0, 1, 2, 4, 5, 6)
    assert [event["kind"] for event in holder.take_events()] == ["holder-lost"]
    held = holder.publish(0, request())
    again = chief.gather(start(chief, held, [SHARDS[0], SHARDS[2]]))
    assert again == [[], []]
    total, missing = holder.collect(held, 8 * N_KEYS, given_back)
    assert missing == ()
    assert_undisturbed(total)


def test_parameters_that_nobody_has_are_named(chief, holders, until):
    holder = holders("run", replicas=0)
    held = holder.publish(4, request(4))
    kill(chief, until, *holder.places[0].hosts)
    with pytest.raises(HolderLostError, match="no host of the parameter holder has run run"):
        chief.gather(start(chief, held, SHARDS[:1]))
    held = holder.publish(4, request(4))
    total, missing = total_of(chief, holder, held, start(chief, held))
    assert missing == ()
    assert_undisturbed(total, 4)


def test_a_primary_that_is_stopped_is_replaced_and_knows_when_it_wakes(chief, holders, until):
    holder = holders("run")
    held = holder.publish(0, request())
    before = holder.places
    primary = before[0].hosts[0]
    others = [worker for worker in workers_of(chief) if worker != primary]
    # Each of the others has pulled before.
    chief.gather([submit(chief, held, SHARDS[0], workers=[w]) for w in others])
    pid = pid_of(chief, primary)
    os.kill(pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        futures = start(chief, held, SHARDS[1:], workers=others)
        total, missing = total_of(chief, holder, held, futures)
        assert time.monotonic() - began_s < DEADLINE_S
        assert missing == ()
        assert_undisturbed(total)
        until(lambda: moved(holder, before), "another primary")
        assert [event["kind"] for event in holder.take_events()] == ["holder-promoted"]
    finally:
        os.kill(pid, signal.SIGCONT)
    # It is the primary in its own eyes still; its word counts no more.
    late = submit(chief, held, (0, 1, 2), workers=[primary], attempt=9)
    total, missing = total_of(chief, holder, held, [late])
    assert missing == ()
    assert_undisturbed(total)


async def promote_unheard(run, dask_scheduler):
    """Promote a primary as the directory does, with an answer that gets lost."""
    directory = dask_scheduler.plugins["dml-holder-directory"]
    (at,) = directory._runs[run].ranges
    at.last_epoch += 1
    # With a replica that is gone: only the directory can tell the primary of another.
    hosts = (at.hosts[0], "tcp://127.0.0.1:9")
    await directory._call(
        at.hosts[0], "dml_holder_promote", DEADLINE_S,
        run=run, index=0, epoch=at.last_epoch, hosts=hosts,
    )  # fmt: skip
    return at.epoch


def test_a_promotion_whose_answer_was_lost_is_settled_by_a_newer_one(chief, holders):
    holder = holders("run")
    held = holder.publish(0, request())
    before = holder.places
    assert chief.run_on_scheduler(promote_unheard, "run") == before[0].epoch
    total, missing = total_of(chief, holder, held, start(chief, held))
    assert missing == ()
    assert_undisturbed(total)
    assert moved(holder, before)


def test_a_message_of_a_run_that_is_over_is_refused_by_name(chief, holders):
    old = HolderClient(chief, "old-run", N_BLOCKS)
    held = old.publish(0, request())
    holder = holders("new-run")
    now = holder.publish(0, request())
    old.close()
    with pytest.raises(StaleRunError, match=r"old-run is over.*holders are of runs: new-run"):
        chief.gather(start(chief, held, SHARDS[:1]))
    with pytest.raises(StaleRunError, match=r"old-run is refused.*new-run"):
        old.publish(1, request(1))
    total, _ = total_of(chief, holder, now, start(chief, now))
    assert_undisturbed(total)


def test_runs_side_by_side(chief, holders):
    runs = [holders(f"run-{number}") for number in range(3)]
    held = [holder.publish(number, request(number)) for number, holder in enumerate(runs)]
    futures = [start(chief, one) for one in held]
    for number, holder in enumerate(runs):
        total, _ = total_of(chief, holder, held[number], futures[number])
        assert_undisturbed(total, number)
    runs[0].close()
    one = runs[1].publish(7, request(7))
    total, _ = total_of(chief, runs[1], one, start(chief, one))
    assert_undisturbed(total, 7)


def test_a_client_that_goes_leaves_nothing(fleet, chief, until):
    with Client(fleet) as other:
        HolderClient(other, "left-behind", N_BLOCKS).publish(0, request())
        assert left_on(chief)
    until(lambda: not left_on(chief), "nothing left")


def test_a_scheduler_without_the_package_of_this_version_is_named(chief, holders, monkeypatch):
    monkeypatch.setattr("dask_dml.runtime.holder.__version__", "0.0.1")
    holders_before = left_on(chief)
    with pytest.raises(ClusterError, match=r"run run comes from 0\.0\.1"):
        holders("run").publish(0, request())
    assert holders_before == []


# -- fits ---------------------------------------------------------------------------------------


def hosts_of_the_run(client):
    def hosts(dask_scheduler):
        (run,) = dask_scheduler.plugins["dml-holder-directory"]._runs.values()
        return run.ranges[0].hosts

    return client.run_on_scheduler(hosts)


@pytest.fixture
def always(monkeypatch):
    """Have all rounds go through the holder, and few rows make several blocks."""
    monkeypatch.setattr("dask_dml.runtime.cluster.HOLDER_BYTES", 0)


@pytest.mark.parametrize(
    ("which", "how"),
    [
        ((0,), signal.SIGKILL),
        ((1,), signal.SIGKILL),
        ((0, 1), signal.SIGKILL),
        ((0,), signal.SIGSTOP),
    ],
    ids=["primary", "replica", "both", "primary-stopped"],
)
def test_a_fit_has_the_undisturbed_bits(
    chief, problem, descent, local, same_bits, on_round, always, small_blocks, which, how
):
    data = problem.X, problem.three, problem.weight
    undisturbed = descent(runtime=local).fit(*data)
    struck = []

    def strike():
        hosts = hosts_of_the_run(chief)
        struck.extend(hosts[index] for index in which)
        pids = [pid_of(chief, worker) for worker in struck]
        for pid in pids:
            os.kill(pid, how)

    fitted = descent(callbacks=[on_round(1, strike)]).fit(*data)
    same_bits(fitted, undisturbed)
    assert struck
    # On a machine that is busy a replica may seem lost as well, and more may be told than this.
    faults = fitted.faults_[fitted.faults_["kind"].isin(["holder-promoted", "holder-lost"])]
    if which != (1,):
        assert not set(faults["worker"]).isdisjoint(struck), fitted.faults_.to_string()


def test_an_undisturbed_fit_through_the_holder(
    chief, problem, descent, local, same_bits, always, small_blocks
):
    data = problem.X, problem.two
    same_bits(descent().fit(*data), descent(runtime=local).fit(*data))
    solver = {"solver": "newton"}
    fitted = LogisticRegression(**solver).fit(*data)
    same_bits(fitted, LogisticRegression(runtime=local, **solver).fit(*data))
    assert left_on(chief) == []
