"""``kvmarket doctor --measure``: the rate of each way between two devices, over CUDA IPC from a second process.

One buffer on either side is used with several layouts, so that each way is measured with layouts that it is for: `pull`
from pages to pages, `copy` from packed slots to packed slots, `staged` from packed slots to pages. Slots are random.
Each way is measured with one copy at a time, and with two copies under way all the time.
``python -m kvmarket.cli.doctor.measure`` is the second process, which owns the source.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import msgspec
import numpy as np
import torch

from kvmarket.cli.doctor.second_process import Line, second_process
from kvmarket.kernels.addresses.tables import table_of
from kvmarket.layout.paged import PagedCache, SlotArray
from kvmarket.transport import Memory, export, map_memory
from kvmarket.ways import Copy, Mover
from kvmarket.ways.choice import Case, Rate

SIZES = tuple(mib << 20 for mib in (2, 16, 64, 256, 1024))
SHARE = 0.4  # of a GPU's free memory that the measurement may use
LAYERS, TOKENS = 32, 16
WARM_UPS, RUNS = 2, 7
CEILING = "contiguous"  # the name, in place of a way, of one contiguous copy of as many bytes


class Task(msgspec.Struct, frozen=True):
    """The second process' task: own `nbytes` bytes on `device`."""

    device: str
    nbytes: int


class Owned(msgspec.Struct, frozen=True):
    """The second process' answer: the descriptor of its memory."""

    memory: Memory


def sizes_for(reader: torch.device, owner: torch.device) -> tuple[int, ...]:
    """The sizes that fit in 40 % of the free memory of both GPUs; if they are the same GPU, twice in its 40 %."""
    sides = 2 if reader == owner else 1
    free = min(torch.cuda.mem_get_info(device)[0] for device in (reader, owner))
    return tuple(size for size in SIZES if sides * size <= SHARE * free)


def cases_here() -> tuple[Case, ...]:
    """The cases of the ways that are available on this machine."""
    from kvmarket.ways.gpu.mover import WAYS  # needs Triton, which a machine without GPUs may lack

    return tuple(case for way in WAYS if way.available() for case in way.cases)


def measure(
    reader: torch.device,
    owner: torch.device,
    sizes: Sequence[int],
    mover: Callable[[SlotArray, str], Mover],
    cases: Sequence[Case],
) -> Iterator[Rate]:
    """Measure `cases` and the ceiling at every size, from memory of a second process on `owner` to our own on `reader`.

    `mover(slots, way)` makes a mover into these slots that always takes this way. Starting takes about twenty seconds.
    Raises KVMarketError if the second process dies, RuntimeError if a copy fails.
    """
    if not sizes:
        return
    with second_process("kvmarket.cli.doctor.measure", Task(str(owner), max(sizes))) as process:
        yield from _measured(process.receive(Owned).memory, reader, sizes, mover, cases)


def _measured(
    memory: Memory,
    reader: torch.device,
    sizes: Sequence[int],
    mover: Callable[[SlotArray, str], Mover],
    cases: Sequence[Case],
) -> Iterator[Rate]:
    source = map_memory(memory, reader)[0][: max(sizes)]
    own = torch.zeros_like(source)
    for size in sizes:
        seconds = _median(partial(_copy_contiguous, source[:size], own[:size]))
        yield Rate(CEILING, size, size, size / seconds)
    for case in cases:
        here = slots_of(own, case.page, packed=case.packed_own)
        there = slots_of(source, case.page, packed=case.packed_source)
        moving = mover(here, case.way)
        try:
            moving.prepare(there, memory.device)
            fragment = table_of(there, here).length
            for size in sizes:
                copy = _random_copy(there, here, size // here.layout.slot_bytes)
                yield Rate(case.way, size, fragment, size / _median(partial(_move, moving, copy)))
                yield Rate(case.way, size, fragment, size / _behind_another(moving, copy), busy=True)
        finally:
            moving.close()


def slots_of(memory: torch.Tensor, page: int, *, packed: bool) -> SlotArray:
    """View `memory` as slots: pages of `page` bytes (K and V of 16 tokens), 32 layers one after another; or packed."""
    slots = memory.numel() // (LAYERS * page)
    used = memory[: slots * LAYERS * page].view(torch.bfloat16)
    layers = used.view(LAYERS, slots, 2, TOKENS, page // (2 * TOKENS * used.element_size())).unbind(0)
    array = PagedCache(layers, TOKENS).slot_array()
    return SlotArray(array.layout.as_packed(slots), [memory]) if packed else array


def _random_copy(source: SlotArray, own: SlotArray, blocks: int) -> Copy:
    """A copy of `blocks` random slots to random slots, with checksums if possible, as for a fetch of staged blocks."""
    chance = np.random.default_rng(blocks)
    slots = [chance.permutation(array.layout.slots)[:blocks] for array in (source, own)]
    return Copy(source, slots[0], slots[1], summed=True)


def _move(mover: Mover, copy: Copy) -> None:
    mover.start([copy]).finish()


def _copy_contiguous(source: torch.Tensor, own: torch.Tensor) -> None:
    own.copy_(source, non_blocking=True)
    if own.is_cuda:
        torch.cuda.current_stream(own.device).synchronize()


def _median(run: Callable[[], None]) -> float:
    """Median of the seconds that `run` takes."""
    seconds = []
    for _ in range(WARM_UPS + RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UPS:])


def _behind_another(mover: Mover, copy: Copy) -> float:
    """Median of the seconds between the ends of copies while two are under way all the time."""
    under_way, ends = deque([mover.start([copy]), mover.start([copy])]), []
    for _ in range(WARM_UPS + RUNS):
        under_way.popleft().finish()
        ends.append(time.perf_counter())
        under_way.append(mover.start([copy]))
    for started in under_way:
        started.finish()
    return statistics.median(b - a for a, b in pairwise(ends[WARM_UPS - 1 :]))


def own_memory(line: Line) -> None:
    """Run the second process: own memory until the first process closes our stdin."""
    task = line.task(Task)
    memory = torch.zeros(task.nbytes, dtype=torch.uint8, device=task.device)
    exported = export([memory.untyped_storage()])
    if memory.is_cuda:
        torch.cuda.current_stream(memory.device).synchronize()
    line.send(Owned(exported))
    line.wait()


if __name__ == "__main__":
    own_memory(Line())
