"""How much memory of a device is lent, and whether there is still enough free memory for others."""

from __future__ import annotations

from pathlib import Path

import torch

from kvmarket.errors import MisuseError
from kvmarket.registry.protocol.messages import MAX_POOLS

SEGMENT_BYTES = 1 << 30
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class Budget:
    """Memory of one device that is lent: up to `nbytes`, in segments of equal size, while others have `keep_free`."""

    def __init__(
        self, device: torch.device, nbytes: int, segment_bytes: int = SEGMENT_BYTES, keep_free: int = 0
    ) -> None:
        """Lend nothing yet. `keep_free`: bytes of the device that stay free. Raises MisuseError unless `nbytes` > 0."""
        if nbytes < 1:
            raise MisuseError(f"{nbytes} bytes of {device} to lend; give at least the size of a block")
        count = min(MAX_POOLS, -(-nbytes // segment_bytes))
        self.device, self.nbytes, self.segment_bytes, self.keep_free = device, nbytes, nbytes // count, keep_free
        self.lent = 0

    @property
    def room(self) -> bool:
        """Whether one more segment may be lent."""
        return self.lent + self.segment_bytes <= self.nbytes and self._free_after(self.segment_bytes)

    @property
    def short(self) -> bool:
        """Whether others have less free memory than is to be kept for them."""
        return not self._free_after(0)

    def _free_after(self, nbytes: int) -> bool:
        """Whether enough stays free when `nbytes` more are lent."""
        return not self.keep_free or free_bytes(self.device) - nbytes >= self.keep_free


def free_bytes(device: torch.device) -> int:
    """Free memory of a device. Of the host: what can be had without swapping, within the limit of our control group.

    Costs about 50 us. The host's is 0 where the kernel does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = MEMINFO.read_text().splitlines()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    try:
        most, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no control group of the second version
        return free
    return free if most == "max" else min(free, int(most) - int(used))
