"""Turns of the watching thread: short while the engine steps, longer while it does not."""

from __future__ import annotations

from kvmarket.registry.client.turns import (
    LONGEST_TURN,
    NAP_SECONDS,
    STEP_SECONDS,
    STEPPING_SECONDS,
    TURN_SECONDS,
    Turns,
)  # fmt: skip


def test_an_engine_that_steps_waits_for_a_short_turn_and_has_a_step_behind_it():
    turns = Turns()
    turns.called(100.0)
    for late in (0.0, 0.2, STEPPING_SECONDS - 0.001):
        assert turns.next(100.0 + late) == (TURN_SECONDS, STEP_SECONDS), "however long the replica has been behind"
    assert turns.next(100.0 + STEPPING_SECONDS + 0.001) == (LONGEST_TURN, NAP_SECONDS)
    turns.called(101.0)
    assert turns.next(101.1) == (TURN_SECONDS, STEP_SECONDS)


def test_turns_grow_while_nobody_calls_until_all_is_put_in():
    turns = Turns()
    assert turns.next(1000.0) == (TURN_SECONDS, NAP_SECONDS)
    grown = [turns.next(1000.0 + behind)[0] for behind in (0.005, 0.02, 0.04, 0.06, 1.0, 60.0)]
    assert grown == sorted(grown) and grown[0] == TURN_SECONDS and TURN_SECONDS < grown[2] < LONGEST_TURN
    assert grown[-1] == LONGEST_TURN
    turns.done()
    assert turns.next(1100.0) == (TURN_SECONDS, NAP_SECONDS), "behind from now on"
    assert turns.next(1100.04)[0] > TURN_SECONDS
