"""What a request brings is that request's matter: it is not shared, and nobody else notices."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kvmarket import counters
from kvmarket.registry.protocol.messages import Name
from tests.vllm_hook.scheduler.fakes import BLOCK, FakeControl, admit, back, joined, request, step_of
from vllm_hook.scheduler import requests
from vllm_hook.scheduler.requests import LONGEST_TENANT, tenant_of, tenant_refusal
from vllm_hook.scheduler.side import SchedulerSide

FIELDS = (
    "all_token_ids",
    "prompt_token_ids",
    "prompt_embeds",
    "num_tokens",
    "lora_request",
    "mm_features",
    "cache_salt",
    "skip_reading_prefix_cache",
)
SALTS = {
    "half a character": ("user-\ud83d", requests.NO_UNICODE),
    "too long": ("x" * LONGEST_TENANT, requests.TOO_LONG),
    "megabytes": ("x" * 5_000_000, requests.TOO_LONG),
    "megabytes and half a character": ("\ud83d" * 5_000_000, requests.TOO_LONG),
    "too many bytes": ("\u00e4" * (LONGEST_TENANT // 2), requests.TOO_LONG),
    "a number": (7, requests.NO_TEXT),
    "bytes": (b"salt", requests.NO_TEXT),
    "nothing, but no text": (0, requests.NO_TEXT),
}
TOKENS: dict[str, Any] = {
    "too large": 2**31,
    "negative": -1,
    "none": None,
    "text": "7",
    "a fraction": 1.5,
    "a truth": True,
}


def refused() -> dict[str, int]:
    return {key: n for key, n in counters.snapshot().items() if key.startswith("vllm_import_refused")}


def beside(**more: Any) -> tuple[SchedulerSide, FakeControl]:
    """A scheduler side where the blocks of another request are on offer."""
    side, control = joined(wait_tokens=BLOCK, **more)
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    assert set(control.live()) == {1, 2}
    return side, control


def serve(side: SchedulerSide, one: Any, tokens: int = 12) -> None:
    """All that vLLM calls for one request; nothing may raise."""
    name, pages = one.request_id, [3, 4, 5]
    assert side.match(one, 0) == (0, False)
    side.allocated(one, pages, 0)
    first = side.dispatch(step_of(new={name: (pages, 0, tokens - 1)}))
    second = side.dispatch(step_of(cached={name: (None, tokens - 1, 1)}))
    side.returned(back(first.step))
    side.returned(back(second.step))
    side.finished(name)
    side.returned(back(side.dispatch(step_of()).step))


def check_alone(side: SchedulerSide, control: FakeControl, one: Any, reason: str) -> None:
    """The request is served, counted once under its reason, and costs nobody else anything."""
    before = refused()
    serve(side, one)
    assert set(control.live()) == {1, 2} and "fail_closed" not in control.log and not control.promises
    key = f"vllm_import_refused{{{reason}}}"
    assert refused() == {**before, key: before.get(key, 0) + 1}
    admit(side, request("c", 8), [6, 7])
    side.returned(back(side.dispatch(step_of(new={"c": ([6, 7], 0, 8)})).step))
    side.dispatch(step_of())
    assert set(control.live()) == {1, 2, 6, 7}


@pytest.mark.parametrize("kind", SALTS)
def test_salts_that_no_message_can_carry(kind: str):
    salt, reason = SALTS[kind]
    check_alone(*beside(), request("b", 12, cache_salt=salt), reason)


def test_salts_and_tenants_fit_together_or_are_refused():
    for base, salt in (("", "x" * 4094), ("y" * 2000, "x" * 2091), ("", "\u00e4")):
        assert tenant_refusal(base, salt) == ""
        tenant = tenant_of(base, salt)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(tenant), type=Name) == tenant
    assert tenant_refusal("", "x" * 4095) == tenant_refusal("y" * 2000, "x" * 2092) == requests.TOO_LONG
    assert tenant_refusal("\ud83d", None) == requests.NO_UNICODE, "of the engine itself"
    assert tenant_refusal("", None) == tenant_refusal("", "") == ""


@pytest.mark.parametrize("place", [0, 5, 11], ids=["first", "in the middle", "last"])
@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("whole", [True, False], ids=["looked up", "offered only"])
def test_tokens_that_are_none(kind: str, place: int, whole: bool):
    one = request("b", 13 if whole else 12)  # the last token is not looked up
    one.all_token_ids[place] = one.prompt_token_ids[place] = TOKENS[kind]
    side, control = beside(imports=whole)
    if whole:
        check_alone(side, control, one, requests.NO_TOKENS)
    else:
        promises = control.log.count("promise")
        serve(side, one)
        assert set(control.live()) == {1, 2} and "fail_closed" not in control.log
        assert control.log.count("promise") == promises, "of no tokens"


def test_a_bad_token_of_the_answer_costs_what_follows_alone():
    side, control = joined()
    one = request("b", 8)
    admit(side, one, [3, 4, 5])
    side.returned(back(side.dispatch(step_of(new={"b": ([3, 4, 5], 0, 8)})).step))
    one.all_token_ids += [8, -1, 10, 11]
    side.returned(back(side.dispatch(step_of(cached={"b": (None, 8, 4)})).step))
    assert set(control.live()) == {3, 4} and "fail_closed" not in control.log


def test_more_tokens_than_a_message_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(requests, "MAX_TOKENS", 8)
    check_alone(*beside(), request("b", 13), requests.TOO_MANY_TOKENS)
    side, control = beside(imports=False)
    serve(side, request("b", 12))
    assert set(control.live()) == {1, 2}, "where it is not looked up"
    side, control = joined()
    admit(side, request("b", 9), [3, 4])
    side.returned(back(side.dispatch(step_of(new={"b": ([3, 4], 0, 8)})).step))
    assert set(control.live()) == {3, 4}, "no more than it holds"


@pytest.mark.parametrize("field", FIELDS)
def test_fields_that_are_missing(field: str):
    one = request("b", 12)
    delattr(one, field)
    check_alone(*beside(), one, requests.UNREADABLE)


class Odd:
    """Nothing can be asked of it."""

    def __bool__(self) -> bool:
        raise ValueError("the truth of an array")

    def __len__(self) -> int:
        raise TypeError("it has no length")


@pytest.mark.parametrize("field", ["mm_features", "all_token_ids", "num_tokens", "skip_reading_prefix_cache"])
def test_fields_of_another_kind(field: str):
    check_alone(*beside(), request("b", 12, **{field: Odd()}), requests.UNREADABLE)


def test_a_prompt_that_is_no_list():
    check_alone(*beside(), request("b", 12, prompt_token_ids=7), requests.NO_TOKENS)


@pytest.mark.parametrize("name", ["\ud83d", "", "n" * 1_000_000, "{reason}"], ids=["half", "empty", "long", "braces"])
def test_names_are_not_looked_at(name: str):
    side, control = beside()
    control.found = 2
    one = request(name, 12)
    assert side.match(one, 0) == (8, True)
    side.allocated(one, [3, 4, 5], 8)
    step = side.dispatch(step_of())
    assert [load.request_id for load in step.loads] == [name]
    side.returned(back(step.step, finished={name}))
    side.returned(back(side.dispatch(step_of(new={name: ([3, 4, 5], 8, 4)})).step))
    side.finished(name)
    side.dispatch(step_of())
    assert set(control.live()) == {1, 2, 3, 4, 5}


def test_a_request_that_is_asked_about_again_and_again_counts_once():
    side, _ = beside()
    one, before = request("b", 12, cache_salt=7), refused()
    for _ in range(3):
        assert side.match(one, 0) == (0, False)
    key = f"vllm_import_refused{{{requests.NO_TEXT}}}"
    assert refused() == {**before, key: before.get(key, 0) + 1}


def test_the_market_is_not_asked_where_nothing_can_come_of_it():
    side, control = beside()
    control.log.clear()
    for tokens, computed in ((4, 0), (5, 4), (8, 4), (1, 0)):  # the last token is computed in any case
        assert side.match(request(f"{tokens}", tokens), computed) == (0, False)
    assert "match" not in control.log
    control.found = 1
    assert side.match(request("b", 5), 0) == (4, True)


def test_several_tenants_in_one_step():
    side, control = joined(tenant="base")
    salts = {"a": None, "b": "x", "c": "y"}
    pages = {"a": [1, 2], "b": [3, 4], "c": [5, 6]}
    for name, salt in salts.items():
        admit(side, request(name, 8, cache_salt=salt), pages[name])
    side.returned(back(side.dispatch(step_of(new={name: (pages[name], 0, 8) for name in salts})).step))
    found = {slot: tenant for slot, (_, _, _, tenant) in control.standing.items()}
    assert found == {page: tenant_of("base", salts[name]) for name in salts for page in pages[name]}


def test_requests_without_tokens():
    side, control = beside()
    control.found = 2
    for count in range(3):
        assert side.match(request(str(count), count), 0) == (0, False)
    assert "fail_closed" not in control.log


def test_a_name_that_another_request_had():
    """vLLM did not say that the first one was over: its tokens are not those of the second."""
    side, control = joined()
    first, second = request("a", 8), request("a", 8, all_token_ids=list(range(50, 58)))
    second.prompt_token_ids = second.all_token_ids
    admit(side, first, [1, 2])
    admit(side, second, [3, 4])
    side.returned(back(side.dispatch(step_of(new={"a": ([3, 4], 0, 8)})).step))
    assert control.live() == {3: (50, 51, 52, 53), 4: tuple(range(50, 58))}
