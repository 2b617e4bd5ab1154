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
    stream.routes[b"one"] = 0
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


def test_nobody_is_told_what_he_said_himself():
    stream, replies = Stream(), {b"one": [], b"two": [], b"three": []}
    stream.routes.update(dict.fromkeys(replies, 0))

    def flush() -> None:
        stream.flush(lambda route, reply: replies[route].append(reply) is None)

    stream.add(Retire("pa", None), b"one")
    flush()
    stream.add(Retire("pb", None), b"two")
    stream.add(Retire("pa", None), b"one")
    stream.add(PoolGone("pc"))
    flush()
    first, second, gone = Retire("pa", None), Retire("pb", None), PoolGone("pc")
    assert replies[b"one"] == [Changes(1, (second, gone))]
    assert replies[b"two"] == [Changes(1, (first,)), Changes(2, (first, gone))]
    assert replies[b"three"] == [Changes(1, (first,)), Changes(2, (second, first, gone))]


def test_who_is_behind_is_told_again(monkeypatch):
    """Whether or not there is anything new for the others."""
    monkeypatch.setattr(stream_module, "AGAIN_SECONDS", 0.02)
    stream, replies, deaf = Stream(), [], True
    stream.routes[b"one"] = 0

    def send(_, reply: Reply) -> bool:
        replies.append(reply)
        return not deaf

    stream.add(PoolGone("pa"))
    stream.flush(send)
    assert 0 < stream.due() <= 0.02
    while stream.due() > 0:
        time.sleep(0.001)
    stream.flush(send)
    assert stream.due() > 0
    deaf = False
    stream.flush(send)
    assert replies == [Changes(1, (PoolGone("pa"),)), Changes(1, ()), Changes(1, ())]
    assert stream.due() == math.inf
