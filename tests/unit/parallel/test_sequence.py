"""Shows the padded length and the chunks of a sequence that tensor-parallel ranks hold, worked out by hand."""

import pytest

from megatron_sts.config import ParallelConfig
from megatron_sts.parallel.sequence import length_multiple, own_chunk, padded_length


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


def test_chunks_follow_one_another_and_cover_the_sequence():
    assert [own_chunk(12, rank, 3) for rank in range(3)] == [(0, 4), (4, 8), (8, 12)]
    assert own_chunk(7, 0, 1) == (0, 7)
