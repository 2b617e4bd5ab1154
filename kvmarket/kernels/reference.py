"""Pack, scatter and pull in torch, without Triton: tests compare the kernels with it, and CPU-only machines run it.

It uses the shapes and strides of the parts and shares no code with the planning of the kernels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvmarket.errors import LayoutError
from kvmarket.kernels.addresses.pairs import PairCache
from kvmarket.layout.paged import SlotArray

Views = list[tuple[torch.Tensor, torch.Tensor]]
SLICE_BYTES = 16384  # copies of less than this each are faster as one gather by index


def pack_reference(
    source: SlotArray, source_slots: torch.Tensor, destination: SlotArray, destination_slots: torch.Tensor
) -> None:
    """As ``pack``; on CPU arrays the bytes are there when it returns."""
    if not destination.layout.packed:
        raise LayoutError("pack needs a packed destination: use pull_reference between other layouts")
    pull_reference(source, source_slots, destination, destination_slots)


def scatter_reference(
    source: SlotArray, source_slots: torch.Tensor, destination: SlotArray, destination_slots: torch.Tensor
) -> None:
    """As ``scatter``; on CPU arrays the bytes are there when it returns."""
    if not source.layout.packed:
        raise LayoutError("scatter needs a packed source: use pull_reference between other layouts")
    pull_reference(source, source_slots, destination, destination_slots)


def pull_reference(
    source: SlotArray, source_slots: torch.Tensor, destination: SlotArray, destination_slots: torch.Tensor
) -> None:
    """As ``pull``; on CPU arrays the bytes are there when it returns. Copies directly, without a packed copy between.

    Slot ids are not checked. Raises LayoutError when the geometries differ.
    """
    if destination.device.type != "cpu":
        for view, own in matched_views(source, destination):
            own[destination_slots] = view[source_slots]
        return
    pairs = _matched_arrays(source, destination)
    ids, places = source_slots.numpy(), destination_slots.numpy()
    if len(ids):
        runs = _runs(ids, places)
        for there, here in pairs:
            _copy(there, ids, here, places, runs)


def _copy(
    there: npt.NDArray[Any],
    ids: npt.NDArray[np.int64],
    here: npt.NDArray[Any],
    places: npt.NDArray[np.int64],
    runs: list[tuple[int, int, int]],
) -> None:
    """Copy slots ``ids`` of one view to ``places`` of another: run by run where runs are long, else by index."""
    slot_bytes = math.prod(here.shape[1:]) * here.itemsize
    if len(ids) * slot_bytes >= len(runs) * SLICE_BYTES:
        for first, place, count in runs:
            here[place : place + count] = there[first : first + count]
    else:
        here[places] = there[ids]


def _runs(ids: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return (source slot, destination slot, count) of each run that is consecutive on both sides."""
    breaks = np.flatnonzero((np.diff(ids) != 1) | (np.diff(places) != 1)) + 1
    heads = np.concatenate([[0], breaks])
    counts = np.diff(heads, append=len(ids))
    return list(zip(ids[heads].tolist(), places[heads].tolist(), counts.tolist(), strict=True))


def _match(source: SlotArray, destination: SlotArray) -> Views:
    """Return pairs of views of both arrays: equal shapes, canonical order, every byte of a slot once."""
    if source.layout.geometry() != destination.layout.geometry():
        raise LayoutError(
            f"blocks of ({source.layout.geometry()}) do not fit slots of ({destination.layout.geometry()}): "
            "give both engines the same model, dtype and block size, and pass views of the same logical shape"
        )
    there, here = source.part_views(), destination.part_views()
    if [view.shape[1:] for view in there] != [view.shape[1:] for view in here]:
        there, here = _pieces(source), _pieces(destination)
    return list(zip(there, here, strict=True))


matched_views = PairCache(_match)
"""The pairs of views for (source, destination), cached while both live."""

_matched_arrays = PairCache(lambda source, destination: _as_numpy(matched_views(source, destination)))


def _as_numpy(views: Views) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Return the same memory as numpy arrays: on CPUs numpy copies rows several times as fast as torch's indexing."""
    return [(there.numpy(), here.numpy()) for there, here in views]


def _pieces(array: SlotArray) -> list[torch.Tensor]:
    """Return one view per layer; two where the layer's shape starts with a 2, one for each half (K and V)."""
    views = array.part_views()
    if array.layout.packed:
        flat = views[0].reshape(array.layout.slots, -1)
        sizes = [math.prod(shape) for shape in array.layout.layers]
        ends = np.cumsum(sizes).tolist()
        views = [
            flat[:, end - size : end].view(array.layout.slots, *shape)
            for end, size, shape in zip(ends, sizes, array.layout.layers, strict=True)
        ]
    rest = iter(views)
    pieces = []
    for shape in array.layout.layers:
        view = next(rest)
        if shape[:1] != (2,):
            pieces.append(view)
        elif view.shape[1:] == shape:
            pieces += [view[:, 0], view[:, 1]]
        else:
            pieces += [view, next(rest)]
    return pieces
