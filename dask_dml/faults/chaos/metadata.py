"""A stand-in for a cloud's metadata service, to announce preemptions with."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

MACHINE = "stand-in-0"
TOKEN = "stand-in-token"


class StandInMetadata:
    """A metadata service on this machine, in a thread, as one provider's answers.

    Give `url` to `PreemptionWatch`, or to a cluster's workers as the setting
    ``dml.preemption.url``.

    Parameters
    ----------
    provider : {"aws", "google", "azure"}
        Whose answers to give.

    Attributes
    ----------
    url : str
        Its address.

    Raises
    ------
    ValueError
        If the provider is not known.

    Examples
    --------
    >>> from dask_dml.faults.preemption import PreemptionWatch
    >>> with StandInMetadata("google") as metadata:
    ...     watch = PreemptionWatch(base_url=metadata.url)
    ...     before = watch.poll()
    ...     metadata.announce(4_102_444_800.0)
    ...     after = watch.poll()
    >>> before is None, after.detail
    (True, 'preempted: TRUE')
    """

    def __init__(self, provider: str = "aws") -> None:
        if provider not in {"aws", "google", "azure"}:
            raise ValueError(
                "StandInMetadata(provider=...) must be 'aws', 'google' or 'azure', got "
                f"{provider!r}"
            )
        self.provider = provider
        self._lock = threading.Lock()
        self._deadline_s: float | None = None
        self._recommended_s: float | None = None
        self._kind = "Preempt"
        self._machine = MACHINE
        self._token = TOKEN
        self._requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="dml-stand-in-metadata",
            daemon=True,
        )
        self._thread.start()

    @property
    def requests(self) -> tuple[tuple[str, str], ...]:
        """What was asked so far: (method, path)."""
        with self._lock:
            return tuple(self._requests)

    def announce(self, deadline_s: float, *, kind: str = "Preempt", machine: str = MACHINE) -> None:
        """Say from now on that the machine will be taken away.

        Parameters
        ----------
        deadline_s : float
            When, seconds since the epoch; Google's answer has no place for it.
        kind, machine : str
            Azure's type of event and the name of the machine that it is about.
        """
        with self._lock:
            self._deadline_s, self._kind, self._machine = deadline_s, kind, machine

    def recommend_rebalance(self) -> None:
        """Say from now on, as Amazon does, that the risk of a preemption is raised."""
        with self._lock:
            self._recommended_s = time.time()

    def withdraw(self) -> None:
        """Say from now on that nothing is planned."""
        with self._lock:
            self._deadline_s = self._recommended_s = None

    def expire_tokens(self) -> None:
        """Refuse the session tokens that were given so far, as Amazon does after their time."""
        with self._lock:
            self._token += "-renewed"

    def answer(self, method: str, target: str, headers: dict[str, str]) -> tuple[int, str]:
        """What to answer: status and body.

        Parameters
        ----------
        method : str
        target : str
            Path and query.
        headers : dict
            By lower-case name.
        """
        path = urlsplit(target).path
        with self._lock:
            self._requests.append((method, path))
            if self.provider == "aws":
                return self._as_aws(method, path, headers)
            if self.provider == "google":
                return self._as_google(path, headers)
            return self._as_azure(path, headers)

    def _as_aws(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if path == "/latest/api/token":
            if method != "PUT" or "x-aws-ec2-metadata-token-ttl-seconds" not in headers:
                return 400, "Bad Request"
            return 200, self._token
        if headers.get("x-aws-ec2-metadata-token") != self._token:
            return 401, "Unauthorized"
        if path == "/latest/meta-data/spot/instance-action" and self._deadline_s is not None:
            return 200, json.dumps({"action": "terminate", "time": _iso(self._deadline_s)})
        if (
            path == "/latest/meta-data/events/recommendations/rebalance"
            and self._recommended_s is not None
        ):
            return 200, json.dumps({"noticeTime": _iso(self._recommended_s)})
        return 404, "Not Found"

    def _as_google(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if headers.get("metadata-flavor") != "Google":
            return 403, "Missing Metadata-Flavor:Google header."
        if path == "/computeMetadata/v1/instance/preempted":
            return 200, "FALSE" if self._deadline_s is None else "TRUE"
        return 404, "Not Found"

    def _as_azure(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if headers.get("metadata") != "true":
            return 400, '{"error": "Bad request. Required metadata header not specified"}'
        if path == "/metadata/instance/compute/name":
            return 200, MACHINE
        if path == "/metadata/scheduledevents":
            return 200, json.dumps({"DocumentIncarnation": 1, "Events": self._azure_events()})
        return 404, "Not Found"

    def _azure_events(self) -> list[dict[str, object]]:
        if self._deadline_s is None:
            return []
        not_before = format_datetime(datetime.fromtimestamp(self._deadline_s, UTC), usegmt=True)
        return [
            {
                "EventId": "00000000-0000-0000-0000-000000000001",
                "EventType": self._kind,
                "ResourceType": "VirtualMachine",
                "Resources": [self._machine],
                "EventStatus": "Scheduled",
                "NotBefore": not_before,
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
        ]

    def close(self) -> None:
        """Stop answering and give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _iso(time_s: float) -> str:
    """As Amazon writes times."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _handler(metadata: StandInMetadata) -> type[BaseHTTPRequestHandler]:
    """The class of handlers that a server of `metadata` makes one of for each request."""

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, text = metadata.answer(self.command, self.path, headers)
            body = text.encode()
            self.send_response(status)
            if metadata.provider == "google":
                self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = _reply

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing on stderr: `StandInMetadata.requests` has them."""

    return Handler
