"""The commands `dask dml chaos` and `dask dml faults`."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from distributed import Client

from dask_dml.commands import say
from dask_dml.data import open_dataset, write_dataset
from dask_dml.estimator import LinearEstimator
from dask_dml.faults import TOPIC, FaultEvent
from dask_dml.faults.schedule import KINDS, PARTITIONS, Schedule, draw_schedule
from dask_dml.linear_model import LinearRegression, LogisticRegression
from dask_dml.runtime import Runtime

if TYPE_CHECKING:
    from dask_dml.faults.simulation import SimulatedFit

_ROWS, _COLUMNS, _BLOCK_ROWS = 60_000, 20, 4_000
# How long a fit may take after the faults are over, before it counts as one that does not end.
_LIMIT_S = 120.0
_CONNECT_S = 10.0
# How often what has happened is asked for while it is followed.
_FOLLOW_S = 0.5


def _seeds(_ctx: click.Context, _param: click.Parameter, value: str) -> range:
    first, dash, last = value.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise click.BadParameter(f"{value!r} is not a number, nor two as in 0-19")
    seeds = range(int(first), int(last or first) + 1)
    if not seeds:
        raise click.BadParameter(f"{value!r} ends before it begins")
    return seeds


def _kinds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    kinds = tuple(value.split(","))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(KINDS)}")
    return kinds


@click.command("chaos")
@click.option(
    "--seeds",
    default="0-4",
    show_default=True,
    metavar="A-B",
    callback=_seeds,
    help="Seeds of the schedules, each of which is tried; the same seed is the same schedule.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Machines to start, each a process with a worker's process.",
)
@click.option(
    "--kinds",
    metavar="KIND,...",
    callback=_kinds,
    help=f"Which faults to draw from; by default all that the network allows: {', '.join(KINDS)}.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.0, min_open=True),
    default=6.0,
    show_default=True,
    help="Length of a schedule.",
)
@click.option(
    "--network",
    type=click.Choice(["proxy", "netns", "none"]),
    default="proxy",
    show_default=True,
    help="How machines are cut off: by a relay, in network namespaces (needs root), or not at all.",
)
@click.option("--store", metavar="STORE", help="Dataset to fit; by default one that is made up.")
@click.option("--scheduler", metavar="ADDRESS", help="Disturb this cluster; needs --allow-foreign.")
@click.option(
    "--allow-foreign",
    is_flag=True,
    help="Kill workers of a cluster that was not started here: all of its users will notice.",
)
@click.option(
    "--simulated",
    is_flag=True,
    help="Play the schedules on a virtual clock instead, thousands a minute, without a cluster.",
)
@click.option("--json", "as_json", is_flag=True, help="Print an object of JSON a schedule.")
def chaos_command(
    seeds: range,
    workers: int,
    kinds: tuple[str, ...],
    seconds: float,
    network: str,
    store: str | None,
    scheduler: str | None,
    allow_foreign: bool,
    simulated: bool,
    as_json: bool,
) -> None:
    """Fit while workers are killed, hung, slowed, cut off and more.

    Starts a cluster of its own, fits undisturbed, and then under a schedule of faults for each
    seed, again and again until the schedule is over. Prints a row a schedule. The exit status is 1
    if a fit does not end, ends with other bits than the undisturbed one, or leaves something on
    the cluster.
    """
    from dask_dml.faults.chaos.trial import Trial, run_foreign_trials, run_trials

    if simulated:
        if store is not None or scheduler is not None:
            raise click.UsageError("--simulated needs no cluster and no data: leave out the others")
        if not _simulate(_schedules(seeds, workers, seconds, kinds, foreign=False), as_json):
            sys.exit(1)
        return
    if allow_foreign and scheduler is None:
        raise click.UsageError("--allow-foreign needs --scheduler")
    if scheduler is not None and not allow_foreign:
        raise click.UsageError(
            f"{scheduler} was not started by this command, and its workers would be killed: add "
            "--allow-foreign if that is what you want"
        )

    def show(trials: Iterable[Trial]) -> bool:
        """Print rows as they come; whether all are good."""
        are_good = True
        if not as_json:
            click.echo(_ROW.format("seed", "faults", "seconds", "fits", "rounds", "same", "events"))
        for trial in trials:
            are_good &= trial.is_good
            click.echo(json.dumps(_facts(trial)) if as_json else _row(trial))
            for problem in filter(None, (trial.error, ", ".join(trial.leftovers))):
                say(f"seed {trial.schedule.seed}: {problem}")
        return are_good

    with _dataset(store) as url:

        def fit(client: Client) -> LinearEstimator:
            return _fit(url, client)

        if scheduler is not None:
            say(f"connecting to {scheduler}")
            with Client(scheduler, timeout=_CONNECT_S) as client:
                n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
                schedules = _schedules(seeds, n_workers, seconds, kinds, foreign=True)
                are_good = show(run_foreign_trials(client, schedules, fit, _LIMIT_S))
        else:
            from dask_dml.faults.chaos import ChaosCluster

            named: Any = None if network == "none" else network
            if named is None and PARTITIONS.intersection(kinds):
                raise click.UsageError("partitions need --network proxy or netns")
            if named is None and not kinds:
                kinds = tuple(kind for kind in KINDS if kind not in PARTITIONS)
            schedules = _schedules(seeds, workers, seconds, kinds, foreign=False)
            say(f"starting {workers} workers")
            are_good = show(
                run_trials(lambda: ChaosCluster(workers, network=named), schedules, fit, _LIMIT_S)
            )
    if not are_good:
        sys.exit(1)


def _simulate(schedules: list[Schedule], as_json: bool) -> bool:
    """Print what becomes of simulated fits; whether all are good."""
    from dask_dml.faults.simulation import simulate_all

    def show(fit: SimulatedFit) -> None:
        if as_json:
            click.echo(json.dumps(_simulated_facts(fit)))

    summary = simulate_all(schedules, show)
    if not as_json:
        click.echo(str(summary))
    return not summary.failures


def _simulated_facts(fit: SimulatedFit) -> dict[str, Any]:
    return {
        "seed": fit.schedule.seed,
        "schedule": json.loads(fit.schedule.to_json()),
        "reason": fit.reason,
        "same_bits": fit.same_bits,
        "virtual_seconds": round(fit.virtual_s, 3),
        "rounds": fit.n_rounds,
        "evicted": fit.n_evicted,
        "falsely_evicted": fit.n_falsely_evicted,
        "resubmitted": fit.n_resubmitted,
        "duplicated": fit.n_duplicated,
        "events": [_plain(event.as_message()) for event in fit.events],
    }


def _schedules(
    seeds: range, n_workers: int, length_s: float, kinds: tuple[str, ...], foreign: bool
) -> list[Schedule]:
    from dask_dml.faults.chaos.hands import FOREIGN_KINDS

    chosen = kinds or tuple(sorted(FOREIGN_KINDS) if foreign else KINDS)
    return [draw_schedule(seed, n_workers, length_s, chosen) for seed in seeds]


@contextmanager
def _dataset(store: str | None) -> Iterator[str]:
    """The dataset to fit, or one that is made up for the while."""
    if store is not None:
        yield store
        return
    rng = np.random.default_rng(0)
    X = rng.normal(size=(_ROWS, _COLUMNS))
    y = (X @ rng.normal(size=_COLUMNS) + rng.logistic(size=_ROWS) > 0.0).astype(np.int64)
    with TemporaryDirectory(prefix="dml-chaos-data-") as folder:
        path = Path(folder, "made-up.zarr")
        write_dataset(path, X, y, chunks=(_BLOCK_ROWS, _COLUMNS))
        yield str(path)


def _fit(url: str, client: Client) -> LinearEstimator:
    dataset = open_dataset(url)
    kind = LogisticRegression if dataset.classes is not None else LinearRegression
    model: LinearEstimator = kind(solver="lbfgs", tol=1e-10, runtime=Runtime(client=client))
    return model.fit(dataset)


_ROW = "{:<6}{:<44}{:>8}{:>6}{:>8}  {:<5} {}"


def _row(trial: Any) -> str:
    faults = Counter(fault.kind for fault in trial.schedule.faults)
    events = Counter(event["kind"] for event in trial.events)
    return _ROW.format(
        trial.schedule.seed,
        _counted(faults),
        f"{trial.seconds:.1f}",
        trial.n_fits,
        trial.n_rounds,
        "yes" if trial.same_bits else "NO",
        _counted(events) or "none",
    )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items())


def _facts(trial: Any) -> dict[str, Any]:
    return {
        "seed": trial.schedule.seed,
        "schedule": json.loads(trial.schedule.to_json()),
        "seconds": round(trial.seconds, 3),
        "longest_fit_seconds": round(trial.longest_s, 3),
        "fits": trial.n_fits,
        "rounds": trial.n_rounds,
        "same_bits": trial.same_bits,
        "error": trial.error or None,
        "leftovers": list(trial.leftovers),
        "events": [_plain(event) for event in trial.events],
        "injections": [
            {"at_s": round(done.at_s, 3), "outcome": done.outcome} for done in trial.injections
        ],
    }


def _plain(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event as JSON has it."""
    plain = dict(event)
    if "when" in plain:
        plain["when"] = str(plain["when"])
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in plain.items()
    }


