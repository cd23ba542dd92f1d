import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.faults.telemetry import (
    COLUMNS,
    DATAGRAM_BYTES,
    FEATURES,
    DatagramError,
    Telemetry,
    feature_matrix,
    pack,
    unpack,
    unpacked,
    worker_id,
)

KEY = b"secret of a fleet"
ADDRESS = "tcp://10.0.0.7:41235"
numbers = st.floats(width=32, allow_nan=False)
telemetries = st.builds(Telemetry, **dict.fromkeys(FEATURES, numbers))


@given(st.text(), st.integers(0, 2**64 - 1), telemetries, st.binary(min_size=1, max_size=64))
def test_a_heartbeat_arrives_as_it_was_sent(address, sequence, telemetry, key):
    worker, number, features = unpack(key, pack(key, address, sequence, telemetry))
    assert (worker, number) == (worker_id(address), sequence)
    assert unpacked(features) == telemetry


def test_what_does_not_fit_float32_is_rounded():
    _, _, features = unpack(KEY, pack(KEY, ADDRESS, 0, Telemetry(rss_share=0.1)))
    assert unpacked(features).rss_share == float(np.float32(0.1))


@given(st.integers(0, DATAGRAM_BYTES - 1), st.integers(1, 255))
def test_a_datagram_that_was_changed_anywhere_is_refused(place, flip):
    datagram = bytearray(pack(KEY, ADDRESS, 3, Telemetry(loop_lag_s=0.5)))
    datagram[place] ^= flip
    with pytest.raises(DatagramError):
        unpack(KEY, bytes(datagram))


@given(st.binary(max_size=3 * DATAGRAM_BYTES))
def test_foreign_datagrams_are_refused(datagram):
    with pytest.raises(DatagramError):
        unpack(KEY, datagram)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda datagram: datagram[:-1], "the datagram has 67"),
        (lambda datagram: datagram + b"\0", "the datagram has 69"),
        (lambda datagram: b"", "the datagram has 0"),
        (lambda datagram: b"dml\x02" + datagram[4:], "begins with"),
        (lambda datagram: datagram[:-1] + bytes([datagram[-1] ^ 1]), "not made with this key"),
    ],
)
def test_a_refusal_says_what_is_wrong(change, message):
    with pytest.raises(DatagramError, match=message):
        unpack(KEY, change(pack(KEY, ADDRESS, 1, Telemetry())))


def test_another_key_is_refused():
    with pytest.raises(DatagramError, match=f"{worker_id(ADDRESS):016x}"):
        unpack(b"another", pack(KEY, ADDRESS, 1, Telemetry()))


def test_numbers_that_are_not_finite_survive():
    _, _, features = unpack(KEY, pack(KEY, ADDRESS, 0, Telemetry(math.nan, math.inf)))
    telemetry = unpacked(features)
    assert math.isnan(telemetry.rss_share)
    assert telemetry.rss_slope == math.inf


def test_a_sequence_below_zero_is_refused():
    with pytest.raises(struct.error):
        pack(KEY, ADDRESS, -1, Telemetry())


@given(st.lists(telemetries, max_size=5))
def test_rows_of_a_matrix_are_the_telemetry_packed_or_not(rows):
    packed = [unpack(KEY, pack(KEY, ADDRESS, 0, row))[2] for row in rows]
    expected = np.array(rows, dtype=np.float32).reshape(-1, len(FEATURES))
    np.testing.assert_array_equal(feature_matrix(rows), expected)
    np.testing.assert_array_equal(feature_matrix(packed), expected)


def test_a_record_has_the_time_the_worker_and_what_a_predictor_takes():
    assert ("time_s", "worker", *FEATURES, "jitter") == COLUMNS


def test_addresses_of_a_fleet_have_ids_of_their_own():
    addresses = [f"tcp://10.0.{i % 256}.{i // 256}:{port}" for i in range(5000) for port in (1, 2)]
    assert len({worker_id(address) for address in addresses}) == len(addresses)
