"""The screen of `kvmarket top`: what it shows of a status, within 80 columns."""

from __future__ import annotations

import pytest

from kvmarket.cli.top.screen import screen_of, short, total
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.status import Label, MemberStatus, SpaceStatus, Status
from tests.cli.shown import lines_of, words_of

ONE, OTHER = "1" * 32 + "/cuda/1", "2" * 32 + "/cuda/8+8"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
COUNTED = {
    "vllm_tokens_asked": 4096,
    "vllm_tokens_imported": 2048,
    "bytes_fetched": 3 << 30,
    "fetch_stale{a block was retired while it was being fetched}": 2,
    "vllm_hook_failed{start_load_kv: ValueError}": 1,
    "blocks_offered": 9,
}


def status(*members: MemberStatus, **counters: int) -> Status:
    spaces = tuple(SpaceStatus(name) for name in dict.fromkeys(member.space for member in members))
    return Status(Process(7, 1, 1), members, 12, counters, spaces)


def rows_of(lines: list[str]) -> list[list[str]]:
    """The table of engines, row by row."""
    start = next(number for number, line in enumerate(lines) if line.split()[:1] == ["pid"])
    rows = []
    for line in lines[start + 1 :]:
        if not line.split()[0].isdigit():
            break
        rows.append(line.split())
    return rows


def test_what_engines_are_called_and_what_they_have_counted(own_address: str):
    members = (
        MemberStatus(34, OTHER, 1, 5, Label("another", 0), {"blocks_offered": 1}),
        MemberStatus(12, ONE, 1, 7, Label(MODEL, 8001), COUNTED),
        MemberStatus(11, ONE, 1, 8, Label(MODEL, 8000)),
    )
    lines = lines_of(screen_of(Address(own_address), status(*members, Join=3, MessageError=1)))
    assert rows_of(lines) == [
        ["34", "-", "1", "5", "-", "-", "-", "0"],
        ["11", "8000", "2", "8", "-", "-", "-", "-"],
        ["12", "8001", "2", "7", "4,096", "2,048", "3.2GB", "3"],
    ]
    said = " ".join(lines)
    assert f"service 7 at {own_address}" in said and "12 blocks on offer, 20 offers, 3 engines, 0 lenders" in said
    assert f"space 1: {OTHER}, engines: 1, model: another" in said
    assert f"space 2: {ONE}, engines: 2, model: {MODEL}" in said
    assert "failed in 12: fetch_stale 2 (a block was retired while it was being fetched), vllm_hook_failed 1" in said
    assert "failed in 34" not in said and "blocks_offered" not in said
    assert "counted by the service: Join 3, MessageError 1" in said
    assert "kvmarket top --why" in said
    for explained in ("blocks:", "offers:", "hits:", "imported:", "fetched:", "failed:", "-:"):
        assert explained in said, "the sums are explained"


def test_lenders_are_told_apart_from_engines(own_address: str):
    counted = {"blocks_lent": 900, "blocks_given_up": 300, "blocks_taken_back": 100}
    members = (
        MemberStatus(11, ONE, 1, 8, Label(MODEL, 8000)),
        MemberStatus(12, ONE, 3, 500, Label(MODEL), counted, lends=True),
        MemberStatus(13, ONE, 1, 0, lends=True),
    )
    lines = lines_of(screen_of(Address(own_address), status(*members)))
    assert [row[0] for row in rows_of(lines)] == ["11", "12", "13"]
    said = " ".join(lines)
    assert "508 offers, 1 engines, 2 lenders" in said and "engines: 1," in said
    assert "12 lends 3 segments, with 500 blocks; kept so far: 900, given up for others: 300, taken back: 100" in said
    assert "13 lends 1 segments, with 0 blocks; kept so far: 0" in said


def test_nobody_is_sent_to_compare_one_space(own_address: str):
    said = " ".join(lines_of(screen_of(Address(own_address), status(MemberStatus(1, ONE, 1, 0)))))
    assert "--why" not in said and f"space 1: {ONE}, engines: 1, model: -" in said


def test_no_word_is_cut_at_80_columns(own_address: str):
    """With the largest numbers that engines may report."""
    most = (1 << 63) - 1
    counted = dict.fromkeys(COUNTED, most)
    members = [
        MemberStatus(4194304 - number, space, 2, 1 << 24, Label(MODEL, 65535), counted)
        for number, space in enumerate([ONE] * 120 + [OTHER])
    ]
    place = Address(own_address)
    words = words_of(screen_of(place, status(*members, Join=most, OfferBlocks=most)))
    needed = {ONE + ",", OTHER + ",", MODEL, "4194304", "65535", "16.8M", "9.2E", "9.2EB", str(place)}
    needed |= {"pid", "port", "space", "offers", "hits", "imported", "fetched", "failed", "vllm_hook_failed"}
    assert needed <= words


def test_what_engines_say_is_shown_as_it_is(own_address: str):
    """Square brackets are no markup."""
    member = MemberStatus(1, "[red]s[/red]", 1, 0, Label("[bold]m"), {"fetch_failed{[/x]}": 1})
    said = " ".join(lines_of(screen_of(Address(own_address), status(member))))
    assert "[red]s[/red]" in said and "[bold]m" in said and "([/x])" in said


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "-"), (0, "0B"), (999_999, "999,999B"), (1_000_000, "1.0MB"), (1_234_567, "1.2MB"),
        (999_999_999, "1000.0MB"), (2 * 10**12, "2.0TB"), ((1 << 63) - 1, "9.2EB"),
    ],
)  # fmt: skip
def test_amounts_are_short(amount: int | None, text: str):
    assert short(amount, "B") == text


def test_a_sum_is_over_all_reasons_and_unknown_where_nothing_was_counted():
    counted = {"a": 1, "a{x}": 2, "b{y}": 4, "ab": 8}
    assert total(counted, ["a"]) == 3 and total(counted, ["a", "b"]) == 7 and total(counted, ["c"]) is None
