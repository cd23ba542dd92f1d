"""Our fits in turns with those of other programs, each in a process of its own."""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from figures import Contender, Figure, Part, say
from works import GAP, Array, Target, Work, objective

# A program may read and warm up so long, and its fit may take so long: no longer than a few times
# the fastest so far, since beyond that it does not matter, but never cut short before that.
READY_S = 60.0
LIMIT_S = 150.0
LEAST_LIMIT_S = 20.0
LIMIT_TIMES = 2.0
# A gap at which a program counts as having solved the problem at all.
SOLVED_GAP = 1e-4
# Turns are taken until there are so many, or they have taken so long.
TURNS = 5
TURNS_S = 10.0


FITTING = "fitting"


class PeerError(Exception):
    """A program that did not fit, and why."""


class StoppedError(PeerError):
    """It took too long over something."""

    def __init__(self, seconds: float, doing: str) -> None:
        super().__init__(f"stopped after {seconds:.0f} s of {doing}")
        self.seconds = seconds
        self.doing = doing


class PeerProcess:
    """Another program, at work in a process group of its own."""

    def __init__(self, python: str, folder: Path, peer: str) -> None:
        script = Path(__file__).with_name("peers.py")
        with (folder / "peer.log").open("ab") as log:
            self._process = subprocess.Popen(
                [python, str(script), str(folder), peer],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                # Nothing of ours is to be found by it, nor to hold its BLAS.
                env={
                    name: value
                    for name, value in os.environ.items()
                    if name != "PYTHONPATH" and not name.startswith("OPENBLAS")
                },
            )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._answers.put(line)
        self._answers.put("")

    def answer(self, limit_s: float, doing: str) -> dict[str, Any]:
        """What it says next."""
        try:
            line = self._answers.get(timeout=limit_s)
        except queue.Empty as error:
            raise StoppedError(limit_s, doing) from error
        if not line:
            raise PeerError(f"its process died while {doing}")
        answer = json.loads(line)
        if "problem" in answer:
            raise PeerError(answer["problem"])
        return answer

    def fit(self, limit_s: float) -> dict[str, Any]:
        """Have it fit once."""
        assert self._process.stdin is not None
        self._process.stdin.write("fit\n")
        self._process.stdin.flush()
        return self.answer(limit_s, FITTING)


@dataclass
class Turns:
    """Seconds of our fits and of another program's, in pairs."""

    ours_s: list[float] = field(default_factory=list)
    theirs_s: list[float] = field(default_factory=list)
    remark: str = ""
    gap: float = math.inf

    @property
    def ratios(self) -> list[float]:
        return [o / t for o, t in zip(self.ours_s, self.theirs_s, strict=True)]


def _computed(values: Any) -> Array:
    """A dask array's values, a block at a time: as a whole they would all come to one worker."""
    if isinstance(values, np.ndarray):
        return values
    return np.concatenate([values.blocks[i].compute() for i in range(values.numblocks[0])])


