"""`kvmarket doctor`: what it finds, what it cannot look at, and the tables that it keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pynvml
import pytest
import torch

from kvmarket import counters
from kvmarket.cli.doctor import gpus, machine, self_test
from kvmarket.cli.doctor.doctor import Report
from kvmarket.cli.doctor.finding import Finding
from kvmarket.cli.doctor.measure import Owned, Task
from kvmarket.cli.doctor.second_process import second_process
from kvmarket.errors import KVMarketError
from kvmarket.processes import numbers
from kvmarket.registry.protocol import folder
from kvmarket.transport import export
from kvmarket.ways.choice import Candidate, Choice, Rate, Table, load, path_of, save

MIB = 1 << 20


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    """What the command line finds on this machine."""
    folder = tmp_path_factory.mktemp("doctor")
    run = subprocess.run(
        [sys.executable, "-m", "kvmarket.cli", "doctor", "--json"],
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "KVMARKET_ADDRESS": str(folder / "s"), "XDG_CACHE_HOME": str(folder), "FORCE_COLOR": "1"},
        capture_output=True,
        check=False,
    )
    assert run.stdout, run.stderr.decode()
    report = msgspec.json.decode(run.stdout, type=Report)
    assert run.returncode == any(finding.level == "bad" for finding in report.findings), run.stderr.decode()
    return report


@pytest.fixture
def cache_home(tmp_path, monkeypatch) -> Path:
    """Where tables are kept, for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


@pytest.mark.slow
def test_json_is_one_document(report):
    found = by_name(report.findings)
    assert len(found) == len(report.findings)
    assert {"kvmarket", "python", "torch", "msgspec", "vllm", "generations", "/dev/shm", "market"} <= set(found)
    assert {"PID namespace", "the market's folder", "limit of open files", "limit of locked memory", "driver"} <= set(
        found
    )
    assert found["cpu read from a second process on cpu"].found == "equal bytes"
    assert found["descriptors of another process"].level == "ok"
    assert all(bool(finding.advice) == (finding.level != "ok") for finding in report.findings)
    assert not report.measured


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
@pytest.mark.slow
def test_says_what_it_cannot_look_at(report):
    found = by_name(report.findings)["GPUs"]
    assert found.level == "note"
    assert all(word in found.found for word in ("links", "peer access", "copy engine", "rates", "cannot be looked at"))


WAYS = Candidate("pull"), Candidate("staged")
BUILT_IN = Choice([Rate("pull", MIB, 65536, 9e9)])


def test_a_saved_table_is_chosen(cache_home):
    assert load("reader", "owner", BUILT_IN) is BUILT_IN
    path = save(Table("reader", "owner", (Rate("pull", MIB, 65536, 8e9), Rate("staged", MIB, 65536, 9e9))))
    assert path == path_of("reader", "owner")
    assert path.is_relative_to(cache_home)
    assert load("reader", "owner", BUILT_IN).way(1024 * MIB, 65536, WAYS) == "staged"
    assert load("owner", "reader", BUILT_IN) is BUILT_IN


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"reader": "r", "owner": "o", "rates": [{"way": "pull"}]}'])
def test_a_broken_table_falls_back_and_is_counted(cache_home, content):
    path = save(Table("reader", "owner", (Rate("pull", MIB, 65536, 9e9),)))
    path.write_bytes(content)

    def count() -> int:
        return sum(n for name, n in counters.snapshot().items() if name.startswith("table_unreadable"))

    before = count()
    assert load("reader", "owner", BUILT_IN) is BUILT_IN
    assert count() == before + 1


def test_a_second_process_that_dies_says_why():
    said = pytest.raises(KVMarketError, match=r"exit code 1: .*No module named kvmarket\.cli\.not_there")
    with second_process("kvmarket.cli.not_there", Task("cpu", 1)) as process, said:
        process.receive(Owned)


def test_wrong_bytes_are_seen():
    payload = torch.arange(self_test.BYTES, dtype=torch.uint8)
    memory = export([payload.untyped_storage()])
    task = self_test.Task(os.getpid(), "cpu", (memory,), ("no digest",))
    assert self_test.answer(task) == self_test.Answer(("the bytes differ",), "")


@pytest.mark.parametrize(("namespace", "level"), [(numbers.HOST, "ok"), (7, "note")])
def test_a_container_is_noticed(monkeypatch, namespace, level):
    monkeypatch.setattr(machine, "pid_namespace", lambda: namespace)
    finding = machine._pid_namespace()
    assert finding.level == level and ("--pid=host" in finding.advice) == (level == "note")


