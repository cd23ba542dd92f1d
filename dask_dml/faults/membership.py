"""Who works, who is suspect, who is dead: three ways of detecting, one verdict.

`Membership` is the watcher's state machine. What it is told (heartbeats, answers to probes, what a
nanny sees of its worker's process, notices) comes with the time; what it wants done it returns as
actions. It reads no clock, opens no socket and draws only on the seeded numbers it was given.

A worker is *asked about* when its heartbeat is late by more than the threshold of phi, pause not
counted, or when a probe of the round robin failed: a direct probe, probes through other workers,
and its nanny, all at once, and again each second while it is late or suspect.

It is *suspect* when one of these holds:

* phi, pause counted, reaches ``policy.phi`` (active);
* its heartbeats are late or never came, and the direct probe and all probes through others failed
  that were sent since its last sign of life (passive); or two direct probes failed, whatever its
  heartbeats say (a partition one way, an event loop that is held);
* its nanny sees its process stopped.

It is *dead* when one of these holds, and evicted:

* its nanny says that its process is gone: at once;
* its nanny sees its process stopped, and it has been silent for ``policy.confirm_s``;
* its nanny does not answer, or it has none, probes fail, and either nothing was heard of it for
  ``policy.unreachable_s`` or no direct probe was answered for so long. Time in which nobody else
  was heard either does not count: then it is the watcher who is cut off.

Never while its nanny sees the process run, busy (it holds the GIL, or its event loop), swap, or
traced by a debugger. Then it stays suspect until it speaks again, or until Dask's own limit.

It is *rehabilitated* when it was heard since and no direct probe is unanswered, or when two direct
probes in a row were answered (its heartbeats may be blocked).

It is *drained* on notice of preemption, at once; and when the predictor gives a probability of loss
of at least ``policy.loss_probability`` twice in a row. Predictions alone drain at most a quarter of
the workers at a time and never the last.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from itertools import takewhile

import numpy as np

from dask_dml.faults.detectors import MINIMUM_SIGMA_S, LocalPause, PhiAccrual, deviations_of
from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.telemetry import PREDICTOR_FEATURES, Telemetry, feature_matrix
from dask_dml.faults.verdicts import (
    Action,
    Drain,
    Evict,
    HeartbeatsBlocked,
    Look,
    Probe,
    ProcessView,
    Rehabilitate,
    Suspect,
    Verdict,
)

__all__ = [
    "TICK_S",
    "Action",
    "Drain",
    "Evict",
    "HeartbeatsBlocked",
    "Look",
    "Membership",
    "Probe",
    "ProcessView",
    "Rehabilitate",
    "Suspect",
    "Verdict",
    "heartbeat_interval_s",
]

TICK_S = 0.25

# Reading one and judging by it takes the scheduler about 4 us: 0.2 % of a core, on any fleet.
_HEARTBEATS_PER_S = 500.0
# Between one asking and the next, and how many workers are asked about in a second at most.
_ASK_S = 1.0
_ASKED_PER_S = 20.0
# The round robin: a worker's turn comes no sooner than the first, a turn no sooner than the second.
_ROUND_S = 1.5
_TURN_S = 0.5
# A worker without a heartbeat for so long after joining, or after its last, has them blocked.
_FIRST_HEARTBEAT_S = 5.0
_HEARTBEATS_LOST_S = 10.0
_PREDICT_S = 0.5
_PREDICTED_WITHIN_S = 30.0
_DRAINED_SHARE = 0.25


def heartbeat_interval_s(policy: FaultPolicy, n: int) -> float:
    """Interval at which each of `n` workers is to send heartbeats: 500 a second in all at most."""
    return max(policy.heartbeat_s, n / _HEARTBEATS_PER_S)


class _Worker:
    """What is known of one worker. Times are on the clock that local pauses are taken out of."""

    __slots__ = (
        "address", "answered_s", "answers", "ask_s", "asked_s", "detector", "failed_s", "failures",
        "has_nanny", "is_blocked", "is_dead", "is_draining", "is_suspect", "joined_s", "pending",
        "pinged_s", "relayed_s", "relays_asked", "relays_failed", "suspected_s",
        "telemetry", "view", "viewed_s",
    )  # fmt: skip

    def __init__(self, address: str, detector: PhiAccrual, has_nanny: bool, now_s: float) -> None:
        self.address = address
        self.detector = detector
        self.has_nanny = has_nanny
        self.joined_s = now_s
        self.telemetry: Telemetry | bytes | None = None
        self.is_suspect = False
        self.is_dead = False
        self.is_draining = False
        self.is_blocked = False
        self.suspected_s = math.inf
        self.forget()

    def forget(self) -> None:
        """Begin anew with probes and views: what they said is settled."""
        self.answered_s = -math.inf
        self.answers = 0
        self.failures = 0
        self.failed_s = math.inf
        self.pending: set[str | None] = set()
        self.relayed_s = -math.inf
        self.relays_asked = 0
        self.relays_failed = 0
        self.pinged_s = -math.inf
        self.ask_s = -math.inf
        self.asked_s = -math.inf
        self.view: ProcessView | None = None
        self.viewed_s = -math.inf

    @property
    def state(self) -> str:
        """What its nanny saw last; empty where there is no view."""
        return self.view.state if self.view is not None else ""

    @property
    def was_heard(self) -> bool:
        return self.detector.last_s > -math.inf

    @property
    def sign_s(self) -> float:
        """When it last gave a sign of life to the watcher itself."""
        return max(self.detector.last_s, self.answered_s, self.joined_s)


class Membership:
    """Judges a fleet of workers; see the module's text for the rule.

    Methods return what is to be done, in order. All times are of one clock that only goes forward,
    in seconds; events about workers that are not members are ignored, so late ones do no harm.

    Parameters
    ----------
    policy : FaultPolicy
        Thresholds; may be set anew at any time.
    seed : int
        Seeds the order of the round robin and the choice of workers to probe through.
    tick_s : float
        How often `tick` is called.
    """

    def __init__(self, policy: FaultPolicy, seed: int = 0, tick_s: float = TICK_S) -> None:
        self._policy = policy
        self._deviations = deviations_of(policy.phi)
        self._random = random.Random(seed)
        self._tick_s = tick_s
        self._clock = LocalPause(tick_s)
        self._workers: dict[str, _Worker] = {}
        # Of these, some are judged at each tick, and the others only when they are late: those in
        # the order of their last heartbeats.
        self._watched: dict[str, _Worker] = {}
        self._calm: dict[str, _Worker] = {}
        # How often in a row the predictor gave up on a worker.
        self._strikes: dict[str, int] = {}
        self._order: list[str] = []
        self._turn = 0
        self._turn_s = -math.inf
        self._predicted_s = -math.inf
        # When nobody at all was heard last: the watcher itself may have been cut off until then.
        self._cut_off_s = -math.inf
        self._ask_every_s = _ASK_S
        self._interval_s = policy.heartbeat_s

    # -- what is known --------------------------------------------------------------------------

    @property
    def policy(self) -> FaultPolicy:
        """The thresholds."""
        return self._policy

    @policy.setter
    def policy(self, policy: FaultPolicy) -> None:
        self._policy = policy
        self._deviations = deviations_of(policy.phi)
        self._set_interval()

    @property
    def suspects(self) -> frozenset[str]:
        """The workers that are suspect."""
        return frozenset(w.address for w in self._workers.values() if w.is_suspect)

    @property
    def draining(self) -> frozenset[str]:
        """The workers that are being drained."""
        return frozenset(w.address for w in self._workers.values() if w.is_draining)

    def verdict(self, worker: str) -> Verdict:
        """What a worker is held to be; one that is no member is dead."""
        known = self._workers.get(worker)
        if known is None or known.is_dead:
            return Verdict.DEAD
        if known.is_suspect:
            return Verdict.SUSPECT
        return Verdict.DRAINING if known.is_draining else Verdict.ALIVE

    def features(self) -> tuple[tuple[str, ...], np.ndarray]:
        """What a predictor is given.

        Returns
        -------
        tuple of str
            The workers that have sent telemetry.
        ndarray of shape (n, len(PREDICTOR_FEATURES)), float64
            A row for each of them, in the order of `telemetry.PREDICTOR_FEATURES`.
        """
        return self._features([w for w in self._workers.values() if w.telemetry is not None])

    # -- what happens ---------------------------------------------------------------------------

    def joined(self, worker: str, now_s: float, *, has_nanny: bool) -> list[Action]:
        """A worker is new, or is back under an address known before."""
        time_s = self._clock.time_s(now_s)
        if worker not in self._workers:
            self._order.insert(self._random.randint(0, len(self._order)), worker)
        detector = PhiAccrual(self._policy.pause_s, self._interval_s)
        self._workers[worker] = _Worker(worker, detector, has_nanny, time_s)
        self._watch(self._workers[worker])
        self._strikes.pop(worker, None)
        self._set_interval()
        return []

    def left(self, worker: str, now_s: float) -> list[Action]:
        """A worker is no longer on the cluster, for whatever reason."""
        self._clock.time_s(now_s)
        if self._workers.pop(worker, None) is not None:
            self._watched.pop(worker, None)
            self._calm.pop(worker, None)
            self._strikes.pop(worker, None)
            place = self._order.index(worker)
            del self._order[place]
            if place < self._turn:
                self._turn -= 1
            self._set_interval()
        return []

    def heard(
        self, heartbeats: Iterable[tuple[str, Telemetry | bytes | None]], now_s: float
    ) -> list[Action]:
        """Authentic heartbeats came; telemetry may be left packed, or be missing."""
        time_s = self._clock.time_s(now_s)
        calm = self._calm
        actions: list[Action] = []
        # Little is done for each that is calm: on large fleets there are many.
        for worker, telemetry in heartbeats:
            known = calm.pop(worker, None)
            if known is not None:
                calm[worker] = known
                known.telemetry = telemetry
                known.detector.heard(time_s)
            elif (known := self._workers.get(worker)) is not None:
                known.telemetry = telemetry
                actions += self._heard(known, time_s)
        return actions

    def probed(
        self, worker: str, through: str | None, answered: bool, now_s: float
    ) -> list[Action]:
        """A probe was answered, or was not within ``policy.probe_s``; `through` None is direct."""
        known = self._workers.get(worker)
        if known is None or known.is_dead:
            return []
        time_s = self._clock.time_s(now_s)
        was_asked = through in known.pending
        known.pending.discard(through)
        if not answered:
            # After a sleep of the watcher's, the answer may have come and not been read in time.
            slept = time_s < self._clock.resumed_s + self._policy.probe_s
            if slept or not was_asked:
                return []
        if through is not None:
            if answered:
                known.relayed_s = time_s
            else:
                known.relays_failed += 1
        elif answered:
            known.answered_s = time_s
            known.answers += 1
            known.failures = 0
            known.failed_s = math.inf
            known.view = None
            return self._cleared(known, time_s)
        else:
            known.answers = 0
            known.failures += 1
            known.failed_s = min(known.failed_s, time_s)
            self._watch(known)
        return self._suspected(known, time_s)

    def seen(self, worker: str, view: ProcessView, now_s: float) -> list[Action]:
        """What the worker's nanny sees of its process, or that the nanny did not answer."""
        known = self._workers.get(worker)
        if known is None or known.is_dead:
            return []
        time_s = self._clock.time_s(now_s)
        known.view = view if view.is_same else ProcessView("unreachable")
        known.viewed_s = time_s
        if known.view.state == "gone":
            return self._evicted(known, "its nanny says that the process is gone")
        if known.view.state != "stopped":
            return []
        self._watch(known)
        actions = self._suspected(known, time_s)
        silence_s = time_s - known.sign_s
        if silence_s < self._policy.confirm_s:
            # What condemns it must be seen then, not now.
            known.ask_s = min(known.ask_s, known.sign_s + self._policy.confirm_s)
        else:
            actions += self._evicted(
                known, f"its nanny sees the process stopped, silent for {silence_s:.1f} s"
            )
        return actions

    def noticed(self, worker: str, deadline_s: float, source: str, now_s: float) -> list[Action]:
        """`source` (a cloud) gave notice that the worker goes in `deadline_s` from now."""
        known = self._workers.get(worker)
        if known is None or known.is_dead or known.is_draining:
            return []
        self._clock.time_s(now_s)
        known.is_draining = True
        return [Drain(worker, f"preemption notice of {source}, {deadline_s:.0f} s", deadline_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Judge; to be called every `tick_s`, after what has arrived was handed over."""
        time_s = self._clock.tick(now_s)
        # Before this no heartbeat is late, whatever its worker's own mean and deviation are.
        margin_s = min(max(MINIMUM_SIGMA_S * self._deviations, 0.0), self._policy.pause_s)
        soonest_s = time_s - self._interval_s - margin_s
        late = list(self._watched.values())
        late += takewhile(lambda w: w.detector.last_s < soonest_s, self._calm.values())
        heard_s = time_s - self._silence_s
        if not any(w.sign_s > heard_s for w in self._workers.values() if not w.is_dead):
            self._cut_off_s = time_s
        actions: list[Action] = []
        if late:
            late.sort(key=lambda worker: worker.asked_s)
            self._ask_every_s = max(_ASK_S, len(late) / _ASKED_PER_S)
            asked = max(1, math.ceil(_ASKED_PER_S * self._tick_s))
            for known in late:
                if not known.is_dead:
                    actions += self._judged(known, time_s, may_ask=asked > 0)
                    asked -= known.asked_s == time_s
        actions += self._next_turn(time_s)
        pause_s = max(_PREDICT_S, self._interval_s)
        if self._policy.predictor is not None and time_s >= self._predicted_s + pause_s:
            actions += self._predicted()
            self._predicted_s = time_s
        return actions

    # -- judging --------------------------------------------------------------------------------

    def _watch(self, known: _Worker) -> None:
        """Judge the worker at each tick, until a heartbeat calms that."""
        self._calm.pop(known.address, None)
        self._watched[known.address] = known

    def _judged(self, known: _Worker, time_s: float, may_ask: bool) -> list[Action]:
        actions: list[Action] = []
        is_late = self._is_late(known, time_s)
        if is_late:
            limit_s = _HEARTBEATS_LOST_S if known.was_heard else _FIRST_HEARTBEAT_S
            silence_s = time_s - max(known.detector.last_s, known.joined_s)
            if silence_s >= limit_s and known.answered_s > time_s - 2 * self._ask_every_s:
                known.is_blocked = True
                self._watch(known)
                is_late = False
                evidence = f"it answers probes, but no heartbeat came for {silence_s:.1f} s"
                actions.append(HeartbeatsBlocked(known.address, evidence))
        if may_ask and time_s >= known.ask_s and (is_late or known.is_suspect or known.failures):
            actions += self._asked(known, time_s)
        actions += self._suspected(known, time_s)
        if known.is_suspect and known.failures >= 2:
            actions += self._unreachable(known, time_s)
        return actions

    def _is_late(self, known: _Worker, time_s: float) -> bool:
        """Whether a heartbeat should have come by now."""
        detector = known.detector
        if known.is_blocked:
            return False
        if not known.was_heard:
            return time_s >= known.joined_s + _FIRST_HEARTBEAT_S
        margin_s = min(self._deviations * detector.sigma_s, detector.pause_s)
        # However slow it has been: when a stopped process may be evicted, it must have been seen.
        limit_s = max(self._policy.confirm_s, 2 * self._interval_s)
        return time_s >= detector.last_s + min(detector.mean_s + max(margin_s, 0.0), limit_s)

    def _suspected(self, known: _Worker, time_s: float) -> list[Action]:
        """Suspect the worker, if anything speaks for it."""
        if known.is_suspect:
            return []
        detector = known.detector
        silence_s = time_s - known.sign_s
        is_silent = known.is_blocked or self._is_late(known, time_s)
        if known.state == "stopped":
            evidence = "its nanny sees the process stopped"
        elif known.failures >= 2:
            evidence = f"{known.failures} direct probes failed"
        elif (
            known.failures
            and is_silent
            and known.asked_s > known.sign_s
            and known.relays_failed >= known.relays_asked
        ):
            others = f" and {known.relays_failed} through others" if known.relays_failed else ""
            evidence = f"the direct probe{others} failed"
        elif (
            known.was_heard
            and not known.is_blocked
            and silence_s >= detector.silence_s(self._deviations)
        ):
            evidence = f"phi {detector.phi_of(silence_s):.1f}"
        else:
            return []
        evidence += f", silent for {silence_s:.1f} s"
        if known.view is not None and known.viewed_s > known.sign_s:
            evidence += f", seen {known.view.state} with {known.view.cpu_share:.2f} CPU"
        known.is_suspect = True
        self._watch(known)
        known.suspected_s = time_s
        return [Suspect(known.address, evidence)]

    def _heard(self, known: _Worker, time_s: float) -> list[Action]:
        """Take note that a worker that is watched was heard."""
        was_s = known.detector.last_s
        known.detector.heard(time_s)
        if known.is_dead:
            return []
        known.is_blocked = False
        actions = self._cleared(known, time_s)
        if known.is_suspect and was_s < known.suspected_s and None not in known.pending:
            actions.append(self._ping(known, time_s))
        if not (known.is_suspect or known.failures):
            del self._watched[known.address]
            self._calm[known.address] = known
        return actions

    def _cleared(self, known: _Worker, time_s: float) -> list[Action]:
        """Take note that the worker spoke or answered, which may clear it."""
        heard_s = known.detector.last_s
        if not known.is_suspect:
            return []
        is_heard = heard_s >= known.suspected_s
        is_answering = known.answered_s >= known.suspected_s
        is_undisputed = not known.failures and known.state != "stopped"
        if is_heard and (is_answering or is_undisputed):
            evidence = "heard again"
        elif is_answering and known.answers >= 2:
            evidence = "answers direct probes again"
        else:
            return []
        evidence += f", suspect for {time_s - known.suspected_s:.1f} s"
        known.is_suspect = False
        known.forget()
        known.answered_s = time_s if is_answering else -math.inf
        return [Rehabilitate(known.address, evidence)]

    def _unreachable(self, known: _Worker, time_s: float) -> list[Action]:
        """Evict a suspect that neither it nor its nanny has answered for, for long."""
        limit_s = self._policy.unreachable_s
        silence_s = time_s - max(known.sign_s, known.relayed_s, self._cut_off_s)
        unreached_s = time_s - max(known.failed_s, self._cut_off_s)
        if max(silence_s, unreached_s) < limit_s:
            return []
        fresh_s = time_s - 3 * self._ask_every_s - self._policy.probe_s
        if known.state not in ("", "unreachable") and known.viewed_s >= fresh_s:
            return []
        heard_s = time_s - self._silence_s
        if not any(
            other.sign_s > heard_s
            for other in self._workers.values()
            if other is not known and not other.is_dead
        ):
            return []
        nanny = "nor its nanny " if known.has_nanny else ""
        if silence_s >= limit_s:
            evidence = f"neither it {nanny}can be reached, silent for {silence_s:.1f} s"
        else:
            evidence = f"heard, but neither it {nanny}can be reached for {unreached_s:.1f} s"
        return self._evicted(known, evidence.replace("neither it can", "it cannot"))

    def _evicted(self, known: _Worker, evidence: str) -> list[Action]:
        known.is_dead = True
        known.is_suspect = known.is_draining = False
        return [Evict(known.address, evidence)]

    @property
    def _silence_s(self) -> float:
        """After so long without a sign of anybody, nobody is heard."""
        return self._interval_s + self._policy.pause_s + self._policy.probe_s

    @property
    def _patience_s(self) -> float:
        """After so long without one, an answer will not come any more."""
        return 3 * max(self._policy.probe_s, _ASK_S)

    # -- asking ---------------------------------------------------------------------------------

    def _ping(self, known: _Worker, time_s: float) -> Probe:
        known.pending.add(None)
        known.pinged_s = time_s
        return Probe(known.address)

    def _asked(self, known: _Worker, time_s: float) -> list[Action]:
        """Ask about a worker: itself, through others, and its nanny."""
        actions: list[Action] = []
        if time_s >= known.pinged_s + self._patience_s:
            known.pending.clear()
        is_asked_through_others = bool(known.pending - {None})
        if None not in known.pending:
            actions.append(self._ping(known, time_s))
        if not is_asked_through_others:
            relays = [
                other.address
                for other in self._workers.values()
                if other is not known and not (other.is_suspect or other.is_dead)
            ]
            if len(relays) > self._policy.indirect_probes:
                relays = self._random.sample(relays, self._policy.indirect_probes)
            known.relays_asked = len(relays)
            known.relays_failed = 0
            if relays:
                known.pending.update(relays)
                actions.append(Probe(known.address, tuple(relays)))
        if known.has_nanny:
            actions.append(Look(known.address))
        if actions:
            known.asked_s = time_s
            known.ask_s = time_s + _ASK_S
        return actions

    def _next_turn(self, time_s: float) -> list[Action]:
        """Probe the next worker of the round robin, when its turn has come."""
        if time_s < self._turn_s:
            return []
        for _ in self._order:
            self._turn = (self._turn + 1) % len(self._order)
            known = self._workers[self._order[self._turn]]
            is_pending = None in known.pending and time_s < known.pinged_s + self._patience_s
            if known.is_suspect or known.is_dead or is_pending:
                continue
            self._turn_s = max(self._turn_s + max(_TURN_S, _ROUND_S / len(self._order)), time_s)
            return [self._ping(known, time_s)]
        return []

    # -- predicting -----------------------------------------------------------------------------

    def _predicted(self) -> list[Action]:
        """Drain workers that the predictor gave up on twice in a row."""
        predictor = self._policy.predictor
        judged = [
            w
            for w in self._workers.values()
            if w.telemetry is not None
            and w.detector.last_s > self._predicted_s
            and not (w.is_dead or w.is_suspect or w.is_draining)
        ]
        if predictor is None or not judged:
            return []
        probabilities = predictor.probabilities(self._features(judged)[1])
        is_high = probabilities >= self._policy.loss_probability
        if not (self._strikes or is_high.any()):
            return []
        doomed = []
        for known, probability, is_struck in zip(
            judged, probabilities.tolist(), is_high.tolist(), strict=True
        ):
            strikes = self._strikes.pop(known.address, 0) + 1
            if is_struck:
                self._strikes[known.address] = strikes
                if strikes >= 2:
                    doomed.append((probability, known))
        doomed.sort(key=lambda pair: -pair[0])
        if not doomed:
            return []
        n_draining = len(self.draining)
        n_alive = sum(
            not (w.is_dead or w.is_suspect or w.is_draining) for w in self._workers.values()
        )
        room = max(1, int(_DRAINED_SHARE * len(self._workers))) - n_draining
        actions: list[Action] = []
        for probability, known in doomed[: max(0, min(room, n_alive - 1))]:
            known.is_draining = True
            evidence = f"probability of loss within {_PREDICTED_WITHIN_S:.0f} s: {probability:.3f}"
            actions.append(Drain(known.address, evidence, _PREDICTED_WITHIN_S))
        return actions

    def _features(self, workers: Sequence[_Worker]) -> tuple[tuple[str, ...], np.ndarray]:
        features = np.empty((len(workers), len(PREDICTOR_FEATURES)))
        features[:, :-1] = feature_matrix(w.telemetry for w in workers if w.telemetry is not None)
        features[:, -1] = [w.detector.jitter_s / self._interval_s for w in workers]
        return tuple(w.address for w in workers), features

    def _set_interval(self) -> None:
        self._interval_s = heartbeat_interval_s(self._policy, len(self._workers))
        for known in self._workers.values():
            known.detector.interval_s = self._interval_s
            known.detector.pause_s = self._policy.pause_s
