"""Shows which visual tokens land where in a chunk of the sequence, by hand, and that chunks lose and double none."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_sts.model.merge import VisualRows, merge, visual_rows


def entries(rows: VisualRows) -> list[tuple[int, ...]]:
    """(image, slot, position, row) of each visual token."""
    columns = (rows.image, rows.slot, rows.position, rows.row)
    return list(zip(*(column.tolist() for column in columns), strict=True))


# Two rows; images 0 and 1 in row 0 at positions 1 and 6, image 2 in row 1 at position 0; each keeps 3 tokens.
IMAGE_ROWS, IMAGE_STARTS, KEPT = torch.tensor([0, 0, 1]), torch.tensor([1, 6, 0]), 3


def test_whole_sequence():
    assert entries(visual_rows(IMAGE_ROWS, IMAGE_STARTS, KEPT, ((0, 10),))) == [
        (0, 0, 1, 0),
        (0, 1, 2, 0),
        (0, 2, 3, 0),
        (1, 0, 6, 0),
        (1, 1, 7, 0),
        (1, 2, 8, 0),
        (2, 0, 0, 1),
        (2, 1, 1, 1),
        (2, 2, 2, 1),
    ]


def test_chunk_holds_its_own_positions_counted_from_its_start():
    assert entries(visual_rows(IMAGE_ROWS, IMAGE_STARTS, KEPT, ((2, 7),))) == [
        (0, 1, 0, 0),
        (0, 2, 1, 0),
        (1, 0, 4, 0),
        (2, 2, 0, 1),
    ]


def test_chunk_of_two_ranges_counts_on_from_the_first():
    assert entries(visual_rows(IMAGE_ROWS, IMAGE_STARTS, KEPT, ((1, 3), (7, 10)))) == [
        (0, 0, 0, 0),
        (0, 1, 1, 0),
        (1, 1, 2, 0),
        (1, 2, 3, 0),
        (2, 1, 0, 1),
        (2, 2, 1, 1),
    ]


def test_chunk_without_visual_tokens_is_empty():
    assert entries(visual_rows(IMAGE_ROWS, IMAGE_STARTS, KEPT, ((4, 6),))) == []
    none = torch.empty(0, dtype=torch.int64)
    assert entries(visual_rows(none, none, KEPT, ((0, 10),))) == []


@given(
    kept=st.integers(1, 20),
    starts=st.lists(st.integers(0, 25), max_size=4),
    cuts=st.lists(st.integers(0, 48), max_size=4),
)
def test_chunks_together_are_the_whole(kept, starts, cuts):
    image_rows, image_starts = torch.arange(len(starts)), torch.tensor(starts, dtype=torch.int64)
    borders = sorted({0, 48, *cuts})
    found = []
    for start, end in pairwise(borders):
        chunk = entries(visual_rows(image_rows, image_starts, kept, ((start, end),)))
        assert all(0 <= position < end - start for _, _, position, _ in chunk)
        found += [(image, slot, position + start, row) for image, slot, position, row in chunk]
    assert sorted(found) == sorted(entries(visual_rows(image_rows, image_starts, kept, ((0, 48),))))


def test_merge_writes_over_the_slots_alone():
    text = torch.arange(12.0).view(3, 2, 2)
    before = text.clone()
    rows = VisualRows(*(torch.tensor(column) for column in ([0, 0], [0, 1], [2, 0], [0, 1])))
    merged = merge(text, torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], dtype=torch.float64), rows)
    assert merged.tolist() == [[[0, 1], [-3, -4]], [[4, 5], [6, 7]], [[-1, -2], [10, 11]]]
    assert merged.dtype == torch.float32
    assert torch.equal(text, before)
