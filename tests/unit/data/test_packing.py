"""Shows that micro-batches are cut by length evenly and that padding is a piece of its own."""

import pytest

from megatron_sts.data.packing import cut_by_length, with_tail


def test_longest_first_to_the_shortest_micro_batch():
    # 9 and 7 open the two; 5 joins 7, 4 joins 9, 3 joins 12 and 1 joins 13.
    assert cut_by_length([4, 9, 1, 7, 5, 3], 2) == [[0, 1, 2], [3, 4, 5]]


def test_equal_lengths_are_dealt_in_turn():
    assert cut_by_length([6] * 6, 3) == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_every_sample_is_in_one_micro_batch_and_none_is_empty(count):
    lengths = [100, 1, 1, 2, 50, 1, 3]
    found = cut_by_length(lengths, count)
    assert sorted(place for places in found for place in places) == list(range(7))
    assert len(found) == count and all(places == sorted(places) and places for places in found)


def test_padding_is_a_piece_of_its_own():
    assert with_tail([3, 2], 8) == (3, 2, 3)
    assert with_tail([3, 5], 8) == (3, 5)
