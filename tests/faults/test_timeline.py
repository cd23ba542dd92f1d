from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.faults import KINDS, FaultEvent

numbers = st.floats(allow_nan=False, allow_infinity=False)
events = st.builds(
    FaultEvent,
    time_s=numbers,
    kind=st.sampled_from(sorted(KINDS)),
    worker=st.text(),
    evidence=st.text(),
    action=st.text(),
    cost_s=numbers,
    recomputed_blocks=st.integers(0, 10**9),
    run=st.text(),
)


@given(events, st.dictionaries(st.text(min_size=20), st.integers()))
def test_an_event_comes_back_from_its_message_whatever_else_that_has(event, more):
    message = json.loads(json.dumps(event.as_message() | more))
    assert FaultEvent.from_message(message) == event


def test_an_event_of_no_known_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind='worker-bored'.*worker-evicted"):
        FaultEvent(0.0, "worker-bored", "tcp://10.0.0.1:1", "", "")


def test_a_message_without_what_an_event_needs_is_refused():
    with pytest.raises(TypeError, match="evidence"):
        FaultEvent.from_message({"time_s": 0.0, "kind": "worker-lost", "worker": "", "action": ""})


def test_what_an_event_leaves_out_is_nothing():
    event = FaultEvent(1.0, "worker-joined", "a", "new", "watched")
    assert (event.cost_s, event.recomputed_blocks, event.run) == (0.0, 0, "")
