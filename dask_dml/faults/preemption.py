"""A cloud's notice that it will take this machine away, which is certain knowledge of a loss.

Each cloud tells its machines through a metadata service at a link-local address:

=========  ========================================================  ============================
provider   asked                                                     a notice is
=========  ========================================================  ============================
aws        ``/latest/meta-data/spot/instance-action``, with a        JSON ``{"action", "time"}``;
           session token (IMDSv2); 404 when there is nothing         usually two minutes ahead
google     ``/computeMetadata/v1/instance/preempted``, header        ``TRUE``; 30 s ahead at most
           ``Metadata-Flavor: Google``
azure      ``/metadata/scheduledevents?api-version=2020-07-01``,     an event that ends this
           header ``Metadata: true``                                 machine; 30 s ahead
=========  ========================================================  ============================

References
----------
Amazon EC2 User Guide, "Spot Instance interruption notices" and "EC2 instance rebalance
recommendations"; Compute Engine, "Create and use preemptible VMs"; Azure Virtual Machines,
"Scheduled Events for Linux VMs".
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import IO, Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit

METADATA_URL = "http://169.254.169.254"
MOST_BYTES = 65_536

AWS_TOKEN = "/latest/api/token"
AWS_ACTION = "/latest/meta-data/spot/instance-action"
AWS_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
AWS_WARNING_S = 120.0
AWS_TOKEN_S = 21_600
GOOGLE_PREEMPTED = "/computeMetadata/v1/instance/preempted"
GOOGLE_WARNING_S = 30.0
AZURE_NAME = "/metadata/instance/compute/name?api-version=2020-09-01&format=text"
AZURE_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
WORD = re.compile(r"[\w.=+/-]{1,1024}")
AZURE_ENDS = frozenset({"Preempt", "Terminate", "Redeploy", "Reboot"})

# Where no provider answers, it is asked again after this long, doubled each time.
FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0


@dataclass(frozen=True, slots=True)
class PreemptionNotice:
    """A machine will be taken away.

    Attributes
    ----------
    source : {"aws", "google", "azure"}
        Who said so.
    deadline_s : float
        When, seconds since the epoch; where the provider gives no time, the end of its usual
        warning.
    detail : str
        What was said, for people.
    """

    source: str
    deadline_s: float
    detail: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a metadata service answered: status, headers by lower-case name, text."""

    status: int
    headers: Mapping[str, str]
    text: str


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A metadata service never redirects; what does is a captive portal."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any,
        newurl: str,
    ) -> None:  # fmt: skip
        return None


class _Service:
    """Requests to one metadata service, past any proxy that the environment names."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    def ask(self, path: str, headers: Mapping[str, str], method: str = "GET") -> _Answer:
        """Ask once; an answer of any status is one, everything else is an OSError."""
        request = urllib.request.Request(self.url + path, headers=dict(headers), method=method)
        try:
            with self._opener.open(request, timeout=self.timeout_s) as reply:
                return _answer(reply.status, reply.headers, reply.read(MOST_BYTES))
        except HTTPError as error:
            with error:
                return _answer(error.code, error.headers, error.read(MOST_BYTES))
        except HTTPException as error:
            raise ConnectionError(f"{self.url}{path} does not speak HTTP: {error!r}") from error


def _answer(status: int, headers: Any, body: bytes) -> _Answer:
    named = {name.lower(): value for name, value in headers.items()}
    return _Answer(status, named, body.decode("utf-8", errors="replace").strip())


class _Provider(Protocol):
    """One cloud's way of telling."""

    def is_there(self) -> bool: ...

    def notice(self, now_s: float) -> PreemptionNotice | None: ...


class _Aws:
    """Amazon EC2, by session tokens (IMDSv2)."""

    def __init__(self, service: _Service, heed_rebalance: bool) -> None:
        self._service = service
        self._heed_rebalance = heed_rebalance
        self._token = ""

    def is_there(self) -> bool:
        answer = self._service.ask(
            AWS_TOKEN, {"X-aws-ec2-metadata-token-ttl-seconds": str(AWS_TOKEN_S)}, "PUT"
        )
        self._token = _word(answer)
        return bool(self._token)

    def notice(self, now_s: float) -> PreemptionNotice | None:
        said = self._read(AWS_ACTION)
        if "action" in said:
            deadline_s = _epoch_s(said.get("time"), now_s + AWS_WARNING_S)
            return PreemptionNotice(
                "aws", deadline_s, f"spot instance-action: {said['action']} at {said.get('time')}"
            )
        if self._heed_rebalance:
            said = self._read(AWS_REBALANCE)
            if "noticeTime" in said:
                deadline_s = _epoch_s(said["noticeTime"], now_s) + AWS_WARNING_S
                return PreemptionNotice(
                    "aws", deadline_s, f"rebalance recommendation of {said['noticeTime']}"
                )
        return None

    def _read(self, path: str) -> Mapping[str, Any]:
        answer = self._service.ask(path, {"X-aws-ec2-metadata-token": self._token})
        if answer.status == 401 and self.is_there():  # the token has run out
            answer = self._service.ask(path, {"X-aws-ec2-metadata-token": self._token})
        return _json_object(answer)


class _Google:
    """Google Compute Engine."""

    def __init__(self, service: _Service) -> None:
        self._service = service

    def _ask(self) -> _Answer:
        return self._service.ask(GOOGLE_PREEMPTED, {"Metadata-Flavor": "Google"})

    def is_there(self) -> bool:
        return self._ask().headers.get("metadata-flavor") == "Google"

    def notice(self, now_s: float) -> PreemptionNotice | None:
        answer = self._ask()
        if answer.status == 200 and answer.text == "TRUE":
            return PreemptionNotice("google", now_s + GOOGLE_WARNING_S, "preempted: TRUE")
        return None


