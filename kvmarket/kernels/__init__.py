"""The data plane: copy blocks between slots of two arrays. ``copy_blocks`` chooses the kernel; ``fragments`` plans.

Each Triton kernel is a module (``pack``, ``scatter``, ``pull``, ``piece_sums``); ``tile`` has the code that they share,
which decodes the address table; ``reference`` has their torch references. Import the kernels from their modules: this
package can be imported on a machine without Triton.
"""

from __future__ import annotations

from kvmarket.kernels.addresses.fragments import Fragments, fragments
from kvmarket.kernels.launch import can_sum, copy_blocks, prepare
from kvmarket.kernels.reference import pack_reference, pull_reference, scatter_reference

__all__ = [
    "Fragments",
    "can_sum",
    "copy_blocks",
    "fragments",
    "pack_reference",
    "prepare",
    "pull_reference",
    "scatter_reference",
]
