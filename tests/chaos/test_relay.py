"""The relay drops what it is told to drop, and nothing else; connections stay open."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from dask_dml.faults.chaos.network import RelayControl, RelayNetwork

DEADLINE_S = 20.0
# How long nothing may come before it counts as dropped.
SILENCE_S = 0.3
IN, OUT = "in", "out"


@pytest.fixture(scope="module")
def network():
    network = RelayNetwork()
    yield network
    network.close()


@pytest.fixture
def control(network):
    control = RelayControl(network.join(9, "tcp://127.0.0.1:1", 1).relay)
    yield control
    control.cut(1, ())
    control.close()


@contextmanager
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE_S)
        yield server


@pytest.fixture
def pair(control):
    """Both ends of a connection from a machine outward: the machine's, and the other's."""
    with listening() as server:
        port = control.open("tcp", 1, OUT, "127.0.0.1", server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as machine:
            other, _ = server.accept()
            other.settimeout(DEADLINE_S)
            with other:
                yield machine, other


def is_silent(end):
    end.settimeout(SILENCE_S)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(DEADLINE_S)
    return False


def test_what_is_said_arrives_both_ways(pair):
    machine, other = pair
    machine.sendall(b"question")
    assert other.recv(100) == b"question"
    other.sendall(b"answer")
    assert machine.recv(100) == b"answer"


def test_much_is_passed_on_in_order(pair):
    machine, other = pair
    sent = bytes(range(256)) * 40_000
    sender = threading.Thread(target=machine.sendall, args=(sent,))
    sender.start()
    got = b""
    while len(got) < len(sent):
        got += other.recv(1 << 20)
    sender.join()
    assert got == sent


@pytest.mark.parametrize("cut", [OUT, IN])
def test_one_direction_is_dropped_and_comes_when_it_is_healed(control, pair, cut):
    machine, other = pair
    speaker, hearer = (machine, other) if cut == OUT else (other, machine)
    control.cut(1, [cut])
    speaker.sendall(b"late")
    hearer.sendall(b"now")
    assert speaker.recv(100) == b"now"
    assert is_silent(hearer)
    control.cut(1, ())
    assert hearer.recv(100) == b"late"


def test_both_directions_are_dropped(control, pair):
    machine, other = pair
    control.cut(1, [IN, OUT])
    machine.sendall(b"a")
    other.sendall(b"b")
    assert is_silent(machine)
    assert is_silent(other)
    control.cut(1, ())
    assert (other.recv(1), machine.recv(1)) == (b"a", b"b")


def test_the_other_machines_are_not_cut_off(control, pair):
    machine, other = pair
    control.cut(2, [IN, OUT])
    machine.sendall(b"a")
    assert other.recv(1) == b"a"


@pytest.mark.parametrize("closer", [0, 1])
def test_an_end_is_told_to_the_other_side(pair, closer):
    pair[closer].close()
    assert pair[1 - closer].recv(1) == b""


def test_an_end_is_not_told_through_a_cut(control, pair):
    machine, other = pair
    control.cut(1, [OUT])
    machine.close()
    assert is_silent(other)
    control.cut(1, ())
    assert other.recv(1) == b""


def test_a_connection_made_while_cut_is_made_when_healed(control):
    with listening() as server:
        port = control.open("tcp", 1, IN, "127.0.0.1", server.getsockname()[1])
        control.cut(1, [OUT])
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as caller:
            caller.sendall(b"hello")
            server.settimeout(SILENCE_S)
            with pytest.raises(TimeoutError):
                server.accept()
            control.cut(1, ())
            server.settimeout(DEADLINE_S)
            answering, _ = server.accept()
            with answering:
                answering.settimeout(DEADLINE_S)
                assert answering.recv(100) == b"hello"


def test_a_connection_to_nobody_is_closed(control):
    with listening() as server:
        nobody = server.getsockname()[1]
    port = control.open("tcp", 1, OUT, "127.0.0.1", nobody)
    caller = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    with caller, suppress(ConnectionResetError):
        assert caller.recv(1) == b""


@pytest.fixture
def datagrams(control):
    """A machine's socket, connected to the relay, and the one that it talks to."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as machine,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        port = control.open("udp", 1, OUT, "127.0.0.1", other.getsockname()[1])
        machine.connect(("127.0.0.1", port))
        machine.settimeout(DEADLINE_S)
        other.settimeout(DEADLINE_S)
        yield machine, other


def test_datagrams_arrive_and_are_answered(datagrams):
    machine, other = datagrams
    machine.send(b"beat")
    data, sender = other.recvfrom(100)
    assert data == b"beat"
    other.sendto(b"heard", sender)
    assert machine.recv(100) == b"heard"


def test_datagrams_are_lost_in_the_direction_that_is_cut(control, datagrams):
    machine, other = datagrams
    machine.send(b"1")
    _, sender = other.recvfrom(100)
    control.cut(1, [IN])
    other.sendto(b"lost", sender)
    machine.send(b"2")
    assert other.recv(100) == b"2"
    assert is_silent(machine)
    control.cut(1, [OUT])
    machine.send(b"lost")
    other.sendto(b"3", sender)
    assert machine.recv(100) == b"3"
    assert is_silent(other)
    control.cut(1, ())
    machine.send(b"4")
    assert other.recv(100) == b"4"
