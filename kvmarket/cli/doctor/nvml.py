"""Facts from the driver's management library (NVML, by nvidia-ml-py): the driver's version, and links.

Call the functions inside a `library()` context. They raise `NVMLError` if the library or the GPU is missing, or the
driver cannot tell the fact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pynvml
from pynvml import NVMLError

__all__ = ["NVMLError", "driver_version", "library", "links", "over_nvlink"]


@contextmanager
def library() -> Iterator[None]:
    """A context in which the library is initialized."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def driver_version() -> str:
    """The driver's version, "580.95.05" say."""
    return str(pynvml.nvmlSystemGetDriverVersion())


def links(uuid: str) -> str:
    """The NVLink links of the GPU with this UUID, as text."""
    gpu = _handle(uuid)
    active = _active(gpu)
    if not active:
        return "no NVLink link is active"
    speed = _speed(gpu)
    if not speed:
        return f"{active} NVLink links active, of unknown speed"
    return f"{active} NVLink links active x {speed / 1e3:.2f} GB/s = {active * speed / 1e3:.0f} GB/s each way, raw"


def over_nvlink(reader: str, owner: str) -> bool:
    """Whether two GPUs, by UUID, reach each other over NVLink."""
    status = pynvml.nvmlDeviceGetP2PStatus(_handle(reader), _handle(owner), pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    return bool(status == pynvml.NVML_P2P_STATUS_OK)


def _handle(uuid: str) -> Any:
    """The library's handle of a GPU. Accepts torch's UUIDs, which have no prefix "GPU-"."""
    return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")


def _active(gpu: Any) -> int:
    """Number of active links. An error of the library means that the GPU has no further link."""
    active = 0
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            active += pynvml.nvmlDeviceGetNvLinkState(gpu, link) == pynvml.NVML_FEATURE_ENABLED
        except NVMLError:
            break
    return active


def _speed(gpu: Any) -> int:
    """MB/s of one link in one direction; 0 if the driver does not tell."""
    try:
        (field,) = pynvml.nvmlDeviceGetFieldValues(gpu, [pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON])
    except NVMLError:
        return 0
    return int(field.value.uiVal) if field.nvmlReturn == pynvml.NVML_SUCCESS else 0
