"""Tables of fragments at real addresses: what divides all of them, and where each lies in a packed slot."""

from __future__ import annotations

import pytest
import torch

from bench.micro.forms import packed
from kvmarket import PagedCache
from kvmarket.errors import LayoutError, SlotError
from kvmarket.kernels.addresses.slots import check_slots, check_sums
from kvmarket.kernels.addresses.tables import table_of
from kvmarket.layout.paged import SlotArray


def rows_of(dtype: torch.dtype, width: int, gap: int = 0):
    """A cache of four blocks of 16 rows, `gap` elements apart."""
    return PagedCache([torch.zeros(4, 16, width + gap, dtype=dtype)[..., :width] for _ in range(2)]).slot_array()


@pytest.mark.parametrize(
    ("dtype", "width", "gap", "align"),
    [
        (torch.int16, 8, 0, 16),
        (torch.int16, 3, 1, 2),
        (torch.int16, 6, 2, 4),
        (torch.uint8, 8, 4, 4),
        (torch.uint8, 7, 1, 1),
    ],
)
def test_the_alignment_divides_lengths_as_well_as_addresses(dtype, width, gap, align):
    source, destination = rows_of(dtype, width, gap), rows_of(dtype, width, gap)
    assert table_of(source, destination).align == align


def test_the_alignment_divides_the_strides_of_both_sides():
    apart, close = (
        PagedCache([torch.zeros(4, width, dtype=torch.uint8)[:, :128]]).slot_array() for width in (132, 128)
    )
    assert [table_of(*pair).align for pair in ((close, close), (close, apart), (apart, close))] == [16, 4, 4]


def test_both_sides_are_mapped_where_the_copy_runs():
    here = rows_of(torch.int16, 8)
    elsewhere = SlotArray(here.layout, [segment.to("meta") for segment in here.segments])
    for pair in ((here, elsewhere), (elsewhere, here)):
        with pytest.raises(LayoutError, match="map both where the copy runs"):
            table_of(*pair)


def test_the_first_column_is_at_hand():
    source, destination = rows_of(torch.int16, 3, 1), rows_of(torch.int16, 3, 2)
    table = table_of(source, destination)
    assert table.count == table.entries.shape[1] == 32
    assert table.first == tuple(table.entries[:, 0].tolist())
    assert table.first == (source.addresses()[0], 128, destination.addresses()[0], 160, 0)


def test_places_in_a_packed_slot_begin_at_its_own_first_byte():
    whole = torch.zeros(5, 16, 8, dtype=torch.int16)
    later = PagedCache([whole[1:]]).slot_array()
    assert later.layout.packed and later.layout.parts[0].offset == 256
    paged = PagedCache([torch.zeros(4, 16, 9, dtype=torch.int16)[..., :8]]).slot_array()
    for source, destination in ((later, paged), (paged, later)):
        assert table_of(source, destination).entries[4].tolist() == [16 * row for row in range(16)]
    assert not table_of(paged, paged).entries[4].any()
    bundle = packed(paged.layout, 4)
    assert table_of(paged, bundle).entries[4].tolist() == [16 * row for row in range(16)]


def test_slots_and_sums_are_where_the_copy_is_made():
    source, destination = rows_of(torch.int16, 8), packed(rows_of(torch.int16, 8).layout, 4)
    here, elsewhere = torch.tensor([1, 2]), torch.empty(2, dtype=torch.int64, device="meta")
    check_slots(source, here, destination, here)
    for slots in ((here, elsewhere), (elsewhere, here)):
        with pytest.raises(SlotError, match="on meta: pass a 1-D int64 tensor on cpu"):
            check_slots(source, slots[0], destination, slots[1])
    for slots in (torch.tensor([[1, 2]]), torch.tensor([1, 2], dtype=torch.int32), torch.tensor(1)):
        with pytest.raises(SlotError, match="pass a 1-D int64 tensor"):
            check_slots(source, slots, destination, slots)
    check_sums(here, source, destination, here, 16)
    check_sums(here, source, destination, here, 4)
    with pytest.raises(LayoutError, match="aligned to 2 bytes have no 32-bit words"):
        check_sums(here, source, destination, here, 2)
    with pytest.raises(SlotError, match="on meta: pass int64, one per block"):
        check_sums(elsewhere, source, destination, here, 16)
