"""Shows that the boxes of a flat range are exactly the range, in its order, and as few as promised."""

import itertools
import math

import numpy as np
import pytest

from megatron_sts.train.boxes import Box, boxes_of_range

SHAPES = [(7,), (3, 4), (4, 1), (1, 5), (2, 3, 4), (3, 1, 2), (2, 2, 2, 3), ()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_boxes_hold_exactly_the_range_in_its_order(shape):
    size = math.prod(shape)
    numbers = np.arange(size).reshape(shape)
    for start, stop in itertools.combinations_with_replacement(range(size + 1), 2):
        boxes = boxes_of_range(shape, start, stop)
        assert len(boxes) <= max(2 * len(shape) - 1, 1)
        parts = [numbers[tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))] for box in boxes]
        for box, part in zip(boxes, parts, strict=True):
            assert part.shape == box.shape and part.size == box.size
            assert part.reshape(-1)[0] == box.start
        assert [number for part in parts for number in part.reshape(-1)] == list(range(start, stop))


def test_a_range_over_three_rows_is_an_end_whole_rows_and_a_beginning():
    assert boxes_of_range((5, 10), 7, 42) == [
        Box((0, 7), (1, 3), 7),
        Box((1, 0), (3, 10), 10),
        Box((4, 0), (1, 2), 40),
    ]
    assert boxes_of_range((5, 10), 0, 50) == [Box((0, 0), (5, 10), 0)]
