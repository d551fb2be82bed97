"""Shows that things are dealt out evenly, and that no more of them move than must."""

from hypothesis import given
from hypothesis import strategies as some

from megatron_sts.parallel.exchange import deal_evenly, own_share


def test_what_a_rank_has_too_many_of_goes_to_those_that_lack_some():
    assert deal_evenly([340]) == [[340]]
    assert deal_evenly([0, 340]) == [[0, 0], [170, 170]]
    # Shares of 11 are 2, 3, 3 and 3.
    assert deal_evenly([7, 0, 4, 0]) == [[2, 3, 0, 2], [0, 0, 0, 0], [0, 0, 3, 1], [0, 0, 0, 0]]
    assert deal_evenly([0, 0, 0]) == [[0, 0, 0]] * 3


@given(some.lists(some.integers(0, 50), min_size=1, max_size=8))
def test_all_end_up_with_their_share_and_only_what_is_too_much_moves(counts):
    given = deal_evenly(counts)
    assert [sum(row) for row in given] == counts
    shares = [len(own_share(sum(counts), rank, len(counts))) for rank in range(len(counts))]
    assert [sum(column) for column in zip(*given, strict=True)] == shares
    moved = sum(count for giver, row in enumerate(given) for taker, count in enumerate(row) if taker != giver)
    assert moved == sum(max(0, count - share) for count, share in zip(counts, shares, strict=True))
