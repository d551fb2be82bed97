"""Shows the padded length and the chunks of a sequence that tensor-parallel ranks hold, worked out by hand."""

import pytest

from megatron_sts.config import ParallelConfig
from megatron_sts.parallel.sequence import length_multiple, own_ranges, padded_length


@pytest.mark.parametrize(
    ("parallel", "multiple"),
    [
        ({}, 1),
        ({"tensor": 4}, 1),
        ({"tensor": 4, "sequence_parallel": True}, 4),
        ({"tensor": 2, "sequence_parallel": True, "pipeline": 3}, 2),
    ],
)
def test_only_sequence_parallelism_asks_for_a_multiple(parallel, multiple):
    assert length_multiple(ParallelConfig.model_validate(parallel)) == multiple


@pytest.mark.parametrize(("length", "padded"), [(1, 4), (4, 4), (5, 8), (636, 636), (637, 640)])
def test_padding_is_the_least_legal_length(length, padded):
    parallel = ParallelConfig(tensor=4, sequence_parallel=True)
    assert padded_length(length, parallel) == padded
    assert padded_length(length, ParallelConfig(tensor=4)) == length


def test_sequence_parallel_chunks_follow_one_another():
    assert [own_ranges(12, rank, 3) for rank in range(3)] == [((0, 4),), ((4, 8),), ((8, 12),)]
    assert own_ranges(7) == ((0, 7),)


def test_context_parallel_ranks_hold_an_early_and_a_late_chunk():
    assert own_ranges(16, context_rank=0, context_size=2) == ((0, 4), (12, 16))
    assert own_ranges(16, context_rank=1, context_size=2) == ((4, 8), (8, 12))


def test_both_together_cut_what_a_context_rank_holds():
    assert [own_ranges(24, rank, 3, 0, 2) for rank in range(3)] == [((0, 4),), ((4, 6), (18, 20)), ((20, 24),)]
    assert [own_ranges(24, rank, 3, 1, 2) for rank in range(3)] == [((6, 10),), ((10, 12), (12, 14)), ((14, 18),)]
