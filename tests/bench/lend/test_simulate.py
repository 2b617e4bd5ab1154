"""The policies of the simulation: what each must hold to, and that a run writes its rows."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from bench import report
from bench.lend import simulate
from bench.lend.policies import LRU, POLICIES
from bench.lend.trace import Request, endless, read
from bench.lend.tree import Tree


def requests(count: int = 400, seed: int = 1) -> list[Request]:
    """Conversations that grow, of which old ones stop; all share a first block."""
    chance, numbers = random.Random(seed), iter(range(1, 1 << 30))
    talks: list[list[int]] = []
    found = []
    for at in range(count):
        if not talks or chance.random() < 0.3:
            talks.append([0])
        talk = chance.choice(talks[-12:])
        talk.extend(next(numbers) for _ in range(chance.randrange(1, 4)))
        found.append(Request(float(at), tuple(talk)))
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [1, 20, 100])
def test_no_block_is_kept_without_those_before_it(policy: str, capacity: int):
    trace = requests()
    cache = POLICIES[policy](capacity, trace)
    for request in trace:
        cache.request(request.blocks)
        if isinstance(cache, Tree):
            assert len(cache.before) <= capacity
            assert all(before is None or before in cache.before for before in cache.before.values())
            behind = [sum(before == block for before in cache.before.values()) for block in cache.before]
            assert list(cache.behind.values()) == behind


@pytest.mark.parametrize("policy", POLICIES)
def test_with_room_for_all_everything_that_came_before_is_found(policy: str):
    trace = requests()
    cache = POLICIES[policy](10_000, trace)
    assert sum(cache.request(request.blocks) for request in trace) == endless(trace)


def test_who_knows_the_future_finds_most():
    trace = requests(1500)
    found = {
        policy: sum(cache.request(request.blocks) for request in trace)
        for policy, cache in ((policy, POLICIES[policy](30, trace)) for policy in POLICIES)
    }
    assert max(found, key=lambda policy: found[policy]) == "optimum"
    assert found["optimum"] > 1.05 * found["LRU"], found


def test_the_least_recently_used_leaf_goes_first():
    cache = LRU(4)
    for blocks in ((1, 2), (3,), (1, 4), (5,)):
        cache.request(blocks)
    assert set(cache.before) == {1, 3, 4, 5}, "2 is the leaf that was used longest ago"


@pytest.mark.parametrize(
    "line", ["{", '{"timestamp": 1}', '{"timestamp": 1, "hash_ids": ["a"]}', '{"timestamp": 1, "hash_ids": [5, 5]}']
)
def test_a_file_that_is_no_trace_is_refused_with_the_line(line: str, tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "hash_ids": [1, 2]}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2 of"):
        read(path)


def test_a_run_prints_shares_and_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    path = tmp_path / "talks.jsonl"
    path.write_text(
        "".join(json.dumps({"timestamp": 1000 * at, "hash_ids": blocks}) + "\n" for at, blocks in requests(100))
    )
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    options = ["--trace", str(path), "--gigabytes", "1", "5", "--write", "here"]
    monkeypatch.setattr(sys, "argv", ["simulate", *options])
    simulate.main()
    printed = capsys.readouterr().out
    assert "talks: 100 requests" in printed and "optimum" in printed
    rows = json.loads((tmp_path / "here-keep.json").read_text())["rows"]
    assert [row["blocks"] for row in rows] == [14] * len(POLICIES) + [74] * len(POLICIES)
    assert all(0 <= row["share"] <= row["ceiling"] and row["ratio"] <= 1 for row in rows)
