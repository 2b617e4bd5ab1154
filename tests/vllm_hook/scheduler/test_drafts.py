"""Speculative decoding against fakes: rejected drafts, steps dispatched ahead of their outcome, and a random engine."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from tests.vllm_hook.scheduler.fakes import BLOCK, admit, back, joined, prefix, request, step_of
from vllm_hook.scheduler.side import SchedulerSide


def accept(one: Any, tokens: int) -> None:
    """The request gets its next tokens: as ever, token i is number i."""
    have = len(one.all_token_ids)
    one.all_token_ids += range(have, have + tokens)


def test_block_of_rejected_drafts_is_not_offered_until_it_was_written_again():
    side, control = joined(speculates=True)
    one = request("a", 6)
    admit(side, one, [1, 2, 3])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2, 3], 0, 6)})).step))
    accept(one, 1)
    step = side.dispatch(step_of(cached={"a": (None, 6, 4)}))  # token 6 and three drafts: 7, and 8 and 9 to be rejected
    accept(one, 2)
    side.returned(back(step.step))  # of tokens 0 .. 8 the KV of 8 is a rejected draft's
    assert control.live() == {1: prefix(1), 2: prefix(2)}
    step = side.dispatch(step_of(cached={"a": (None, 8, 4)}))
    accept(one, 1)
    side.returned(back(step.step))
    assert set(control.live()) == {1, 2}, "a block with rejected drafts in it was offered"
    step = side.dispatch(step_of(cached={"a": (None, 9, 4)}))
    accept(one, 4)
    side.returned(back(step.step))
    assert control.live() == {1: prefix(1), 2: prefix(2), 3: prefix(3)}


def test_steps_dispatched_as_if_all_drafts_were_accepted():
    side, control = joined(speculates=True)
    one = request("a", 6)
    admit(side, one, [1, 2, 3, 4])
    first = side.dispatch(step_of(new={"a": ([1, 2, 3, 4], 0, 6)}))
    second = side.dispatch(step_of(cached={"a": (None, 6, 4)}))  # writes 6 .. 9
    accept(one, 1)
    side.returned(back(first.step))
    third = side.dispatch(step_of(cached={"a": (None, 10, 4)}))  # in truth writes 7 .. 10
    accept(one, 1)
    side.returned(back(second.step))
    assert control.live() == {1: prefix(1)}, "token 7 is known, but its KV is a rejected draft's"
    fourth = side.dispatch(step_of(cached={"a": (None, 11, 4)}))  # in truth 9 .. 12
    accept(one, 2)
    side.returned(back(third.step))
    assert control.live() == {1: prefix(1), 2: prefix(2)}, "lost the block that the second step left open"
    accept(one, 4)
    side.returned(back(fourth.step))
    assert control.live() == {1: prefix(1), 2: prefix(2), 3: prefix(3)}


def test_no_block_is_offered_twice():
    side, control = joined(speculates=True)
    one = request("a", 6)
    admit(side, one, [1, 2, 3])
    first = side.dispatch(step_of(new={"a": ([1, 2, 3], 0, 6)}))
    second = side.dispatch(step_of(cached={"a": (None, 6, 4)}))
    third = side.dispatch(step_of(cached={"a": (None, 10, 4)}))
    for step, tokens in (first, 1), (second, 4), (third, 1):
        accept(one, tokens)
        side.returned(back(step.step))
    assert control.live() == {1: prefix(1), 2: prefix(2)}
    assert control.log.count("offer") == 2


def test_preempted_with_drafts_in_flight():
    side, control = joined(speculates=True)
    one = request("a", 7)
    admit(side, one, [1, 2, 3])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2, 3], 0, 7)})).step))
    accept(one, 1)
    flying = side.dispatch(step_of(cached={"a": (None, 7, 4)}))
    admit(side, request("b", 4), [2])  # a was preempted
    admit(side, one, [5, 6, 7])
    accept(one, 4)
    side.returned(back(flying.step))
    assert control.live() == {1: prefix(1)}
    step = side.dispatch(step_of(cached={"a": ([5, 6, 7], 0, 12)}, resumed={"a"}))
    accept(one, 1)
    side.returned(back(step.step))
    assert control.live() == {1: prefix(1), 5: prefix(1), 6: prefix(2), 7: prefix(3)}


def test_resumed_before_its_drafts_are_back():
    """What the old pages hold says nothing of what the new ones do."""
    side, control = joined(speculates=True)
    one = request("a", 7)
    admit(side, one, [1, 2, 3])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2, 3], 0, 7)})).step))
    accept(one, 1)
    flying = side.dispatch(step_of(cached={"a": (None, 7, 4)}))
    admit(side, one, [5, 6, 7])  # preempted and resumed at once
    resumed = side.dispatch(step_of(cached={"a": ([5, 6, 7], 0, 8)}, resumed={"a"}))
    accept(one, 4)
    side.returned(back(flying.step))
    assert control.live() == {1: prefix(1), 2: prefix(2)}
    accept(one, 1)
    side.returned(back(resumed.step))
    assert control.live() == {1: prefix(1), 2: prefix(2), 5: prefix(1), 6: prefix(2)}


def test_no_block_is_offered_twice_by_steps_that_overlap_later():
    side, control = joined(speculates=True)
    one = request("a", 6)
    admit(side, one, [1, 2, 3, 4])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2, 3, 4], 0, 6)})).step))
    accept(one, 1)
    second = side.dispatch(step_of(cached={"a": (None, 6, 4)}))
    third = side.dispatch(step_of(cached={"a": (None, 10, 4)}))
    for step, tokens in (second, 4), (third, 1):
        accept(one, tokens)
        side.returned(back(step.step))
    assert control.live() == {1: prefix(1), 2: prefix(2)} and control.log.count("offer") == 2


class Simulation:
    """An engine with one request that drafts; keeps in `written` which token's KV each place of each page holds."""

    def __init__(self, seed: int, depth: int, drafts: int) -> None:
        self.chance = random.Random(seed)
        self.depth, self.drafts = depth, drafts
        self.side, self.control = joined(speculates=True)
        self.written: dict[int, list[int | None]] = {}
        self.free = list(range(1, 400))
        self.done = 0  # so many of the steps in flight, the oldest, have run

    def pages(self, tokens: int) -> list[int]:
        return [self.free.pop() for _ in range(-(-tokens // BLOCK))]

    def write(self, pages: list[int], position: int, token: int) -> None:
        self.written.setdefault(pages[position // BLOCK], [None] * BLOCK)[position % BLOCK] = token

    def check(self) -> None:
        for slot, tokens in self.control.live().items():
            assert self.written[slot] == list(tokens[-BLOCK:]), f"offered page {slot} with {self.written[slot]}"

    def run(self, prompt: int, steps: int) -> int:
        """Dispatch so many steps; each runs between that and its return. Returns how many tokens have KV."""
        one = request("a", prompt)
        pages = self.pages(prompt + (steps + 1) * (self.drafts + 1))
        admit(self.side, one, pages)
        hoped, flying = 0, deque[tuple[Any, int, list[int | None]]]()
        truth = 0  # how many tokens have KV when all that was dispatched has run
        for number in range(steps):
            at = truth
            size = prompt if number == 0 else 1 + self.chance.randint(0, self.drafts)
            what = {"a": (pages if number == 0 else None, hoped, size)}
            step = self.side.dispatch(step_of(**{"new" if number == 0 else "cached": what}))  # type: ignore[arg-type]
            right = size if number == 0 else 1 + self.chance.randint(0, size - 1)
            tokens: list[int | None] = [at + i if i < right else None for i in range(size)]
            truth += right
            hoped += size
            flying.append((step, at, tokens))
            if self.chance.random() < 0.5:
                self.execute(pages, flying)
            if len(flying) > self.depth:
                hoped -= self.land(one, pages, flying)
            self.check()
        while flying:
            self.land(one, pages, flying)
            self.check()
        return truth

    def execute(self, pages: list[int], flying: deque[tuple[Any, int, list[int | None]]]) -> None:
        """Run the steps in flight that have not run yet, in order."""
        for _, at, tokens in list(flying)[self.done :]:
            for i, token in enumerate(tokens):
                self.write(pages, at + i, -1 if token is None else token)
        self.done = len(flying)

    def land(self, one: Any, pages: list[int], flying: deque[tuple[Any, int, list[int | None]]]) -> int:
        """The oldest step has run and comes back; returns how many of its drafts were rejected."""
        if self.done == 0:
            self.execute(pages, flying)
        self.done -= 1
        step, at, tokens = flying.popleft()
        right = sum(token is not None for token in tokens)
        accept(one, at + right + 1 - len(one.all_token_ids))
        self.side.returned(back(step.step))
        return len(tokens) - right


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["one at a time", "asynchronous", "two ahead"])
@pytest.mark.parametrize("seed", range(30))
def test_random_acceptance(depth: int, seed: int):
    chance = random.Random(seed)
    simulation = Simulation(seed, depth, chance.randint(1, 9))
    computed = simulation.run(chance.randint(1, 20), 40)
    blocks = {len(tokens) // BLOCK for tokens in simulation.control.live().values()}
    assert blocks == set(range(1, computed // BLOCK + 1)), "a whole block that is sure is not on offer"


def test_without_speculation_every_token_known_counts():
    side: SchedulerSide
    side, control = joined()
    one = request("a", 7)
    admit(side, one, [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 7)})).step))
    accept(one, 1)
    step = side.dispatch(step_of(cached={"a": (None, 7, 1)}))
    side.returned(back(step.step))  # stopped: its own token was dropped
    assert control.live() == {1: prefix(1), 2: prefix(2)}
