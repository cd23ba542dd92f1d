"""How long a silence is too long, and whose silence it was.

`PhiAccrual` judges the heartbeats of one worker; `LocalPause` takes out of the clock what the
watcher itself has slept through. Neither reads a clock.
"""

from __future__ import annotations

import math

from scipy.special import log_ndtr, ndtri_exp

# The usual one: 100 ms.
MINIMUM_SIGMA_S = 0.1


class PhiAccrual:
    """The phi-accrual detector of one worker.

    Phi is minus the decimal logarithm of the probability that a heartbeat comes even later than
    now, under a normal distribution of the intervals seen so far: at phi 8 one suspicion in 1e8
    would be wrong, were the intervals normal.

    Mean and variance are cumulative over the first `window` intervals and forget exponentially, at
    the rate of one in `window`, from there on: no list of intervals is kept. The nominal interval
    counts as the first one seen, with a quarter of it as deviation. A burst (heartbeats that have
    waited together) does not count as short intervals, and a gap counts as no more than what is
    acceptable: one long pause does not make the detector blind to the next.

    Parameters
    ----------
    pause_s : float
        Silence that is acceptable on top of the mean interval.
    interval_s : float
        Nominal interval; the mean is not taken to be shorter.
    minimum_sigma_s : float
        The standard deviation is not taken to be smaller.
    window : int
        Intervals over which mean and variance are taken.

    Attributes
    ----------
    last_s : float
        When the last heartbeat came; minus infinity before the first.
    jitter_s : float
        Smoothed difference between neighbouring intervals (as in RFC 3550, section 6.4.1).

    References
    ----------
    Hayashibara, Défago, Yared & Katayama 2004, "The phi accrual failure detector".
    """

    __slots__ = (
        "_count", "_interval_s", "_mean_s", "_previous_s", "_variance", "interval_s", "jitter_s",
        "last_s", "minimum_sigma_s", "pause_s", "window",
    )  # fmt: skip

    def __init__(
        self,
        pause_s: float,
        interval_s: float = 0.5,
        minimum_sigma_s: float = MINIMUM_SIGMA_S,
        window: int = 1000,
    ) -> None:
        self.pause_s = pause_s
        self.interval_s = interval_s
        self.minimum_sigma_s = minimum_sigma_s
        self.window = window
        self.last_s = -math.inf
        self.jitter_s = 0.0
        self._previous_s = interval_s
        self._mean_s = interval_s
        self._variance = (interval_s / 4) ** 2
        self._count = 1

    def heard(self, now_s: float) -> None:
        """Take note of a heartbeat."""
        interval_s = now_s - self.last_s
        if interval_s > 0.0:
            self.last_s = now_s
        nominal_s = self.interval_s
        if interval_s < 0.1 * nominal_s:
            return
        longest_s = self._mean_s + nominal_s + self.pause_s
        if interval_s > longest_s:
            if interval_s == math.inf:
                return
            interval_s = longest_s
        change_s = interval_s - self._previous_s
        self._previous_s = interval_s
        self.jitter_s += ((change_s if change_s > 0.0 else -change_s) - self.jitter_s) / 16
        if self._count < self.window:
            self._count += 1
        share = 1.0 / self._count
        off_s = interval_s - self._mean_s
        self._mean_s += share * off_s
        self._variance = (1.0 - share) * (self._variance + share * off_s * off_s)

    @property
    def mean_s(self) -> float:
        """Interval at which the next heartbeat is expected."""
        return max(self._mean_s, self.interval_s)

    @property
    def sigma_s(self) -> float:
        """Standard deviation of the intervals."""
        return max(math.sqrt(self._variance), self.minimum_sigma_s)

    def phi(self, now_s: float) -> float:
        """Suspicion, from 0 up; 0 before the first heartbeat."""
        if self.last_s == -math.inf:
            return 0.0
        return self.phi_of(now_s - self.last_s)

    def phi_of(self, silence_s: float) -> float:
        """Suspicion after so long a silence."""
        deviations = (silence_s - self.mean_s - self.pause_s) / self.sigma_s
        return max(float(-log_ndtr(-deviations)) / math.log(10.0), 0.0)

    def silence_s(self, deviations: float) -> float:
        """Silence, pause included, that is so many `deviations` of the intervals too long."""
        return self.mean_s + self.pause_s + deviations * self.sigma_s


def deviations_of(phi: float) -> float:
    """Standard deviations above the mean at which phi has this value."""
    return float(-ndtri_exp(-phi * math.log(10.0)))


class LocalPause:
    """A clock that stands still while the watcher does.

    When the watcher's ticks come late, because its event loop was blocked, its process stopped or
    the machine asleep, the heartbeats and answers of that time wait unread: it is not the workers'
    silence. What exceeds the usual time between ticks by more than `slack_s` is taken out.

    Parameters
    ----------
    tick_s : float
        Usual time between ticks.
    slack_s : float
        Lateness that counts as usual.

    Attributes
    ----------
    lost_s : float
        Time that was taken out so far.
    resumed_s : float
        When the last pause ended, on this clock; minus infinity before the first.
    """

    def __init__(self, tick_s: float, slack_s: float = 0.5) -> None:
        self.usual_s = tick_s + slack_s
        self.lost_s = 0.0
        self.resumed_s = -math.inf
        self._late_s = math.inf

    def time_s(self, now_s: float) -> float:
        """Time on this clock, of an event at `now_s` on the caller's."""
        if now_s > self._late_s:
            self.lost_s += now_s - self._late_s
            self._late_s = now_s
            self.resumed_s = now_s - self.lost_s
        return now_s - self.lost_s

    def tick(self, now_s: float) -> float:
        """Take note of a tick; returns its time on this clock."""
        time_s = self.time_s(now_s)
        self._late_s = now_s + self.usual_s
        return time_s
