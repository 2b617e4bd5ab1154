"""The ways to move blocks. `way` is the interface, `choice` picks a way for each copy, a mover launches the copies.

========  ==============================================================================================
`pull`    one kernel reads the owner's slots over the link and writes our own
`copy`    slot to slot by the copy engine, where slots are contiguous on both sides: no SM at all
`staged`  the copy engine copies packed slots into a ring of local buffers, a kernel scatters them
`shm`     POSIX shared memory, by a thread of the CPU
========  ==============================================================================================

The ways of a GPU are modules of `gpu`, listed in `gpu.mover.WAYS`. The way of a CPU is in `cpu`, listed in `cpu.WAYS`.
"""

from __future__ import annotations

from kvmarket.ways.copying import FAILURES, Copy, Int64s, Mover, Started

__all__ = ["FAILURES", "Copy", "Int64s", "Mover", "Started"]