class Comparison:
    """One work, done by all.

    Parameters
    ----------
    work : Work
    n_rows : int
    python : str
        Interpreter that has the other programs.
    """

    def __init__(self, work: Work, n_rows: int, python: str) -> None:
        self._work = work
        self._n_rows = n_rows
        self._python = python
        self._turns: dict[str, Turns] = {}
        self._failures: dict[str, str] = {}
        self._stopped_s: dict[str, float] = {}
        self._objectives: dict[str, float] = {}
        self._model: Any = None

    def run(self) -> Part:
        work = self._work
        with (
            tempfile.TemporaryDirectory(prefix="dml-bench-") as name,
            work.placed(work.data(self._n_rows)) as pair,
        ):
            folder = Path(name)
            X, y = self._write(folder, pair)
            # Also the warm-up of ours; closer to the optimum than anybody is asked to come.
            exact = work.model(1e-3 * GAP).fit(*pair)
            self._objectives["exact"] = objective(work, X, y, exact.coef_, exact.intercept_)
            self._fit(pair)
            self._objectives["dask_dml"] = objective(
                work, X, y, self._model.coef_, self._model.intercept_
            )
            for peer in work.peers:
                try:
                    self._take_turns(peer, folder, pair, X, y)
                except PeerError as error:
                    self._failures[peer] = str(error)
                    if isinstance(error, StoppedError) and error.doing == FITTING:
                        self._stopped_s[peer] = error.seconds
                    say(f"  {peer}: {error}")
        return Part(self._figures(), self._contenders())

    def _write(self, folder: Path, pair: Any) -> tuple[Array, Array]:
        """Write the data for the others, and read it back without holding it."""
        work = self._work
        for name, values in zip(("X", "y"), pair, strict=True):
            np.save(folder / f"{name}.npy", _computed(values))
        (folder / "work.json").write_text(
            json.dumps(
                {
                    "loss": work.loss,
                    "strength": work.strength,
                    "absolute": work.absolute,
                    "fit_intercept": work.fit_intercept,
                }
            )
        )
        return np.load(folder / "X.npy", mmap_mode="r"), np.load(folder / "y.npy")

    def _fit(self, pair: Any) -> float:
        model = self._work.model(GAP)
        start_s = time.perf_counter()
        model.fit(*pair)
        self._model = model
        return time.perf_counter() - start_s

    def _take_turns(self, peer: str, folder: Path, pair: Any, X: Array, y: Array) -> None:
        turns = Turns()
        with PeerProcess(self._python, folder, peer) as process:
            release = process.answer(READY_S, "reading and warming up")["release"]
            spent_s = 0.0
            while len(turns.ours_s) < TURNS and spent_s < TURNS_S:
                ours_s = self._fit(pair)
                found = process.fit(self._limit_s())
                turns.ours_s.append(ours_s)
                turns.theirs_s.append(found["seconds"])
                spent_s += ours_s + found["seconds"]
                turns.remark = release
                if found["n_iter"]:
                    turns.remark += f", {found['n_iter']} iterations"
        with np.load(folder / f"{peer}.npz") as found:
            value = objective(self._work, X, y, found["coef"], found["intercept"])
        self._objectives[peer] = value
        self._turns[peer] = turns
        turns.gap = self._gap(peer)
        say(
            f"  {peer}: {statistics.median(turns.theirs_s):.3g} s, gap {turns.gap:.0e}; ours "
            f"{statistics.median(turns.ours_s):.3g} s"
        )

    def _limit_s(self) -> float:
        solved_s = [min(t.theirs_s) for t in self._turns.values() if t.gap < SOLVED_GAP]
        return min(max(LIMIT_TIMES * min(solved_s, default=LIMIT_S), LEAST_LIMIT_S), LIMIT_S)

    def _gap(self, program: str) -> float:
        best = min(self._objectives.values())
        return (self._objectives[program] - best) / abs(best)

    # -- what came out ----------------------------------------------------------------------

    @property
    def _title(self) -> str:
        return self._work.title.format(self._n_rows)

    def _figures(self) -> list[Figure]:
        title, model = self._title, self._model
        figures = [self._ratio(target) for target in self._work.targets]
        gap = Figure(
            f"{title}, relative gap reached",
            self._gap("dask_dml"),
            "",
            GAP,
            f"recomputed in float64; its own bound is {model.gap_:.0e}",
        )
        passes = Figure(
            f"{title}, passes over the data", model.n_passes_, "", self._work.most_passes, ""
        )
        return [*figures, gap, *([passes] if math.isfinite(self._work.most_passes) else [])]

    def _ratio(self, target: Target) -> Figure:
        """Our time over that of the fastest program that counts."""
        what = f"{self._title}, time over {target.over}"
        medians_s = {
            peer: statistics.median(turns.theirs_s)
            for peer, turns in self._turns.items()
            if (not target.peers or peer in target.peers) and self._gap(peer) <= target.gap
        }
        stopped_s = {p: s for p, s in self._stopped_s.items() if p in target.peers}
        if not medians_s and stopped_s:
            peer = min(stopped_s, key=stopped_s.__getitem__)
            ours_s = statistics.median(self._ours_s)
            detail = (
                f"or less: {ours_s:.3g} s against more than {stopped_s[peer]:.3g} s of {peer}, "
                "after which it was stopped"
            )
            return Figure(what, ours_s / stopped_s[peer], "x", target.ratio, detail)
        if not medians_s:
            missing = "; ".join(
                f"{peer}: {self._failures[peer]}"
                for peer in target.peers or self._failures
                if peer in self._failures
            )
            return Figure(what, math.nan, "x", target.ratio, f"no such peer ({missing})")
        peer = min(medians_s, key=medians_s.__getitem__)
        turns = self._turns[peer]
        detail = (
            f"{statistics.median(turns.ours_s):.3g} s against {medians_s[peer]:.3g} s of {peer}; "
            f"ratios {', '.join(f'{ratio:.3g}' for ratio in turns.ratios)}"
        )
        return Figure(what, statistics.median(turns.ratios), "x", target.ratio, detail)

    @property
    def _ours_s(self) -> list[float]:
        return [seconds for turns in self._turns.values() for seconds in turns.ours_s]

    def _contenders(self) -> list[Contender]:
        ours_s = self._ours_s
        model = self._model
        rows = [
            Contender(
                self._title,
                "**dask_dml**",
                statistics.median(ours_s) if ours_s else None,
                self._gap("dask_dml"),
                f"{model.n_passes_:.3g} passes, {len(model.history_)} rounds",
            )
        ]
        for peer in self._work.peers:
            if peer in self._failures:
                rows.append(Contender(self._title, peer, None, None, self._failures[peer]))
                continue
            turns = self._turns[peer]
            theirs_s = statistics.median(turns.theirs_s)
            rows.append(Contender(self._title, peer, theirs_s, self._gap(peer), turns.remark))
        return rows
