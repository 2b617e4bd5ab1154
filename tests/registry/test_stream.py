"""What goes out when: offers at once, retirements with them or a little later."""

from __future__ import annotations

import math
import time

from kvmarket.registry import stream as stream_module
from kvmarket.registry.messages import Changes, PoolGone, Reply, Retire
from kvmarket.registry.stream import Stream


def heard(stream: Stream) -> list[Reply]:
    """What the one listener gets when the stream is flushed."""
    replies: list[Reply] = []
    stream.flush(lambda _, reply: replies.append(reply) is None)
    return replies


def test_retirements_linger_until_something_comes_that_others_wait_for():
    stream = Stream()
    stream.routes.add(b"one")
    assert stream.due() == math.inf
    stream.add(Retire("pa", None))
    assert 0 < stream.due() <= stream_module.LINGER_SECONDS
    stream.add(PoolGone("pb"))
    assert stream.due() <= 0
    assert heard(stream) == [Changes(1, (Retire("pa", None), PoolGone("pb")))], "in order"
    assert stream.due() == math.inf
    assert heard(stream) == []


def test_a_retirement_alone_is_due_in_the_end():
    stream = Stream()
    stream.add(Retire("pa", None))
    first = stream.due()
    time.sleep(0.001)
    stream.add(Retire("pb", None))
    assert stream.due() < first, "a later one put the first off"