class _Azure:
    """Microsoft Azure; its answer is about all machines of a set, so that the name counts."""

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._name = ""

    def is_there(self) -> bool:
        answer = self._service.ask(AZURE_NAME, {"Metadata": "true"})
        self._name = _word(answer)
        return bool(self._name)

    def notice(self, now_s: float) -> PreemptionNotice | None:
        said = _json_object(self._service.ask(AZURE_EVENTS, {"Metadata": "true"}))
        events = said.get("Events")
        for event in events if isinstance(events, list) else []:
            if not isinstance(event, dict) or event.get("EventType") not in AZURE_ENDS:
                continue
            if self._name in (event.get("Resources") or ()):
                # The time is empty once an event has started.
                deadline_s = _epoch_s(event.get("NotBefore"), now_s)
                return PreemptionNotice(
                    "azure",
                    deadline_s,
                    f"scheduled event {event['EventType']} of {self._name}, not before "
                    f"{event.get('NotBefore') or 'now'}",
                )
        return None


PROVIDERS: Mapping[str, Callable[[_Service, bool], _Provider]] = {
    "aws": _Aws,
    "google": lambda service, _: _Google(service),
    "azure": lambda service, _: _Azure(service),
}


def _word(answer: _Answer) -> str:
    """A token or name in an answer; empty for all else, such as the page of a captive portal."""
    return answer.text if answer.status == 200 and WORD.fullmatch(answer.text) else ""


def _json_object(answer: _Answer) -> Mapping[str, Any]:
    """The JSON object in an answer; empty when there is none."""
    if answer.status != 200:
        return {}
    try:
        said = json.loads(answer.text)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _epoch_s(text: Any, otherwise_s: float) -> float:
    """Seconds since the epoch of an ISO 8601 or RFC 1123 time, which is UTC if it does not say."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            when = parse(text)
        except (TypeError, ValueError):
            continue
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return otherwise_s


class PreemptionWatch:
    """Ask this machine's cloud whether it is about to take the machine away.

    Parameters
    ----------
    provider : {"auto", "aws", "google", "azure", "none"}
        "auto" finds out at the first poll; "none" never asks.
    base_url : str, optional
        Another address of the metadata service, such as that of a stand-in.
    timeout_s : float
        How long an answer may take. A poll takes at most about six times that: it belongs into a
        thread that nothing waits for.
    heed_rebalance : bool
        Take Amazon's rebalance recommendations as notices as well. They tell of a raised risk
        only; the deadline is then two minutes after the recommendation.
    clock : callable
        Seconds since the epoch.

    Raises
    ------
    ValueError
        If the provider is not known, the address is not one, or the time is not positive.

    Examples
    --------
    >>> watch = PreemptionWatch(provider="none")
    >>> watch.poll() is None
    True
    """

    def __init__(
        self,
        provider: str = "auto",
        base_url: str | None = None,
        timeout_s: float = 0.5,
        *,
        heed_rebalance: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if provider not in {"auto", "none", *PROVIDERS}:
            raise ValueError(
                "PreemptionWatch(provider=...) must be 'auto', 'none' or one of "
                f"{', '.join(PROVIDERS)}, got {provider!r}"
            )
        url = (base_url or METADATA_URL).rstrip("/")
        if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc:
            raise ValueError(
                f"PreemptionWatch(base_url={base_url!r}) must be an address as http://host:port"
            )
        if not timeout_s > 0.0:
            raise ValueError(f"PreemptionWatch(timeout_s={timeout_s!r}) must be above 0")
        self._service = _Service(url, timeout_s)
        self._heed_rebalance = heed_rebalance
        self._clock = clock
        self._names = tuple(PROVIDERS) if provider == "auto" else (provider,)
        if provider == "none":
            self._names = ()
        self._provider: _Provider | None = None
        self._source = ""
        self._ask_after_s = -float("inf")
        self._pause_s = FIRST_PAUSE_S
        self._standing: PreemptionNotice | None = None

    @property
    def source(self) -> str:
        """The provider that was found; empty when there is none (yet)."""
        return self._source

    def poll(self) -> PreemptionNotice | None:
        """Ask once.

        Returns
        -------
        PreemptionNotice or None
            None also where there is no metadata service, or it does not answer in time; that is
            silent. The same notice is returned, with the same deadline, for as long as it stands.
        """
        now_s = self._clock()
        if self._provider is None and now_s >= self._ask_after_s:
            self._ask_after_s = now_s + self._pause_s
            self._pause_s = min(2.0 * self._pause_s, LONGEST_PAUSE_S)
            self._find()
        if self._provider is None:
            return None
        try:
            notice = self._provider.notice(now_s)
        except OSError:
            # The service was there before: it may take minutes to answer for the first time
            # (Azure), and what it said before still holds.
            return self._standing
        if notice is None or self._standing is None or notice.detail != self._standing.detail:
            self._standing = notice
        return self._standing

    def _find(self) -> None:
        """Find out who runs this machine."""
        for name in self._names:
            provider = PROVIDERS[name](self._service, self._heed_rebalance)
            try:
                is_there = provider.is_there()
            except OSError:
                continue
            if is_there:
                self._provider, self._source = provider, name
                return
