"""How much memory of a device is lent, and what must stay free."""

from __future__ import annotations

import random

import pytest
import torch

from kvmarket.lend import budget as budget_module
from kvmarket.lend.budget import MOST_SEGMENTS, Budget, free_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(("nbytes", "segment", "count"), [(10, 4, 3), (8, 4, 2), (3, 4, 1), (1024, 1, 32)])
def test_memory_is_cut_into_equal_segments(nbytes, segment, count):
    budget = Budget(CPU, nbytes, segment)
    assert budget.segment_bytes == nbytes // count
    for _ in range(count):
        assert budget.room
        budget.lent += budget.segment_bytes
    assert not budget.room


def test_a_new_size_keeps_what_is_lent_and_cuts_what_is_not():
    budget = Budget(CPU, 8, 4)
    budget.lent = 8
    budget.resize(3)
    assert budget.over and not budget.room and budget.segment_bytes == 3
    budget.lent = 0
    assert not budget.over and budget.room
    budget.resize(0)
    assert budget.spent and not budget.room and not budget.over, "nothing is lent, not even what has no size"
    budget.lent = 1
    assert budget.over
    budget.resize(400)
    assert not budget.over and budget.segment_bytes == 400 // MOST_SEGMENTS


def test_resized_again_and_again_it_fills_up_with_few_segments():
    """As a lender does it: beyond MOST_SEGMENTS each new segment takes the place of the smallest one, and is larger."""
    chance = random.Random(0)
    budget, segments = Budget(CPU, 1 << 12, 1 << 10), []
    for _ in range(2000):
        budget.resize(chance.choice([0, chance.randrange(1, 1 << 12), chance.randrange(1 << 12, 1 << 20)]))
        while budget.over:
            budget.lent -= segments.pop()
        while budget.room and chance.random() < 0.97:
            if len(segments) == MOST_SEGMENTS:
                smallest = min(segments)
                assert smallest < budget.segment_bytes
                segments.remove(smallest)
                budget.lent -= smallest
            segments.append(budget.segment_bytes)
            budget.lent += budget.segment_bytes
        assert budget.lent == sum(segments) <= budget.nbytes and len(segments) <= MOST_SEGMENTS


def test_what_others_need_is_neither_lent_nor_kept(monkeypatch):
    free = [0]
    monkeypatch.setattr(budget_module, "free_bytes", lambda device: free[0])
    assert Budget(CPU, 8, 4).room and not Budget(CPU, 1).short, "nothing is to be kept free"
    budget = Budget(CPU, 8, 4, keep_free=10)
    for free[0], short, room in ((9, True, False), (10, False, False), (13, False, False), (14, False, True)):
        assert (budget.short, budget.room) == (short, room)
    budget.lent = 8
    assert not budget.room


def test_free_memory_is_that_of_the_machine_or_of_a_control_group(monkeypatch, tmp_path):
    assert free_bytes(CPU) > 0
    meminfo, own, group = tmp_path / "meminfo", tmp_path / "own", tmp_path / "a" / "b"
    for name, value in (("MEMINFO", meminfo), ("OWN_GROUP", own), ("CGROUP", tmp_path)):
        monkeypatch.setattr(budget_module, name, value)
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:       7 kB\n")
    assert free_bytes(CPU) == 7 * 1024, "there are no groups"
    own.write_text("1:name=systemd:/x\n")
    assert free_bytes(CPU) == 7 * 1024, "none of the second version"
    own.write_text("1:name=systemd:/x\n0::/a/b\n")
    group.mkdir(parents=True)
    for each, most in ((group, "max"), (group.parent, "3000")):
        (each / "memory.current").write_text("1000\n")
        (each / "memory.max").write_text(f"{most}\n")
        (each / "memory.stat").write_text("anon 500\ninactive_file 300\nactive_file 20\n")
    assert free_bytes(CPU) == 2320, "the limit of the group above, and files count as free"
    (group / "memory.max").write_text("1100\n")
    assert free_bytes(CPU) == 420
    (group / "memory.max").write_text("900000\n")
    (group.parent / "memory.max").write_text("900000\n")
    assert free_bytes(CPU) == 7 * 1024
    meminfo.write_text("")
    assert free_bytes(CPU) == 0
