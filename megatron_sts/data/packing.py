"""Which samples of a step form a micro-batch when they lie end to end in one row instead of padded side by side."""

import heapq
from collections.abc import Callable, Sequence

MicroBatchesOfStep = Callable[[int], list[list[int]]]
"""From a 0-based step to the samples of each micro-batch of its global batch."""


def cut_by_length(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Places in `lengths` dealt out to `count` micro-batches whose sums are about even.

    The longest sample left goes to the micro-batch that is shortest so far; the first one where several are. Depends
    on nothing but the lengths, so that every rank of every layout finds the same. Each micro-batch has at least one
    sample, its samples in their order.
    """
    assert 1 <= count <= len(lengths) and min(lengths) > 0
    micro_batches: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, number) for number in range(count)]
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        total, number = heapq.heappop(shortest)
        micro_batches[number].append(place)
        heapq.heappush(shortest, (total + lengths[place], number))
    return [sorted(places) for places in micro_batches]


def with_tail(lengths: Sequence[int], row_length: int) -> tuple[int, ...]:
    """The pieces of a packed row that attention keeps apart: its samples and, where there is any, the padding."""
    tail = row_length - sum(lengths)
    assert tail >= 0
    return (*lengths, tail) if tail else tuple(lengths)