@click.command("faults")
@click.option(
    "--scheduler", metavar="ADDRESS", required=True, help="Of the cluster, as tcp://10.0.0.1:8786."
)
@click.option("--follow", is_flag=True, help="Go on, and print events as they come; end by Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print an object of JSON an event.")
def faults_command(scheduler: str, follow: bool, as_json: bool) -> None:
    """Print what has happened to the workers of a cluster while fits were running.

    Columns are when, kind, worker, evidence, action, and what it cost, in seconds and in blocks
    that had to be made again.
    """
    with Client(scheduler, timeout=_CONNECT_S, set_as_default=False) as client:
        if not follow:
            _print_events((message for _, message in client.get_events(TOPIC)), as_json)
            return
        with suppress(KeyboardInterrupt):
            _print_events(_following(client), as_json)


def _following(client: Client) -> Iterator[Mapping[str, Any]]:
    """Events that there are and that come, until the scheduler is gone.

    They are asked for: a subscription begins some time after it was made, and what happens in
    between would be missed.
    """
    last_s = 0.0
    while client.status == "running":
        try:
            events = client.get_events(TOPIC)
        except OSError:
            return
        yield from (message for time_s, message in events if time_s > last_s)
        last_s = max((time_s for time_s, _ in events), default=last_s)
        time.sleep(_FOLLOW_S)


_EVENT = "{:<8}  {:<18} {:<27} {:>6} {:>6}  {}"


def _print_events(messages: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    """Print events as they come, the first below a line of headings."""
    for number, message in enumerate(messages):
        if as_json:
            click.echo(json.dumps(_plain(message), default=str))
            continue
        if number == 0:
            click.echo(_EVENT.format("when", "kind", "worker", "cost s", "blocks", "what"))
        event = FaultEvent.from_message(message)
        click.echo(
            _EVENT.format(
                time.strftime("%H:%M:%S", time.localtime(event.time_s)),
                event.kind,
                event.worker or "-",
                f"{event.cost_s:.1f}" if event.cost_s else "-",
                event.recomputed_blocks or "-",
                "; ".join(filter(None, (event.evidence, event.action))),
            )
        )


COMMANDS: dict[str, click.Command] = {
    str(command.name): command for command in (chaos_command, faults_command)
}
