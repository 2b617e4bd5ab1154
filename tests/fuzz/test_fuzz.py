"""Short runs of the fuzzer; the long one is a command."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmarket.errors import MessageError, VersionError
from kvmarket.registry.protocol.messages import PROTOCOL, unpack_reply, unpack_request
from tests.fuzz.__main__ import shoot
from tests.fuzz.targets import check_offering, frame_of


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_and_made_up_messages(seed):
    counts = shoot(6000, seed)
    for kind in ("service", "replica"):
        assert counts[f"{kind}: refused"] > 100
        assert counts[f"{kind}: taken"] > 100


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=800), st.sampled_from([b"", b"kvmarket/", b"kvmarket/3\n", PROTOCOL]))
def test_any_frame(frame, begins):
    for unpack in (unpack_request, unpack_reply):
        with suppress(MessageError, VersionError):
            unpack(begins + frame)
        with suppress(MessageError, VersionError):
            unpack(frame_of(frame))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_arrays(data):
    check_offering(data)
