"""Checks of the GPUs: names, links, peer access, the copy engine, the tables of measured rates."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import msgspec
import torch

from kvmarket.cli.doctor import nvml
from kvmarket.cli.doctor.finding import Finding
from kvmarket.transport.cuda_ipc import device_uuid
from kvmarket.ways import choice
from kvmarket.ways.gpu import copy_engine

MEASURE = "kvmarket doctor --measure"


def gpus() -> Iterator[Finding]:
    """Check every GPU and every ordered pair. Nothing is copied. Problems are findings, not exceptions."""
    yield _driver()
    trouble, devices = _unusable(), devices_here()
    if trouble:
        yield Finding(
            "GPUs",
            "bad",
            f"torch {torch.__version__} cannot use them: {trouble}",
            "see nvidia-smi; the driver must fit torch's CUDA",
        )
        return
    if not devices:
        unseen = "names, links, peer access, the copy engine and the rates of ways cannot be looked at"
        advice = "engines share through /dev/shm; if there is a GPU, see nvidia-smi and CUDA_VISIBLE_DEVICES"
        yield Finding("GPUs", "note", f"torch {torch.__version__} sees none: {unseen}", advice)
        return
    for device in devices:
        yield _gpu(device)
        yield _links(device)
    for reader in devices:
        yield from (_peer(reader, owner) for owner in devices if owner != reader)
    if copy_engine.takes_batches():
        yield Finding("copy engine", "ok", "the driver takes many ranges in one call")
    else:
        advice = f"install driver 570 or later; until then, {MEASURE} keeps fetches off the ways that need it"
        yield Finding(
            "copy engine", "note", "the driver takes one range a call: copy and staged cannot be used", advice
        )


def tables() -> Iterator[Finding]:
    """For every pair of GPUs with peer access: whether its rates were measured, and when."""
    for reader, owner in pairs():
        path = choice.path_of(device_uuid(reader), device_uuid(owner))
        what = f"rates of {reader} reading {owner}"
        try:
            table = msgspec.json.decode(path.read_bytes(), type=choice.Table)
            yield Finding(what, "ok", f"{len(table.rates)}, measured {_ago(path.stat().st_mtime)}: {path}")
        except FileNotFoundError:
            yield Finding(what, "note", "not measured; those of two H200 over NVLink are taken", MEASURE)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            yield Finding(what, "note", f"{path} cannot be read ({error}); those of two H200 are taken", MEASURE)


def devices_here() -> list[torch.device]:
    """Every GPU that torch sees and can use."""
    return [] if _unusable() else [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def pairs() -> list[tuple[torch.device, torch.device]]:
    """Every (reader, owner) with peer access, and every GPU with itself."""
    here = devices_here()
    return [(a, b) for a in here for b in here if a == b or torch.cuda.can_device_access_peer(a, b)]


def _driver() -> Finding:
    try:
        with nvml.library():
            return Finding("driver", "ok", nvml.driver_version())
    except nvml.NVMLError as error:
        return Finding("driver", "note", f"none that answers: {error}", "only needed for GPUs; see nvidia-smi")


@functools.cache
def _unusable() -> str:
    """Why torch cannot use the GPUs that it sees; empty if it can, or sees none."""
    if torch.cuda.device_count():
        try:
            torch.cuda.init()
        except RuntimeError as error:
            return str(error)
    return ""


def _gpu(device: torch.device) -> Finding:
    properties = torch.cuda.get_device_properties(device)
    facts = [properties.name, f"{properties.total_memory / 1e9:.0f} GB"]
    facts += [f"compute capability {properties.major}.{properties.minor}", f"UUID {device_uuid(device)}"]
    return Finding(f"GPU {device.index}", "ok", ", ".join(facts))


def _links(device: torch.device) -> Finding:
    what = f"links of GPU {device.index}"
    try:
        with nvml.library():
            return Finding(what, "ok", nvml.links(device_uuid(device)))
    except nvml.NVMLError as error:
        return Finding(what, "note", f"the driver does not tell: {error}", "see nvidia-smi nvlink -s")


def _peer(reader: torch.device, owner: torch.device) -> Finding:
    what = f"GPU {reader.index} reads GPU {owner.index}"
    if not torch.cuda.can_device_access_peer(reader, owner):
        advice = "see nvidia-smi topo -p2p r (IOMMU, ACS, virtual machines); keep engines that share on GPUs with it"
        return Finding(what, "bad", "no peer access", advice)
    try:
        with nvml.library():
            link = "over NVLink" if nvml.over_nvlink(device_uuid(reader), device_uuid(owner)) else "not over NVLink"
    except nvml.NVMLError:
        link = "over which link the driver does not tell"
    return Finding(what, "ok", f"peer access, {link}")


def _ago(then: float) -> str:
    """How long ago, in the largest unit of which it is at least two."""
    seconds = max(0.0, time.time() - then)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
