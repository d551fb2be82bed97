"""Flat ranges of tensors as boxes: the distributed optimiser keeps ranges, a checkpoint is resharded by boxes."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor, contiguous in row-major order.

    offset, shape: one number a dimension. start: how many of the tensor's numbers lie before it.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def boxes_of_range(shape: tuple[int, ...], start: int, stop: int) -> list[Box]:
    """The numbers from `start` to `stop` of a row-major tensor of `shape`, as boxes in their order.

    At most 2d - 1 of them in d dimensions: the end of a first row, whole rows, the beginning of a last row.
    """
    if start >= stop:
        return []
    if len(shape) <= 1:
        return [Box((start,) * len(shape), (stop - start,) * len(shape), start)]
    row = math.prod(shape[1:])
    first_whole, after_whole = -(-start // row), stop // row
    if first_whole > after_whole:
        return _in_row(shape, start // row, start, stop)
    boxes = _in_row(shape, first_whole - 1, start, first_whole * row)
    if first_whole < after_whole:
        offset = (first_whole, *(0 for _ in shape[1:]))
        boxes.append(Box(offset, (after_whole - first_whole, *shape[1:]), first_whole * row))
    return boxes + _in_row(shape, after_whole, after_whole * row, stop)


def _in_row(shape: tuple[int, ...], number: int, start: int, stop: int) -> list[Box]:
    """The boxes of a range that lies within one row, the part of the tensor at one index of the first dimension."""
    begin = number * math.prod(shape[1:])
    return [
        Box((number, *box.offset), (1, *box.shape), begin + box.start)
        for box in boxes_of_range(shape[1:], start - begin, stop - begin)
    ]
