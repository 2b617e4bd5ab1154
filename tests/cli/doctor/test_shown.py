"""What the doctor prints fits a terminal of 80 columns, and no word of it is cut."""

from __future__ import annotations

import itertools

import pytest

from kvmarket.cli.doctor import machine
from kvmarket.cli.doctor.doctor import _table
from kvmarket.cli.doctor.finding import Finding
from kvmarket.cli.doctor.rates import Measured, table_of_rates
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.listener import Listener
from kvmarket.ways.choice import Rate
from tests.cli.shown import lines_of, words_of

UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"
OF_GPUS = [
    Finding("GPU 0", "ok", f"NVIDIA H200, 141 GB, compute capability 9.0, UUID {UUID}"),
    Finding("links of GPU 0", "ok", "18 NVLink links active x 26.56 GB/s = 478 GB/s each way, raw"),
    Finding(
        "cuda:0 read from a second process on cuda:1", "bad", "the bytes differ", "see [dmesg] and kvmarket doctor"
    ),
]


def words(findings: list[Finding]) -> set[str]:
    return {word for each in findings for word in f"{each.what} {each.found} {each.advice}".split()}


def test_findings(own_address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVMARKET_ADDRESS", own_address)
    findings = [*machine.machine(), *OF_GPUS]
    assert words(findings) <= words_of(_table(findings))


def test_rates():
    sizes = [mib << 20 for mib in (2, 16, 64, 256, 1024)]
    ways, fragments = ("pull", "copy", "staged"), (1 << 10, 64 << 10, 2 << 20)
    rates = [
        Rate(way, size, fragment, 399.9e9, busy=busy)
        for way, size, fragment, busy in itertools.product(ways, sizes, fragments, (False, True))
    ]
    measured = Measured("cuda:0", "cuda:1", tuple(rates), tuple(Rate("", size, 0, 399.9e9) for size in sizes))
    lines = lines_of(table_of_rates(measured))
    assert {"1024", "399.9", "2048", "KiB", "staged,", "under", "way"} <= set(" ".join(lines).split())
    assert sum(line.count("399.9") for line in lines) == len(rates) + len(sizes), "no number is cut"


def test_other_markets_are_named(own_address: str, monkeypatch: pytest.MonkeyPatch):
    """Whoever mistypes an address is served, and alone."""
    listeners = [Listener(Address(own_address + end)) for end in (".a", ".b")]
    monkeypatch.setenv("KVMARKET_ADDRESS", own_address)
    try:
        (finding,) = (each for each in machine.machine() if each.what == "other markets")
        assert finding.level == "note" and "one address" in finding.advice
        for end in (".a", ".b"):
            assert f"another market lives at {own_address}{end}" in finding.found
        monkeypatch.setenv("KVMARKET_ADDRESS", "tcp://here")
        assert not list(machine._other_markets())
    finally:
        for listener in listeners:
            listener.close()
    monkeypatch.setenv("KVMARKET_ADDRESS", own_address)
    assert own_address not in "".join(each.found for each in machine._other_markets())
