"""Every way between slots that lie further from the start of their memory than 32 bits reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvmarket.kernels import pull_reference
from kvmarket.layout.paged import PagedCache, SlotArray
from kvmarket.transport import enable_peer_access
from kvmarket.ways import Copy
from kvmarket.ways.choice import Forced

pytestmark = pytest.mark.gpu
SLOTS, STRIDE, PAGE = 5000, 1 << 20, 8192  # the last slot starts near 5 GiB
FAR = np.array([4999, 0, 2500, 4096, 4097, 4100, 2048, 4998, 4500])
PLACES = np.array([4097, 4999, 1, 4300, 4301, 2049, 4998, 0, 4200])
PEERS = [pytest.param("cuda:0", id="same"), pytest.param("cuda:1", id="peer", marks=pytest.mark.gpu2)]


def memory(nbytes: int, device: str | torch.device) -> torch.Tensor:
    """So many bytes of a GPU, or a skip that says what is missing."""
    free, _ = torch.cuda.mem_get_info(device)
    if free < nbytes + (1 << 30):
        pytest.skip(f"needs {(nbytes >> 30) + 1} GiB on {device}, which has {free >> 30} GiB free")
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


def far_array(device: str, apart: int) -> SlotArray:
    """Slots of two pages of 8 KiB, 1 MiB from one to the next, the pages `apart` bytes from each other."""
    words = memory(SLOTS * STRIDE, device).view(torch.int16)
    pages = [words.as_strided((SLOTS, PAGE // 2), (STRIDE // 2, 1), at // 2) for at in (0, apart)]
    return PagedCache(pages, block_size=16).slot_array()


def packed_far(array: SlotArray) -> tuple[SlotArray, np.ndarray]:
    """The far slots of an array, packed into a pool of 5 GiB beyond its fourth; and in which slots they are there."""
    layout = array.layout.as_packed(SLOTS * STRIDE // array.layout.slot_bytes)
    pool = SlotArray(layout, [memory(layout.segments[0], array.device)])
    ids = np.linspace((4 << 30) // layout.slot_bytes, layout.slots - 1, len(FAR)).astype(np.int64)
    pull_reference(array, torch.from_numpy(FAR).to(array.device), pool, torch.from_numpy(ids).to(array.device))
    return pool, ids


def blocks_of(array: SlotArray, slots: np.ndarray) -> torch.Tensor:
    """The bits in these slots, (slots, pages, words), on the CPU."""
    return torch.stack([view[torch.from_numpy(slots).to(array.device)].cpu() for view in array.part_views()], 1)


def fill(array: SlotArray, slots: np.ndarray, seed: int) -> torch.Tensor:
    """Random bits in these slots; which."""
    shape = blocks_of(array, slots).shape
    bits = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=torch.Generator().manual_seed(seed))
    for number, view in enumerate(array.part_views()):
        view[torch.from_numpy(slots).to(array.device)] = bits[:, number].to(array.device)
    return bits


@pytest.mark.parametrize("owner", PEERS)
@pytest.mark.parametrize(("way", "apart"), [("copy", PAGE), ("pull", 2 * PAGE), ("staged", 2 * PAGE)])
def test_slots_past_4_gib(way: str, apart: int, owner: str):
    from kvmarket.ways.gpu.mover import GpuMover

    source, own = far_array(owner, apart), far_array("cuda:0", apart)
    blocks = fill(source, FAR, 1)
    pool, ids = packed_far(source) if way == "staged" else (source, FAR)
    if owner != "cuda:0":
        enable_peer_access(pool.segments[0], own.device)
    torch.cuda.synchronize(owner)
    mover = GpuMover(own, choice=Forced(way))
    for count in (3, len(FAR)):  # the copy engine takes few slots one by one, more in one call
        before = fill(own, PLACES, 2)
        mover.start([Copy(pool, ids[:count], PLACES[:count], summed=False)]).finish()
        assert torch.equal(blocks_of(own, PLACES), torch.cat([blocks[:count], before[count:]]))
    mover.close()
