from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dask_dml.cli import main


def run(*arguments):
    return CliRunner().invoke(main, ["chaos", *arguments])


def test_simulated_schedules_are_played_without_a_cluster():
    result = run("--simulated", "--seeds", "0-9", "--workers", "4")
    assert result.exit_code == 0
    assert "10 fits under faults" in result.stdout
    assert "10 with the undisturbed bits" in result.stdout


def test_each_simulated_fit_is_an_object_of_json():
    result = run("--simulated", "--seeds", "3-4", "--kinds", "kill,hang", "--json")
    assert result.exit_code == 0
    fits = [json.loads(line) for line in result.stdout.splitlines()]
    assert [fit["seed"] for fit in fits] == [3, 4]
    assert all(fit["same_bits"] for fit in fits)
    kinds = {fault["kind"] for fit in fits for fault in fit["schedule"]["faults"]}
    assert kinds <= {"kill", "hang"}


def test_a_simulated_fit_that_does_not_end_is_a_failure(monkeypatch):
    monkeypatch.setattr("dask_dml.faults.simulation.fit.LONGEST_S", 1.0)
    result = run("--simulated", "--seeds", "7")
    assert result.exit_code == 1
    assert "seed 7: stalled" in result.stdout


@pytest.mark.parametrize(
    "more", [("--store", "made-up.zarr"), ("--scheduler", "tcp://127.0.0.1:1", "--allow-foreign")]
)
def test_simulated_goes_with_no_cluster_and_no_data(more):
    result = run("--simulated", *more)
    assert result.exit_code == 2
    assert "--simulated" in result.stderr
