"""The data plane: copy blocks between slots of two arrays. ``copy_blocks`` chooses; ``fragments`` plans.

The Triton kernels live in modules of their own names (``pack``, ``scatter``, ``pull``), with the torch reference of
each in ``reference``; they are imported from there, so that a machine without Triton can import this package.
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
