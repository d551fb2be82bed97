"""Shows the padded length and the chunks of a sequence that ranks hold, worked out by hand."""

import pytest

from megatron_sts.config import ParallelConfig, Recipe
from megatron_sts.parallel.sequence import legal_length, length_multiple, own_ranges, padded_length, sample_multiple


def recipe(fp8: str | None = None, rounding: int | None = None, **parallel: int) -> Recipe:
    """What the length depends on, and nothing else."""
    precision = {"precision": "bf16"} if fp8 is None else {"precision": "fp8", "fp8_recipe": fp8}
    layout = ParallelConfig.model_validate(parallel)
    return Recipe.model_construct(length_rounding=rounding, parallel=layout, **precision)


@pytest.mark.parametrize(
    ("parallel", "fp8", "multiple"),
    [
        ({}, None, 1),
        ({"tensor": 4}, None, 1),
        ({"tensor": 4, "sequence_parallel": True}, None, 4),
        ({"tensor": 2, "sequence_parallel": True, "pipeline": 3}, None, 2),
        # Two chunks of equal length on each context rank, of whole parts for the tensor-parallel ranks.
        ({"context": 3}, None, 6),
        ({"context": 2, "tensor": 2, "sequence_parallel": True}, None, 4),
        ({"context": 2, "tensor": 3, "sequence_parallel": True}, None, 12),
        ({"tensor": 4}, "tensorwise", 16),
        ({"tensor": 4, "sequence_parallel": True}, "delayed", 64),
        ({"context": 2}, "tensorwise", 32),
        ({"tensor": 2, "sequence_parallel": True, "context": 2}, "blockwise", 512),
    ],
)
def test_layout_and_precision_ask_for_a_multiple(parallel, fp8, multiple):
    assert length_multiple(recipe(fp8, **parallel)) == multiple


@pytest.mark.parametrize(("length", "padded"), [(1, 4), (4, 4), (5, 8), (636, 636), (637, 640)])
def test_the_least_legal_length(length, padded):
    assert legal_length(length, recipe(tensor=4, sequence_parallel=True)) == padded
    assert legal_length(length, recipe(tensor=4)) == length


def test_lengths_are_rounded_by_the_recipe_or_by_its_precision():
    assert [padded_length(length, recipe()) for length in (1, 64, 65)] == [64, 64, 128]
    assert padded_length(65, recipe("tensorwise")) == 128
    fp32 = recipe().model_copy(update={"precision": "fp32"})
    assert padded_length(65, fp32) == 65
    assert [padded_length(65, recipe(rounding=rounding)) for rounding in (1, 10)] == [65, 70]


def test_what_is_rounded_is_made_legal():
    # 128 is no multiple of the six chunks of three context ranks.
    assert padded_length(65, recipe(context=3)) == 132
    assert padded_length(65, recipe("blockwise", tensor=2, sequence_parallel=True)) == 256


def test_sequence_parallel_chunks_follow_one_another():
    assert [own_ranges((12,), rank, 3) for rank in range(3)] == [((0, 4),), ((4, 8),), ((8, 12),)]
    assert own_ranges((7,)) == ((0, 7),)


def test_context_parallel_ranks_hold_an_early_and_a_late_chunk():
    assert own_ranges((16,), context_rank=0, context_size=2) == ((0, 4), (12, 16))
    assert own_ranges((16,), context_rank=1, context_size=2) == ((4, 8), (8, 12))


def test_both_together_cut_what_a_context_rank_holds():
    assert [own_ranges((24,), rank, 3, 0, 2) for rank in range(3)] == [((0, 4),), ((4, 6), (18, 20)), ((20, 24),)]
    assert [own_ranges((24,), rank, 3, 1, 2) for rank in range(3)] == [((6, 10),), ((10, 12), (12, 14)), ((14, 18),)]


def test_of_a_packed_row_each_sample_is_dealt_out_by_itself():
    assert [sample_multiple(size) for size in (1, 2, 3)] == [1, 4, 6]
    assert own_ranges((4, 8), context_rank=0, context_size=2) == ((0, 1), (3, 4), (4, 6), (10, 12))
    assert own_ranges((4, 8), context_rank=1, context_size=2) == ((1, 2), (2, 3), (6, 8), (8, 10))
    # The tensor-parallel ranks cut the six positions of a context rank in two, wherever samples end.
    assert own_ranges((4, 8), 0, 2, 0, 2) == ((0, 1), (3, 4), (4, 5))
    assert own_ranges((4, 8), 1, 2, 0, 2) == ((5, 6), (10, 12))
    assert own_ranges((4, 8)) == ((0, 12),)
