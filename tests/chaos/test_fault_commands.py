"""`dask dml chaos` and `dask dml faults`: what they print, refuse and return."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from dask_dml.cli import main
from dask_dml.faults import TOPIC, FaultEvent
from dask_dml.faults.schedule import draw_schedule

DEADLINE_S = 60.0


def call(*arguments, status=0):
    """Run a command in this process; its result."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kinds", "kill,murder"], "murder: choose from kill, hang"),
        (["--seeds", "many"], "not a number, nor two as in 0-19"),
        (["--seeds", "5-3"], "ends before it begins"),
        (["--scheduler", "tcp://127.0.0.1:9"], "--allow-foreign"),
        (["--allow-foreign"], "--allow-foreign needs --scheduler"),
        (["--network", "none", "--kinds", "partition"], "--network proxy or netns"),
        (["--workers", "0"], "--workers"),
        (["--seconds", "0"], "--seconds"),
    ],
)
def test_bad_usage(arguments, said):
    assert said in call("chaos", *arguments, status=2).stderr


class TestChaos:
    @pytest.fixture(autouse=True)
    def on_the_shared_cluster(self, arena, monkeypatch):
        """Have the command use the cluster of all tests here, and leave it open."""
        cluster = arena.cluster
        monkeypatch.setattr(cluster, "close", lambda: None)
        monkeypatch.setattr("dask_dml.faults.chaos.ChaosCluster", lambda *_, **__: cluster)

    def test_a_row_a_schedule(self, arena):
        result = call(
            "chaos", "--store", arena.store, "--seeds", "3-4", "--kinds", "kill,hang",
            "--seconds", "2",
        )  # fmt: skip
        rows = result.stdout.splitlines()
        assert rows[0].split() == ["seed", "faults", "seconds", "fits", "rounds", "same", "events"]
        assert [row.split()[0] for row in rows[1:]] == ["3", "4"]
        assert all(" yes " in row for row in rows[1:])

    def test_json_has_it_all(self, arena):
        result = call(
            "chaos", "--store", arena.store, "--seeds", "6", "--kinds", "kill", "--seconds", "2",
            "--json",
        )  # fmt: skip
        (found,) = map(json.loads, result.stdout.splitlines())
        schedule = draw_schedule(6, 3, 2.0, ["kill"])
        assert found["schedule"] == json.loads(schedule.to_json())
        assert (found["seed"], found["same_bits"], found["error"]) == (6, True, None)
        assert found["leftovers"] == []
        assert found["fits"] >= 1
        assert len(found["injections"]) == len(schedule.faults)

    def test_other_bits_are_status_1(self, arena, monkeypatch):
        bits = iter(["one", "another", "another"] * 9)
        monkeypatch.setattr("dask_dml.faults.chaos.trial.fingerprint", lambda model: next(bits))
        result = call(
            "chaos", "--store", arena.store, "--seeds", "1", "--kinds", "join", "--seconds", "0.5",
            status=1,
        )  # fmt: skip
        assert " NO " in result.stdout

    def test_a_fit_that_fails_is_status_1(self, arena, monkeypatch):
        calls = []

        def fit(url, client):
            calls.append(url)
            if len(calls) > 1:
                raise ValueError("no more")
            return arena.model(client=client).fit(*arena.lazy())

        monkeypatch.setattr("dask_dml.fault_commands._fit", fit)
        result = call("chaos", "--seeds", "1", "--kinds", "join", "--seconds", "0.5", status=1)
        assert "seed 1: ValueError: no more" in result.stderr

    def test_a_foreign_cluster_if_told_so(self, arena):
        result = call(
            "chaos", "--store", arena.store, "--seeds", "1", "--kinds", "hang", "--seconds", "1",
            "--scheduler", arena.cluster.address, "--allow-foreign",
        )  # fmt: skip
        assert " yes " in result.stdout.splitlines()[1]
        arena.cluster.mend()


class TestFaults:
    @pytest.fixture
    def event(self, arena):
        """An event on the topic of the shared cluster, that no other test makes."""
        seen = f"seen {time.time_ns()}"
        event = FaultEvent(time.time(), "worker-lost", "tcp://192.0.2.7:1", seen, "told", 1.5, 4)
        arena.cluster.client.log_event(TOPIC, event.as_message())
        return event

    def test_events_in_a_table(self, arena, event):
        head, *rows = call("faults", "--scheduler", arena.cluster.address).stdout.splitlines()
        assert head.split() == ["when", "kind", "worker", "cost", "s", "blocks", "what"]
        (row,) = (row for row in rows if event.evidence in row)
        assert row.split()[1:5] == ["worker-lost", "tcp://192.0.2.7:1", "1.5", "4"]
        assert row.endswith("; told")

    def test_events_as_json(self, arena, event):
        lines = call("faults", "--scheduler", arena.cluster.address, "--json").stdout.splitlines()
        found = [FaultEvent.from_message(json.loads(line)) for line in lines]
        assert event in found

    def test_following(self, arena, event):
        """What was and what comes, each once, until Ctrl-C."""
        program = Path(sys.executable).with_name("dask")
        command = [program, "dml", "faults", "--scheduler", arena.cluster.address]
        with subprocess.Popen(
            [*command, "--follow", "--json"], stdout=subprocess.PIPE, text=True
        ) as process:
            lines = map(json.loads, process.stdout)
            assert any(line["evidence"] == event.evidence for line in lines)
            later = {**event.as_message(), "evidence": "seen later"}
            arena.cluster.client.log_event(TOPIC, later)
            assert next(line for line in lines if line["evidence"] == "seen later") == later
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_S) == 0

    def test_nobody_there_is_status_1(self, monkeypatch):
        monkeypatch.setattr("dask_dml.fault_commands._CONNECT_S", 0.5)
        failed = call("faults", "--scheduler", "tcp://127.0.0.1:9", status=1)
        assert failed.stderr.startswith("Error: ")
