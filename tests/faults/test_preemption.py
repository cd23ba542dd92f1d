from __future__ import annotations

import socket
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from dask_dml.faults.chaos.metadata import StandInMetadata
from dask_dml.faults.preemption import PROVIDERS, PreemptionWatch

DEADLINE_S = 1_790_000_000.0


class Clock:
    def __init__(self):
        self.now_s = 1_789_999_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def closed_url():
    """An address that refuses connections."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def answering():
    """Serve one fixed answer to whatever is asked; gives the address."""
    servers = []

    def serve(status, body=b"", headers=()):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_PUT = do_GET

            def log_message(self, format, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("named", [True, False], ids=["named", "auto"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_notice_is_seen_from_announcement_to_withdrawal(provider, named):
    clock = Clock()
    with StandInMetadata(provider) as metadata:
        watch = PreemptionWatch(
            provider if named else "auto", metadata.url, timeout_s=5.0, clock=clock
        )
        assert watch.poll() is None
        assert watch.source == provider
        metadata.announce(DEADLINE_S)
        notice = watch.poll()
        assert notice.source == provider
        expected_s = clock.now_s + 30.0 if provider == "google" else DEADLINE_S
        assert notice.deadline_s == expected_s
        metadata.withdraw()
        assert watch.poll() is None


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_standing_notice_keeps_its_deadline(provider):
    clock = Clock()
    with StandInMetadata(provider) as metadata:
        watch = PreemptionWatch(provider, metadata.url, timeout_s=5.0, clock=clock)
        metadata.announce(DEADLINE_S)
        first = watch.poll()
        clock.now_s += 10.0
        assert watch.poll() == first


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_notice_stands_when_the_service_stops_answering(provider):
    with StandInMetadata(provider) as metadata:
        watch = PreemptionWatch(provider, metadata.url, timeout_s=5.0)
        metadata.announce(DEADLINE_S)
        notice = watch.poll()
    assert notice is not None
    assert watch.poll() == notice


def test_an_expired_token_is_renewed():
    with StandInMetadata("aws") as metadata:
        watch = PreemptionWatch("aws", metadata.url, timeout_s=5.0)
        assert watch.poll() is None
        metadata.announce(DEADLINE_S)
        metadata.expire_tokens()
        assert watch.poll().deadline_s == DEADLINE_S


def test_a_token_is_fetched_once():
    with StandInMetadata("aws") as metadata:
        watch = PreemptionWatch("aws", metadata.url, timeout_s=5.0)
        for _ in range(5):
            watch.poll()
        assert [method for method, _ in metadata.requests].count("PUT") == 1


def test_a_rebalance_recommendation_counts_only_where_it_is_heeded():
    with StandInMetadata("aws") as metadata:
        metadata.recommend_rebalance()
        assert PreemptionWatch("aws", metadata.url, timeout_s=5.0).poll() is None
        heeding = PreemptionWatch("aws", metadata.url, timeout_s=5.0, heed_rebalance=True)
        notice = heeding.poll()
        assert "rebalance" in notice.detail
        assert notice.deadline_s == pytest.approx(time.time() + 120.0, abs=60.0)
        metadata.announce(DEADLINE_S)
        assert heeding.poll().deadline_s == DEADLINE_S  # certain knowledge goes first


@pytest.mark.parametrize(
    ("kind", "machine", "is_ours"),
    [
        ("Preempt", "stand-in-0", True),
        ("Terminate", "stand-in-0", True),
        ("Freeze", "stand-in-0", False),  # a pause of seconds; the worker lives on
        ("Preempt", "stand-in-1", False),  # another machine of the same set
    ],
)
def test_azure_events_count_when_they_end_this_machine(kind, machine, is_ours):
    with StandInMetadata("azure") as metadata:
        watch = PreemptionWatch("azure", metadata.url, timeout_s=5.0)
        metadata.announce(DEADLINE_S, kind=kind, machine=machine)
        assert (watch.poll() is not None) == is_ours


def test_without_a_metadata_service_it_is_silent(closed_url, caplog):
    watch = PreemptionWatch(base_url=closed_url, timeout_s=5.0)
    assert watch.poll() is None
    assert watch.source == ""
    assert caplog.records == []


def test_it_asks_ever_more_seldom_where_nobody_answers():
    clock = Clock()
    with StandInMetadata("google") as metadata:
        watch = PreemptionWatch("aws", metadata.url, timeout_s=5.0, clock=clock)
        for _ in range(24 * 3600):
            watch.poll()
            clock.now_s += 1.0
        assert len(metadata.requests) < 35


def test_a_service_that_comes_up_later_is_found():
    clock = Clock()
    with StandInMetadata("google") as metadata:
        watch = PreemptionWatch("aws", metadata.url, timeout_s=5.0, clock=clock)
        assert watch.poll() is None
        asked = len(metadata.requests)
        clock.now_s += 59.0
        assert watch.poll() is None
        assert len(metadata.requests) == asked
        metadata.provider = "aws"
        clock.now_s += 2.0
        metadata.announce(DEADLINE_S)
        assert watch.poll().deadline_s == DEADLINE_S


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, b"<html>\n<body>Please sign in</body>\n</html>", ()),
        (302, b"", (("Location", "http://127.0.0.1:9/"),)),
        (500, b"oops", ()),
        (200, b"<html>signin</html>", ()),
        (200, b"", ()),
    ],
    ids=["portal", "redirect", "broken", "terse-portal", "empty"],
)
def test_a_foreign_web_server_is_no_metadata_service(answering, status, body, headers):
    watch = PreemptionWatch(base_url=answering(status, body, headers), timeout_s=5.0)
    assert watch.poll() is None
    assert watch.source == ""


def test_proxies_of_the_environment_are_passed_by(monkeypatch, closed_url):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, closed_url)
    monkeypatch.delenv("no_proxy", raising=False)
    with StandInMetadata("aws") as metadata:
        metadata.announce(DEADLINE_S)
        assert PreemptionWatch("aws", metadata.url, timeout_s=5.0).poll() is not None


def test_none_never_asks():
    with StandInMetadata("aws") as metadata:
        assert PreemptionWatch("none", metadata.url).poll() is None
        assert metadata.requests == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"provider": "hetzner"}, "provider"),
        ({"base_url": "file:///etc/passwd"}, "base_url"),
        ({"base_url": "169.254.169.254"}, "base_url"),
        ({"timeout_s": 0.0}, "timeout_s"),
    ],
)
def test_nonsense_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        PreemptionWatch(**arguments)


def test_a_stand_in_of_an_unknown_provider_is_refused():
    with pytest.raises(ValueError, match="hetzner"):
        StandInMetadata("hetzner")
