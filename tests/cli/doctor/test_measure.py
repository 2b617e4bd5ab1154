"""`kvmarket doctor --measure`: the cases, a second process that owns the memory, tables of what came of it."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from kvmarket.cli.doctor import gpus, rates
from kvmarket.cli.doctor.finding import Finding
from kvmarket.cli.doctor.measure import CEILING, measure, slots_of
from kvmarket.kernels.addresses.tables import table_of
from kvmarket.ways.choice import Candidate, Forced
from kvmarket.ways.cpu import CpuMover
from kvmarket.ways.gpu.mover import WAYS

MIB = 1 << 20
SIZES = (2 * MIB, 8 * MIB)
CASES = tuple(case for way in WAYS for case in way.cases)


def shown(measured: rates.Measured) -> str:
    """Its table as text."""
    console = Console(record=True, width=100)
    console.print(rates.table_of_rates(measured))
    return console.export_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_measuring_without_a_gpu_is_a_note():
    (finding,) = rates.measure_pairs()
    assert finding.level == "note"
    assert "pull, copy and staged cannot be measured" in finding.found


def test_cases_are_what_their_ways_are_for():
    source, own = (torch.zeros(8 * MIB, dtype=torch.uint8) for _ in range(2))
    fragments = {}
    for case in CASES:
        there = slots_of(source, case.page, packed=case.packed_source)
        here = slots_of(own, case.page, packed=case.packed_own)
        table = table_of(there, here)
        fragments[case.way, case.page] = table.length
        assert (table.count == 1) == (case.way == "copy")
        assert there.layout.packed == (case.way != "pull")
        assert here.layout.slots * here.layout.slot_bytes == 8 * MIB
    assert fragments == {
        ("pull", 65536): 65536,
        ("pull", 4096): 4096,
        ("copy", 65536): 2 * MIB,
        ("staged", 65536): 65536,
    }
    assert Forced("staged").way(1, 1, (Candidate("pull"),)) == "staged"


@pytest.mark.slow
def test_measures_memory_of_a_second_process(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu = torch.device("cpu")
    found = list(measure(cpu, cpu, SIZES, lambda own, way: CpuMover(own), CASES))
    ceiling = [(CEILING, size, False) for size in SIZES]
    every = [(case.way, size, busy) for case in CASES for size in SIZES for busy in (False, True)]
    assert [(rate.way, rate.nbytes, rate.busy) for rate in found] == [*ceiling, *every]
    assert all(rate.rate > 1e6 for rate in found)
    text = shown(rates.Measured("here", "there", tuple(found[2:]), tuple(found[:2])))
    assert all(word in text for word in ("2 MiB", "8 MiB", "64 KiB", "4 KiB", "2048 KiB", "one contiguous copy"))


def check_measured(reader: str, owner: str) -> None:
    """Every case at two sizes, none faster than light."""
    here, there = torch.device(reader), torch.device(owner)
    found = list(measure(here, there, SIZES, rates._gpu_mover, CASES))
    assert len(found) == len(SIZES) * (2 * len(CASES) + 1)
    assert all(1e8 < rate.rate < 1e13 for rate in found)


@pytest.mark.gpu
def test_measures_one_gpu():
    check_measured("cuda:0", "cuda:0")


@pytest.mark.gpu2
@pytest.mark.parametrize(("reader", "owner"), [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")])
def test_measures_two_gpus(reader, owner):
    check_measured(reader, owner)


@pytest.mark.gpu
@pytest.mark.slow
def test_measured_pairs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rates, "SIZES", SIZES)
    monkeypatch.setattr(rates, "sizes_for", lambda reader, owner: SIZES)
    results = list(rates.measure_pairs())
    assert not [result for result in results if isinstance(result, Finding) and result.level != "ok"]
    assert all(finding.level == "ok" for finding in gpus.tables())
    measured = [result for result in results if isinstance(result, rates.Measured)]
    assert len(measured) == len(gpus.pairs())
    assert all("one contiguous copy" in shown(result) for result in measured)