MOUNTS = """22 28 0:21 / /proc rw,nosuid shared:5 - proc proc rw
28 1 8:1 / / rw,relatime shared:1 - {kind} /dev/root rw
30 28 0:26 {tmp} /tmp rw shared:12 - ext4 /dev/sda1 rw
41 28 0:30 / /srv/market rw - tmpfs tmpfs rw
42 28 0:31 / /run rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("address", "kind", "tmp", "says"),
    [
        ("/tmp/kvm/market", "ext4", "/tmp", ""),
        ("/tmp/kvm/market", "ext4", "/tmp/systemd-private-3f2-vllm.service-Yx/tmp", "PrivateTmp"),
        ("/opt/market/s", "overlay", "/tmp", "container"),
        ("/srv/market/s", "overlay", "/tmp", ""),
        ("/run/market/s", "overlay", "/tmp", "container"),
    ],
)
@pytest.mark.parametrize("contained", [True, False])
def test_whether_others_can_have_the_folder(monkeypatch, tmp_path, address, kind, tmp, says, contained):
    monkeypatch.setattr(folder, "pid_namespace", lambda: 7 if contained else numbers.HOST)
    monkeypatch.setattr(machine, "Address", lambda: SimpleNamespace(socket=Path(address)))
    lines = MOUNTS.format(kind=kind, tmp=tmp).splitlines()
    real = folder._mount_of
    monkeypatch.setattr(folder, "_mount_of", lambda _here, _lines: real(Path(address).parent, lines))
    finding = machine._folder()
    noted = says and (contained or says == "PrivateTmp")
    assert finding.level == ("note" if noted else "ok") and str(Path(address).parent) in finding.found
    assert ("KVMARKET_ADDRESS" in finding.advice and says in finding.found) == bool(noted)


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, so to speak: the first one may read the second one, not the other way round."""
    properties = {"name": "NVIDIA Z", "total_memory": 141e9, "major": 9, "minor": 0}
    links = [1] * 18
    uuids = ["f0", "f1"]

    def link(handle: str, number: int) -> int:
        if number >= len(links):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return links[number]

    def fields(handle: str, ids: list[int]) -> list[SimpleNamespace]:
        return [SimpleNamespace(nvmlReturn=pynvml.NVML_SUCCESS, value=SimpleNamespace(uiVal=26562)) for _ in ids]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda reader, owner: reader.index == 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[device.index], **properties)
    )
    for name, function in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetNvLinkState": link,
        "nvmlDeviceGetFieldValues": fields,
        "nvmlDeviceGetP2PStatus": lambda reader, owner, index: pynvml.NVML_P2P_STATUS_OK,
    }.items():
        monkeypatch.setattr(pynvml, name, function)
    gpus._unusable.cache_clear()
    yield links
    gpus._unusable.cache_clear()


def test_gpus_and_links(two_gpus):
    found = by_name(list(gpus.gpus()))
    assert found["driver"].found == "580.1"
    assert found["GPU 1"].found == "NVIDIA Z, 141 GB, compute capability 9.0, UUID f1"
    assert found["links of GPU 0"].found == "18 NVLink links active x 26.56 GB/s = 478 GB/s each way, raw"
    assert found["GPU 0 reads GPU 1"].found == "peer access, over NVLink"
    assert (found["GPU 1 reads GPU 0"].level, found["GPU 1 reads GPU 0"].found) == ("bad", "no peer access")
    two_gpus[:] = [0]
    assert by_name(list(gpus.gpus()))["links of GPU 0"].found == "no NVLink link is active"


def test_gpus_without_nvml(two_gpus, monkeypatch):
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    found = by_name(list(gpus.gpus()))
    assert {found[what].level for what in ("driver", "links of GPU 0", "links of GPU 1")} == {"note"}
    assert found["GPU 0 reads GPU 1"].level == "ok"


def test_gpus_that_torch_cannot_use(two_gpus, monkeypatch):
    def fail() -> None:
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(torch.cuda, "init", fail)
    found = by_name(list(gpus.gpus()))["GPUs"]
    assert found.level == "bad"
    assert "too old" in found.found
    assert not gpus.pairs()


def test_tables_are_dated(two_gpus, cache_home):
    path = save(Table("f0", "f1", (Rate("pull", MIB, 65536, 9e9),)))
    os.utime(path, (path.stat().st_mtime - 3 * 86400,) * 2)
    save(Table("f0", "f0", ())).write_bytes(b"{")
    found = by_name(list(gpus.tables()))
    assert "measured 3 days ago" in found["rates of cuda:0 reading cuda:1"].found
    assert "cannot be read" in found["rates of cuda:0 reading cuda:0"].found
    assert "not measured" in found["rates of cuda:1 reading cuda:1"].found
    assert len(found) == 3


@pytest.mark.gpu
@pytest.mark.slow
def test_self_test_of_every_pair(report):
    found = by_name(report.findings)
    indices = range(torch.cuda.device_count())
    assert all(f"cuda:{a} read from a second process on cuda:{b}" in found for a in indices for b in indices)
    assert found["cuda:0 read from a second process on cuda:0"].found == "equal bytes"
